"""What arrives is what was published, to the byte."""

from fastapi_rooms.domain.envelope import Envelope, room_target, user_target
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.move import Move
from fastapi_rooms.testing.conformance.bench import Bench, text

ROOM = room_target("kitchen")
USER = user_target("ann")
IDS = [f"{number:032x}" for number in range(100)]


class Content(Bench):
    """What arrives is what was published, to the byte."""

    async def _arrives(self, *contents: Message | Close) -> None:
        """Check that these arrive as they are."""
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM,))
            for content in contents:
                await self.within(one.say(ROOM, content))
            arrived = await two.received(len(contents), self.deadline)
            same = [_plain(envelope.content) == _plain(sent) for envelope, sent in zip(arrived, contents, strict=True)]
            assert all(same), f"content {same.index(False)} was changed on its way"

    async def test_text_arrives_unchanged(self) -> None:
        characters = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF)
        size = 0x10000
        await self._arrives(*(text(characters[at : at + size]) for at in range(0, len(characters), size)))
        await self._arrives(text(" \t\r\nhello\r\n\0 "), text("\ufeffhello\ufeff"), text("e\u0301 is not é"))

    async def test_bytes_arrive_unchanged(self) -> None:
        await self._arrives(*(Message(bytes([byte]), is_text=False) for byte in range(256)))
        await self._arrives(Message(bytes(range(256)), is_text=False), Message(b"\r\n$3\r\nfoo\r\n", is_text=False))

    async def test_nothing_arrives_as_nothing(self) -> None:
        await self._arrives(text(""), Message(b"", is_text=False), text(" "), text("null"))

    async def test_a_megabyte_arrives(self) -> None:
        await self._arrives(Message(bytes(range(256)) * 4096, is_text=False), text("🦆" * 0x40000))

    async def test_closes_arrive_with_code_and_reason(self) -> None:
        await self._arrives(Close(), Close(4999, "bye"), Close(1012), Close(3000, "🦆" * 30), Close(1000, "\0"))

    async def test_moves_arrive_with_their_room(self) -> None:
        moves = [Move("kitchen", joins=True), Move("kitchen", joins=False), Move("🦆" * 60, joins=True)]
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((USER,))
            for move in moves:
                await self.within(one.say(USER, move))
            arrived = await two.received(3, self.deadline)
            assert [envelope.content for envelope in arrived] == moves

    async def test_who_is_left_out_arrives(self) -> None:
        async with self.nodes(2) as (one, two):
            await two.backend.subscribe((ROOM,))
            for excluded in ([], IDS[:1], IDS):
                await self.within(one.say(ROOM, "hello", excluded))
            arrived: list[Envelope] = await two.received(3, self.deadline)
            assert [envelope.excluded for envelope in arrived] == [frozenset(), frozenset(IDS[:1]), frozenset(IDS)]
            await self.within(one.say(ROOM, "hello", excluded_user="ännchen"))
            *_, last = await two.received(4, self.deadline)
            assert last.excluded_user == "ännchen"


def _plain(content: Message | Close | Move) -> tuple[object, ...]:
    if isinstance(content, Close):
        return content.code, content.reason
    assert isinstance(content, Message), f"{content!r} is none of what was published"
    return content.is_text, content.payload
