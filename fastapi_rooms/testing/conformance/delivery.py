"""Who is reached, how often, in which order."""

import asyncio
from uuid import uuid4

from fastapi_rooms.domain.connection_id import ConnectionId
from fastapi_rooms.domain.envelope import EVERYBODY, Target, TargetKind, connection_target, room_target, user_target
from fastapi_rooms.testing.conformance.bench import Bench

ROOM = room_target("kitchen")
USER = user_target("ann")

NAMES = [
    "", " ", "  ", "a", "A", "a ", " a", "0", "é", "e\u0301", "🦆", "\n", "\r\n", "\0", "\0a", "\ud800",
    "*", "?", "[x]", "{a}", "{b}", "{}", "}{", "\\", "\\*", "h?llo", "h[^e]llo", ">", "#", "+", "$SYS", "/", "a/b",
    ":", "a:b", "a.b", "all", "room", "user", "node", "room:a", "user:a", ":room:a", "rooms:room:a",
    "%", "%2A", "%252A", "a%2Fb", "a+b", "a%20b", "YQ==", "61", "xn--", "\\x61", "\\u0061", "&amp;", "=?utf-8?", "~",
    "-", "_", "n" * 5000, "n" * 4999 + "m", "m" + "n" * 4999, "🦆" * 1250,
]  # fmt: skip
"""Names that are patterns, separators, hash tags, control characters or encodings of each other somewhere."""


class Delivery(Bench):
    """Who is reached, how often, in which order."""

    async def test_reaches_every_subscribed_node_but_the_one_that_published(self) -> None:
        async with self.nodes(3) as (one, two, three):
            for node in (one, two, three):
                await node.backend.subscribe((ROOM,))
            await self.within(one.say(ROOM, "hello"))
            await self.settle(one, two, three)
            assert (one.heard(ROOM), two.heard(ROOM), three.heard(ROOM)) == ([], ["hello"], ["hello"])
            assert two.envelopes[0].origin == one.node_id, "the origin is the node that published"

    async def test_does_not_reach_a_node_that_is_not_subscribed(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM, USER))
            for target in (room_target("hall"), user_target("bob"), room_target(USER.name), user_target(ROOM.name)):
                await self.within(one.say(target, "not for you"))
            await self.settle(one, two)
            assert two.envelopes == [], "it was not subscribed to any of these"

    async def test_does_not_reach_a_node_that_is_not_subscribed_to_everybody(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM,))
            two.backend.unsubscribe((EVERYBODY,))

            async def is_deaf() -> bool:
                token = uuid4().hex
                await self.within(one.say(EVERYBODY, token))
                await self.within(one.say(ROOM, token))
                await self.eventually(lambda: token in two.heard(ROOM), "the room is heard")
                return token not in two.heard(EVERYBODY)

            await self.eventually(is_deaf, "everybody is not heard any more")

    async def test_reaches_all_a_room_and_a_user(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM, USER))
            for target in (EVERYBODY, ROOM, USER):
                await self.within(one.say(target, target.kind.name))
            await two.received(3, self.deadline)
            await self.settle(one, two)
            for target in (EVERYBODY, ROOM, USER):
                assert two.heard(target) == [target.kind.name], "each arrives once, with its target"

    async def test_reaches_a_connection_through_those_subscribed_to_everybody(self) -> None:
        connection = connection_target(ConnectionId("0123456789abcdef0123456789abcdef"))
        async with self.nodes(3) as (one, two, three):
            await self.within(one.say(connection, "you"))
            await self.settle(one, two, three)
            assert (one.heard(connection), two.heard(connection), three.heard(connection)) == ([], ["you"], ["you"])

    async def test_delivers_each_once_and_in_the_order_of_the_calls(self) -> None:
        async with self.nodes(3) as (one, two, listener):
            await listener.backend.subscribe((ROOM,))
            told = [node.say(ROOM, f"{node.node_id} {number}") for number in range(300) for node in (one, two)]
            for published in reversed(told):
                await self.within(published)
            await listener.received(600, self.deadline)
            await self.settle(one, two, listener)
            for node in (one, two):
                heard = [line for line in listener.heard(ROOM) if line.startswith(node.node_id)]
                assert heard == [f"{node.node_id} {number}" for number in range(300)]

    async def test_does_not_take_back_what_nobody_waits_for(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM,))
            cancelled = asyncio.ensure_future(one.say(ROOM, "first"))
            one.say(ROOM, "second")
            cancelled.cancel()
            await self.within(one.say(ROOM, "third"))
            await two.received(3, self.deadline)
            assert two.heard(ROOM) == ["first", "second", "third"]

    async def test_keeps_names_apart_whatever_they_are(self) -> None:
        targets = [Target(kind, name) for name in NAMES for kind in (TargetKind.ROOM, TargetKind.USER)]
        async with self.nodes(3) as (one, two, speaker):
            await self.within(one.backend.subscribe(targets[::2]))
            await self.within(two.backend.subscribe(targets[1::2]))
            for number, target in enumerate(targets):
                await self.within(speaker.say(target, str(number)))
            await one.received(len(NAMES), self.deadline)
            await two.received(len(NAMES), self.deadline)
            await self.settle(one, two, speaker)
            for node, rest in ((one, 0), (two, 1)):
                assert {target: node.heard(target) for target in targets if node.heard(target)} == {
                    target: [str(number)] for number, target in enumerate(targets) if number % 2 == rest
                }, "each name is reached once, and by itself alone"
                assert node.backend.status.undecodable == 0, "nothing came that was meant for another name"
