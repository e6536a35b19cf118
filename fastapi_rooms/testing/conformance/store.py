"""What nodes share for a time, if the backend has a store. Otherwise these tests are skipped."""

import asyncio
from unittest import SkipTest
from uuid import uuid4

from fastapi_rooms.backends.contract import SupportsStore
from fastapi_rooms.testing.conformance.bench import Bench, Node, fails

SHORT, LONG = 0.25, 30.0
"""In seconds: what a test waits for, and what outlives any test."""
TICK = 0.01
"""In seconds: how much two clocks may differ within `SHORT`."""


class Store(Bench):
    """What nodes share for a time."""

    async def test_a_store_keeps_values_for_all_nodes_as_they_are(self) -> None:
        async with self.nodes(2) as (one, two):
            values = [b"", b" \r\n$3\r\n\0", bytes(range(256)), "🦆".encode(), b"x" * 100_000]
            keys = _keys(len(values))
            for key, value in zip(keys, values, strict=True):
                await self.within(_store(one).put(key, value, LONG))
            assert await _store(two).peek(keys) == values
            assert await _store(one).peek(keys) == values, "to look at them leaves them there"
            assert [await _store(two).take(key) for key in keys] == values
            assert await _store(one).peek(keys) == [None] * len(keys), "what was taken is forgotten"

    async def test_a_store_keeps_keys_apart_whatever_they_are(self) -> None:
        kinds = ("a", "A", "a:b", "a%3Ab", "a b", "{a}", "{a}b", "{a}c", "*", "é", "e\u0301", "\r\n\0", "", "k" * 1000)
        async with self.nodes(1) as (one,):
            (unique,) = _keys(1)
            keys = [unique + kind for kind in kinds]
            for key in keys:
                await self.within(_store(one).put(key, key.encode(), LONG))
            assert await _store(one).peek(keys) == [key.encode() for key in keys]
            for key in keys:
                assert await _store(one).take(key) == key.encode()

    async def test_of_all_who_take_a_value_at_once_one_gets_it(self) -> None:
        async with self.nodes(2) as (one, two):
            for key in _keys(50):
                await self.within(_store(one).put(key, b"one of a kind", LONG))
                takers = (one, two, two, one)
                got = await asyncio.gather(*(_store(node).take(key) for node in takers))
                assert sorted(got, key=bool) == [None, None, None, b"one of a kind"]

    async def test_a_store_forgets_a_value_when_its_time_is_over(self) -> None:
        async with self.nodes(2) as (one, two):
            short, long, longer, shorter = keys = _keys(4)
            for key, seconds in ((longer, SHORT), (long, LONG), (longer, LONG), (shorter, LONG)):
                await self.within(_store(one).put(key, b"old" if seconds == SHORT else b"new", seconds))
            clock = asyncio.get_running_loop().time
            begin = clock()
            for key in (short, shorter):
                await self.within(_store(one).put(key, b"old", SHORT))

            async def is_over() -> bool:
                return await _store(two).peek([short, shorter]) == [None, None]

            await self.eventually(is_over, "values whose time is over are forgotten")
            assert clock() - begin > SHORT - TICK, "but not before"
            assert await _store(two).take(short) is None, "it is not there for those who take it, either"
            assert await _store(two).peek(keys) == [None, b"new", b"new", None], "the last put decides how long"
            for key in (long, longer):
                await _store(two).take(key)

    async def test_a_store_is_asked_for_ten_thousand_keys_at_once(self) -> None:
        async with self.nodes(2) as (one, two):
            keys = _keys(10_000)
            known = {key: key.encode() for key in keys[::50]}
            await asyncio.gather(*(_store(one).put(key, value, LONG) for key, value in known.items()))
            assert await _store(two).peek(keys) == [known.get(key) for key in keys]
            assert await _store(two).peek([keys[0], keys[1], keys[0]]) == [known[keys[0]], None, known[keys[0]]]
            assert await _store(two).peek([]) == []
            await asyncio.gather(*(_store(one).take(key) for key in known))

    async def test_a_store_fails_while_it_is_stopped(self) -> None:
        async with self.nodes(2, started=False) as (one, two):
            (key,) = _keys(1)
            assert await _fail(one, key), "it was not started"
            for node in (one, two):
                await node.start(required=True)
            await self.within(_store(one).put(key, b"kept", LONG))
            await one.backend.stop()
            assert await _fail(one, key), "it was stopped"
            assert await _store(two).take(key) == b"kept", "others have what it put"

    async def test_a_store_fails_while_cut_off(self) -> None:
        async with self.nodes(2) as (one, two):
            kept, lost = _keys(2)
            await self.within(_store(one).put(kept, b"kept", LONG))
            async with self.cut_off(one):
                assert await _fail(one, lost)
                assert await _store(two).peek([kept, lost]) == [b"kept", None]
            await self.connected(one)
            assert await _store(one).peek([kept, lost]) == [b"kept", None], "what has failed is not tried again"
            assert await _store(one).take(kept) == b"kept"


def _keys(count: int) -> list[str]:
    """Return keys that no other test has."""
    unique = uuid4().hex
    return [f"{unique} {number}" for number in range(count)]


def _store(node: Node) -> SupportsStore:
    if isinstance(node.backend, SupportsStore):
        return node.backend
    raise SkipTest("this backend has no store")


async def _fail(node: Node, key: str) -> bool:
    """Return whether a store can do nothing."""
    store = _store(node)
    calls = (store.put(key, b"lost", LONG), store.take(key), store.peek([key]))
    return all([await fails(call) for call in calls])
