"""What a node wants to hear, and from when on it does."""

import asyncio

from fastapi_rooms.domain.envelope import Target, room_target, user_target
from fastapi_rooms.testing.conformance.bench import Bench, Node

ROOM = room_target("kitchen")
USER = user_target("ann")


class Subscriptions(Bench):
    """What a node wants to hear, and from when on it does."""

    async def test_hears_all_that_is_published_once_a_subscription_is_ready(self) -> None:
        async def subscribe(listener: Node, speaker: Node, target: Target, word: str) -> None:
            await self.within(listener.backend.subscribe((target,)))
            await self.within(speaker.say(target, word))

        async with self.nodes(2) as (one, two):
            rooms = [room_target(f"kitchen {number}") for number in range(20)]
            words = ["first", "second", "third"]
            for room in rooms:
                await asyncio.gather(*(subscribe(one, two, room, word) for word in words))
            await one.received(len(rooms) * len(words), self.deadline)
            assert all(sorted(one.heard(room)) == words for room in rooms), "each is heard once"

    async def test_is_ready_for_the_others_when_one_does_not_wait_any_longer(self) -> None:
        async with self.nodes(2) as (one, two):
            impatient = asyncio.ensure_future(one.backend.subscribe((ROOM,)))
            patient = asyncio.ensure_future(one.backend.subscribe((ROOM,)))
            await asyncio.sleep(0)
            impatient.cancel()
            try:
                await self.within(patient)
            except asyncio.CancelledError as error:
                raise AssertionError("one who did not wait any longer has cancelled what others wait for") from error
            assert await self.is_heard(two, one, ROOM)

    async def test_what_counts_is_the_last_word_of_a_tick(self) -> None:
        async with self.nodes(2) as (one, two):
            one.backend.subscribe((ROOM,))
            one.backend.unsubscribe((ROOM,))
            ready = one.backend.subscribe((ROOM,))
            one.backend.subscribe((USER,))
            one.backend.unsubscribe((USER,))
            await self.within(ready)
            assert await self.is_heard(two, one, ROOM)
            one.backend.unsubscribe((ROOM,))
            await self.within(one.backend.subscribe((ROOM,)))
            assert await self.is_heard(two, one, ROOM)
            await self._until_deaf(two, one, USER)

    async def test_ends_hearing_what_is_not_wanted_any_more(self) -> None:
        async with self.nodes(3) as (one, two, three):
            for node in (one, two):
                await node.backend.subscribe((ROOM, USER))
            one.backend.unsubscribe((ROOM,))
            await self._until_deaf(three, one, ROOM)
            assert await self.is_heard(three, one, USER)
            assert await self.is_heard(three, two, ROOM)
            await self.within(one.backend.subscribe((ROOM,)))
            assert await self.is_heard(three, one, ROOM)

    async def test_does_not_count_how_often_something_is_wanted(self) -> None:
        async with self.nodes(2) as (one, two):
            one.backend.unsubscribe((ROOM,))
            await self.within(one.backend.subscribe(()))
            for _ in range(3):
                await self.within(one.backend.subscribe((ROOM, ROOM)))
            await self.within(two.say(ROOM, "hello"))
            await self.settle(one, two)
            assert one.heard(ROOM) == ["hello"], "wanted three times, heard once"
            one.backend.unsubscribe((ROOM,))
            one.backend.unsubscribe(())
            await self._until_deaf(two, one, ROOM)
            one.backend.unsubscribe((ROOM,))

    async def test_takes_a_thousand_targets_at_once(self) -> None:
        rooms = [room_target(f"room {number}") for number in range(1000)]
        async with self.nodes(2) as (one, two):
            await self.within(one.backend.subscribe(rooms))
            for published in [two.say(room, room.name) for room in rooms]:
                await self.within(published)
            await one.received(1000, self.deadline)
            assert {envelope.target for envelope in one.envelopes} == set(rooms)
            one.backend.unsubscribe(rooms[1:])
            await self._until_deaf(two, one, rooms[-1])
            assert await self.is_heard(two, one, rooms[0])

    async def _until_deaf(self, speaker: Node, listener: Node, target: Target) -> None:
        async def is_deaf() -> bool:
            return not await self.is_heard(speaker, listener, target)

        await self.eventually(is_deaf, f"{target} is not heard any more")
