"""What nodes share for a time, on a Redis that one looks into, that stands still, and that says no."""

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_nodes import Node, running_nodes, some_settings
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.contract import SupportsStore
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.backends.redis.slots import slot_of
from fastapi_rooms.domain.envelope import Target, TargetKind

TIMEOUT = 0.5
names = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"]), st.sampled_from("{}:%*?[] \r\n\0")))


def test_it_has_a_store():
    assert isinstance(RedisBackend("redis://localhost"), SupportsStore)


@settings(deadline=None)
@given(names, names)
def test_a_key_has_a_name_of_its_own_that_picks_no_slot(one, other):
    app = Channels("app:1")
    name = app.of_key(one)
    assert (name == app.of_key(other)) is (one == other)
    assert name != Channels("app:1:store").of_key(other)
    assert re.fullmatch(rb"app:1:store:[A-Za-z0-9_.~%-]*", name)
    assert name != app.of(Target(TargetKind.ROOM, one))
    assert 0 <= slot_of(name) < 16_384


async def test_a_value_is_on_the_line_at_the_call_so_that_nothing_overtakes_it(shared_broker):
    async with running_nodes(shared_broker.url, 1) as (node,):
        line = node.backend._topology._link.line
        await until(line.is_idle)
        kept = node.backend.put("a", b"1", 60)
        assert not line.is_idle()
        await kept
        assert await node.backend.peek(["a"]) == [b"1"]


async def test_a_value_is_a_key_with_a_time_to_live_under_the_prefix(each_broker):
    async with running_nodes(each_broker.url, 1) as (node,):
        await node.backend.put("ticket:1", b"\xff\0", 12.3456)
        prefix = node.settings.key_prefix
        assert each_broker.call("KEYS", f"{prefix}*") == [f"{prefix}:store:ticket%3A1"]
        assert 11_000 < each_broker.call("PTTL", f"{prefix}:store:ticket%3A1") <= 12_346
        assert await node.backend.take("ticket:1") == b"\xff\0"
        assert each_broker.call("KEYS", f"{prefix}*") == []


async def test_the_shortest_time_is_one_that_redis_takes(each_broker):
    async with running_nodes(each_broker.url, 1) as (node,):
        await node.backend.put("soon over", b"", 1e-9)


async def test_values_are_looked_at_in_batches(broker):
    async with running_nodes(broker.url, 1) as (node,):
        assert await node.backend.peek([str(number) for number in range(10_001)]) == [None] * 10_001
        assert broker.calls("mget") == 21


async def test_a_redis_that_stands_still_fails_all_by_the_deadline_and_nothing_is_asked_twice(broker):
    async with running_nodes(broker.url, 1, publish_timeout=TIMEOUT, probe_interval=60) as (node,):
        store, loop = node.backend, asyncio.get_running_loop()
        await store.put("a", b"1", 60)
        broker.freeze()
        begin = loop.time()
        calls = (store.take("a"), store.put("b", b"2", 60), store.peek(["a"] * 2000))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert TIMEOUT <= loop.time() - begin < TIMEOUT + 0.5
        assert {type(outcome) for outcome in outcomes} == {BackendUnavailable}
        assert store.status.undelivered == 0, "nothing that was published"
        broker.thaw()
        await node.connected()
        assert await store.peek(["c"]) == [None]
        assert broker.calls("getdel") <= 1
        assert broker.calls("set") <= 2


async def test_who_does_not_wait_any_longer_takes_nothing_back(broker):
    async with running_nodes(broker.url, 1) as (node,):
        await node.backend.put("a", b"1", 60)
        taking = asyncio.ensure_future(node.backend.take("a"))
        await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert await node.backend.peek(["a"]) == [None]
        assert node.backend.status.connected


async def test_a_redis_that_says_no_is_out_of_reach_for_the_store_alone(broker):
    broker.call("ACL", "SETUSER", "mute", "on", ">secret", "+@all", "allchannels", "resetkeys")
    node = Node(f"redis://mute:secret@127.0.0.1:{broker.port}", settings=some_settings())
    await node.start(required=True)
    for call in (node.backend.put("k3y", b"v4lue", 1), node.backend.take("k3y"), node.backend.peek(["k3y"])):
        with pytest.raises(BackendUnavailable, match=r"Redis refused (SET|GETDEL|MGET): ") as refused:
            await call
        assert "k3y" not in str(refused.value)
        assert "v4lue" not in str(refused.value)
    assert node.backend.status.connected
    await node.backend.stop()


async def test_what_is_put_while_the_connection_is_lost_fails_at_once(broker):
    async with running_nodes(broker.url, 1) as (node,):
        broker.kill()
        await until(lambda: not node.backend.status.connected, "it is noticed")
        begin = asyncio.get_running_loop().time()
        with pytest.raises(BackendUnavailable):
            await node.backend.put("a", b"1", 60)
        assert asyncio.get_running_loop().time() - begin < 0.5
