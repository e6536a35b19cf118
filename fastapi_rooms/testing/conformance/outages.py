"""What happens while the broker is away, and when it is back."""

import asyncio
from datetime import UTC, datetime

from fastapi_rooms.domain.envelope import EVERYBODY, room_target
from fastapi_rooms.testing.conformance.bench import Bench, fails
from fastapi_rooms.testing.recorder import until

ROOM = room_target("kitchen")


class Outages(Bench):
    """What happens while the broker is away, and when it is back."""

    async def test_publishing_fails_while_cut_off(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM,))
            async with self.cut_off(one):
                counted = one.backend.status.undelivered
                assert await fails(one.say(ROOM, "lost")), "publishing fails"
                status = one.backend.status
                assert status.undelivered == counted + 1, "what fails is counted"
                assert status.degraded_since is not None, "it is degraded"
            await self.connected(one)
            assert await self.is_heard(one, two, ROOM)
            assert "lost" not in two.heard(ROOM), "what has failed is never sent again"

    async def test_others_go_on_while_one_is_cut_off(self) -> None:
        async with self.nodes(3) as (one, two, three):
            for node in (one, two, three):
                await node.backend.subscribe((ROOM,))
            async with self.cut_off(one):
                assert await self.is_heard(two, three, ROOM)
                assert await self.is_heard(three, two, ROOM)
                assert (two.backend.status.connected, three.backend.status.connected) == (True, True)
                assert (two.gaps, three.gaps) == ([], [])

    async def test_subscribing_is_ready_while_cut_off(self) -> None:
        async with self.nodes(1) as (one,), self.cut_off(one):
            await self.within(one.backend.subscribe((ROOM,)))

    async def test_reports_a_gap_and_hears_again_what_it_wants_by_then(self) -> None:
        kept, dropped, added = room_target("kept"), room_target("dropped"), room_target("added")
        async with self.nodes(2) as (one, two):
            await one.backend.subscribe((kept, dropped))
            async with self.cut_off(one):
                noticed = datetime.now(UTC)
                one.backend.unsubscribe((dropped,))
                await self.within(one.backend.subscribe((added,)))
            wanted = {EVERYBODY, kept, added}
            await until(
                lambda: wanted <= {target for gap in one.gaps for target in gap.targets},
                self.outage_deadline,
                lambda: f"the gap is reported: {one.gaps}",
            )
            assert await self.is_heard(two, one, kept)
            assert await self.is_heard(two, one, added)
            assert not await self.is_heard(two, one, dropped)
            assert all(dropped not in gap.targets for gap in one.gaps), "nobody misses what nobody wants"
            assert all(gap.since <= gap.until for gap in one.gaps)
            assert min(gap.since for gap in one.gaps) <= noticed <= max(gap.until for gap in one.gaps)
            await self.connected(one)
            status = one.backend.status
            assert status.degraded_since is None, "it is connected"
            assert (status.reconnects >= 1, status.gaps) == (True, len(one.gaps)), "both are counted"

    async def test_starts_degraded_and_connects_when_the_broker_comes(self) -> None:
        async with self.nodes(1) as (one,), self.nodes(1, started=False) as (two,):
            await self.within(two.backend.subscribe((ROOM,)))
            async with self.cut_off(two):
                await two.start()
                assert not two.backend.status.connected
                assert await fails(two.say(ROOM, "lost"))
            await self.connected(two)
            await self.within(two.backend.subscribe((ROOM,)))
            assert await self.is_heard(one, two, ROOM)
            assert await self.is_heard(two, one, EVERYBODY)

    async def test_does_not_start_without_the_broker_if_it_is_required(self) -> None:
        async with self.nodes(1) as (one,), self.nodes(1, started=False) as (two,):
            async with self.cut_off(two):
                before = asyncio.all_tasks()
                assert await fails(two.start(required=True)), "it is required"
                assert asyncio.all_tasks() - before == set(), "nothing is left running"
            await two.start()
            await self.connected(two)
            assert await self.is_heard(one, two, EVERYBODY)

    async def test_can_be_stopped_while_cut_off(self) -> None:
        before = asyncio.all_tasks()
        async with self.nodes(1) as (one,):
            async with self.cut_off(one):
                await one.backend.stop()
                assert asyncio.all_tasks() - before == set(), "tasks are left behind"
                assert not one.backend.status.connected
            assert await fails(one.say(EVERYBODY, "too late")), "it was stopped, and stays that"
