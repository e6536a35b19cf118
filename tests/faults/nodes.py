"""Nodes as users run them, members that note what they hear, and speakers that note what became of what they said."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

from fastapi import FastAPI
from support import DEADLINE, LiveServer, fair_time, live, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from fastapi_rooms import (
    BackendStatus,
    BackendUnavailable,
    ConnectionDep,
    DistributedWebSocketManager,
    Gap,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
)

ROOM = "kitchen"
SLACK = 0.5
"""How much later than promised a test may see something: one process, many threads, two cores, other tests."""
AT_ONCE = 1.0
"""The same for what waits for nothing; half of what it would take to wait for a deadline."""
UNDISTURBED = BackendStatus(connected=True, degraded_since=None)


class Node:
    """A uvicorn server with an app that has rooms over Redis.

    `/rooms/{room}?user=` passes on to the room what a client says. `/walk` takes `["join" | "leave", room]` and answers
    with the rooms that the client is then in.

    Attributes:
        gaps: What the app was told by `on_gap`.
    """

    def __init__(self, url: str) -> None:
        self.gaps: list[Gap] = []
        # Those who walk here do so as fast as they can.
        settings = RoomsSettings(messages_per_second=None)
        self.rooms = RoomsExtension(url, settings=settings, on_gap=self.gaps.append)
        self.app = FastAPI(lifespan=self.rooms.lifespan)
        self.server: LiveServer  # set by `running`

        def asked_for(user: str | None = None) -> str | None:
            return user

        @self.rooms.ws_route("/rooms/{room}", room="{room}", user_id=asked_for)
        async def talk(message: Incoming[str], room: str, manager: ManagerDep) -> None:
            await manager.broadcast_to_room(room, message)

        @self.rooms.ws_route("/walk")
        async def walk(message: Incoming[tuple[str, str]], connection: ConnectionDep, manager: ManagerDep) -> list[str]:
            step, room = message
            await (manager.join_room if step == "join" else manager.leave_room)(connection, room)
            return sorted(connection.rooms)

        self.app.include_router(self.rooms.router)

    @property
    def manager(self) -> DistributedWebSocketManager:
        return self.rooms.manager

    @property
    def status(self) -> BackendStatus:
        return self.manager.status

    async def say(self, text: str, room: str = ROOM) -> int:
        return await self.server.call(self.manager.broadcast_to_room, room, text)


@contextmanager
def running(*urls: str) -> Iterator[list[Node]]:
    """Run a node per URL, each in a thread of its own."""
    nodes = [Node(url) for url in urls]
    with contextlib.ExitStack() as ends:
        for node in nodes:
            node.server = ends.enter_context(live(node.app))
        yield nodes


async def connected(*nodes: Node | DistributedWebSocketManager, seconds: float = DEADLINE) -> None:
    await until(lambda: all(node.status.connected for node in nodes), "connected", seconds)


async def degraded(*nodes: Node, seconds: float = DEADLINE) -> None:
    await until(lambda: not any(node.status.connected for node in nodes), "degraded", seconds)


class Member:
    """A client in a room that notes what it hears.

    Attributes:
        heard: The texts, in their order.
        heard_at: When each of them came first.
    """

    def __init__(self, websocket: ClientConnection) -> None:
        self.heard: list[str] = []
        self.heard_at: dict[str, float] = {}
        self._websocket = websocket

    async def say(self, text: str) -> None:
        await self._websocket.send(text)

    async def hears(self, text: str, seconds: float = DEADLINE) -> None:
        await until(lambda: text in self.heard_at, text, seconds)

    async def hears_again(self, speaker: "Speaker", since: float) -> float:
        """Wait until something is heard that was said since then; return how much later that is."""
        return await until(lambda: self._heard_since(speaker, since)) - since

    def _heard_since(self, speaker: "Speaker", since: float) -> float | None:
        return next((at for one in speaker.said if one.at > since and (at := self.heard_at.get(one.text))), None)

    async def listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                text = await self._websocket.recv()
                self.heard.append(text)
                self.heard_at.setdefault(text, time.monotonic())


@asynccontextmanager
async def member(node: Node, room: str = ROOM, query: str = "") -> AsyncIterator[Member]:
    """Join a room, and stay in it until the end."""
    async with connect(node.server.url(f"/rooms/{room}{query}"), max_size=None, max_queue=None) as websocket:
        made = Member(websocket)
        listening = asyncio.create_task(made.listen())
        try:
            yield made
            assert not listening.done(), "the socket was closed"
        finally:
            await websocket.close()
            await listening


@dataclass
class Said:
    """A message, and what became of it."""

    text: str
    at: float = field(default_factory=time.monotonic)
    when: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = -1.0
    """How long the call took; negative: it goes on."""
    fair_seconds: float = -1.0
    """The same without what the machine kept us waiting: what an upper limit is for."""
    error: BackendUnavailable | None = None


class Speaker:
    """Has a node say one thing after the other to a room, at a steady rate, whatever becomes of it."""

    def __init__(self, node: Node, per_second: float, room: str) -> None:
        self.said: list[Said] = []
        self._node = node
        self._name = uuid4().hex[:8]
        self.room = room
        self._pause = 1 / per_second
        self._is_over = False

    @property
    def failed(self) -> list[Said]:
        return [one for one in self.said if one.error]

    def missed_by(self, listener: Member) -> list[Said]:
        return [one for one in self.said if one.text not in listener.heard_at]

    def stop(self) -> None:
        self._is_over = True

    async def run(self) -> None:
        begin = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            while not self._is_over:
                said = Said(f"{self._name} {len(self.said)}")
                self.said.append(said)
                calls.create_task(self._say(said))
                await asyncio.sleep(begin + len(self.said) * self._pause - time.monotonic())

    async def _say(self, said: Said) -> None:
        fair_begin = fair_time()
        error = None
        try:
            await self._node.manager.broadcast_to_room(self.room, said.text)
        except BackendUnavailable as raised:
            error = raised
        said.seconds = time.monotonic() - said.at
        said.fair_seconds = fair_time() - fair_begin
        said.error = error  # last: other threads look at it first


@asynccontextmanager
async def speaking(node: Node, per_second: float, room: str = ROOM) -> AsyncIterator[Speaker]:
    """Have a node speak; at the end everything that was said has been answered or has failed."""
    speaker = Speaker(node, per_second, room)
    run = asyncio.ensure_future(node.server.call(speaker.run))
    try:
        yield speaker
    finally:
        speaker.stop()
        await run


def check_order(said: Collection[str], heard: Collection[str]) -> None:
    """Check that nothing was heard twice, and that what was heard came in the order in which it was said."""
    place = {text: number for number, text in enumerate(said)}
    places = [place[text] for text in heard if text in place]
    assert len(set(places)) == len(places), "something was heard twice"
    assert places == sorted(places), "something was heard before what was said before it"


def check_hearing(speaker: Speaker, listener: Member, gaps: Collection[Gap], since: float = 0.0) -> None:
    """Check that each message was heard once or not at all, in order, and that all that was lost is in a gap.

    Args:
        speaker: Who said it.
        listener: Who was to hear it.
        gaps: What the listener's node reported.
        since: When the listener joined, if that was after the speaker began.
    """
    check_order([one.text for one in speaker.said], listener.heard)
    lost = [one for one in speaker.missed_by(listener) if one.error is None and one.at >= since]
    silent = [one for one in lost if not any(covers(gap, one, speaker.room) for gap in gaps)]
    assert not silent, (silent, gaps)


def covers(gap: Gap, said: Said, room: str) -> bool:
    return gap.since <= said.when <= gap.until and room in gap.rooms
