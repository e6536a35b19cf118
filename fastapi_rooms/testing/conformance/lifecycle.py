"""Start, stop, and what is told about it."""

import asyncio
from datetime import timedelta

from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, room_target
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.testing.conformance.bench import Bench, Node, fails

ROOM = room_target("kitchen")


class Lifecycle(Bench):
    """Start, stop, and what is told about it."""

    async def test_hears_what_was_wanted_before_the_start_once_it_is_connected(self) -> None:
        async with self.nodes(2, started=False) as (one, two):
            await self.within(one.backend.subscribe((ROOM,)))
            await two.start(required=True)
            await one.start(required=True)
            await self.within(two.say(ROOM, "hello"))
            await one.received(1, self.deadline)
            assert one.gaps == [], "a start is no gap"

    async def test_the_status_tells_whether_it_is_connected(self) -> None:
        async with self.nodes(1, started=False) as (node,):
            for _ in range(2):
                self._is_degraded(node)
                await node.start(required=True)
                assert node.backend.status.connected
                assert node.backend.status.degraded_since is None, "it is connected"
                await node.backend.stop()
            self._is_degraded(node)
            status = node.backend.status
            assert (status.reconnects, status.gaps, status.undelivered, status.undecodable) == (0, 0, 0, 0)

    async def test_may_be_started_and_stopped_more_than_once(self) -> None:
        async with self.nodes(2, started=False) as (one, two):
            await one.backend.stop()
            for _ in range(2):
                for node in (one, one, two):
                    await node.start(required=True)
                assert await self.is_heard(one, two, EVERYBODY)
                assert await self.is_heard(two, one, EVERYBODY)
                for node in (one, one, two):
                    await node.backend.stop()
            assert len(set(one.heard(EVERYBODY))) == len(one.heard(EVERYBODY)), "each was heard once"

    async def test_still_wants_after_a_stop_what_it_wanted_before(self) -> None:
        kept, dropped, added = room_target("kept"), room_target("dropped"), room_target("added")
        async with self.nodes(2) as (one, two):
            await one.backend.subscribe((kept, dropped))
            await one.backend.stop()
            one.backend.unsubscribe((dropped,))
            await self.within(one.backend.subscribe((added,)))
            await self.within(two.say(kept, "missed"))
            await one.start(required=True)
            assert await self.is_heard(two, one, kept)
            assert await self.is_heard(two, one, added)
            assert not await self.is_heard(two, one, dropped)
            assert "missed" not in one.heard(kept), "what was published while it was stopped is gone"

    async def test_stop_waits_for_what_is_on_its_way(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM,))
            told = [one.say(ROOM, str(number)) for number in range(100)]
            await one.backend.stop()
            await two.received(100, self.deadline)
            for published in told:
                await published

    async def test_publishing_fails_while_it_is_stopped(self) -> None:
        async with self.nodes(1, started=False) as (node,):
            assert await fails(node.say(ROOM, "too early")), "it was not started"
            await node.start(required=True)
            await node.backend.stop()
            assert await fails(node.say(ROOM, "too late")), "it was stopped"
            assert node.backend.status.undelivered == 2, "what fails is counted"

    async def test_leaves_no_task(self) -> None:
        before = asyncio.all_tasks()
        async with self.nodes(2) as (one, two):
            for node in (one, two):
                await node.backend.subscribe((ROOM,))
                node.backend.subscribe((room_target("hall"),))
                node.backend.unsubscribe((ROOM,))
            await self.settle(one, two)
            for node in (one, two):
                await node.backend.stop()
            assert asyncio.all_tasks() - before == set(), "tasks are left behind"

    async def test_outlives_a_receiver_that_raises(self) -> None:
        async with self.nodes(1) as (one,):
            clumsy = _Clumsy(await self.make_backend())
            try:
                await clumsy.backend.subscribe((EVERYBODY, ROOM))
                await clumsy.start(required=True)
                for word in ("first", "second"):
                    await self.within(one.say(ROOM, word))
                await clumsy.received(2, self.deadline)
                assert clumsy.heard(ROOM) == ["first", "second"]
                assert clumsy.backend.status.connected
            finally:
                await clumsy.backend.stop()

    async def test_outlives_what_is_no_envelope(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM,))
            await self.within(one.say(ROOM, Message(b"\xff", is_text=True)))
            await self.within(one.say(ROOM, "after it"))
            await two.received(1, self.deadline)
            assert two.heard(ROOM) == ["after it"], "it is dropped"
            assert two.backend.status.undecodable == 1, "and counted"
            assert two.backend.status.connected

    @staticmethod
    def _is_degraded(node: Node) -> None:
        status = node.backend.status
        assert not status.connected
        assert status.degraded_since is not None, "it is not connected since some time"
        assert status.degraded_since.utcoffset() == timedelta(0), "in UTC"


class _Clumsy(Node):
    def receive(self, envelope: Envelope) -> None:
        super().receive(envelope)
        raise RuntimeError("a receiver raised")
