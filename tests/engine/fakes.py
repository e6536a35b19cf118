"""Wires, peers and a clock that do what a test tells them."""

import asyncio
from collections.abc import Callable, Iterable

from starlette.websockets import WebSocket
from support import DEADLINE, until  # noqa: F401 - some tests take them from here

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound.batch import Batch
from fastapi_rooms.engine.outbound.flusher import Flusher
from fastapi_rooms.engine.outbound.outbox import Outbox


async def settled() -> None:
    """Let everything happen that waits neither for time nor for anybody outside: flushes, tasks, what these begin."""
    due = asyncio.get_running_loop()._ready  # nothing public says whether a loop has anything left to do at once
    for _ in range(10_000):
        await asyncio.sleep(0)
        if not due:
            return
    raise AssertionError("it never comes to rest")


async def ticks(count: int = 5) -> None:
    """Let so many ticks pass, where a test looks at what is half done; `settled` where it does not."""
    for _ in range(count):
        await asyncio.sleep(0)


def only_this_task() -> bool:
    """Return whether nothing runs on this loop beside the test."""
    return asyncio.all_tasks() == {asyncio.current_task()}


def unexpected(*arguments: object) -> None:
    """Fail: what a test passes on where nothing of the kind may happen."""
    raise AssertionError(arguments)


class ClockedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it. Fails where nothing would ever happen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select

        def select_at_once(seconds: float | None) -> object:
            if seconds is None:
                raise AssertionError("everybody waits, and no timer is set")
            self.now += seconds
            return select(0)

        self._selector.select = select_at_once

    def time(self) -> float:
        return self.now


def run_clocked(main: Callable[[], object]) -> None:
    """Run a coroutine function on a loop with a clock that jumps."""
    with asyncio.Runner(loop_factory=ClockedLoop) as runner:
        runner.run(main())


class FakeWire:
    """What both wires have in common: all of it can be blocked, be gone, or raise."""

    batch_bytes = 1

    def __init__(self) -> None:
        self.writes: list[list[Message]] = []  # what reached the peer, write by write
        self.handed: list[Message] = []  # what the outbox has passed on, whatever became of it
        self.in_flight: list[Message] = []  # passed to a write that waits
        self.closes: list[object] = []
        self.aborts = 0
        self.held = 0  # bytes that the server holds
        self.gone = False
        self.said_by_server: tuple[int, str] | None = None  # in a close frame that nobody here asked for
        self.in_reach = True  # whether the socket can be ended
        self.error: Exception | None = None  # raised by whatever is tried next
        self.faults: list[str] = []  # mistakes of the outbox
        self._busy = False
        self._takes = asyncio.Event()
        self._takes.set()

    @property
    def written(self) -> list[Message]:
        return [message for write in self.writes for message in write]

    @property
    def is_blocked(self) -> bool:
        return not self._takes.is_set()

    def block(self) -> None:
        self._takes.clear()

    def unblock(self) -> None:
        self._takes.set()

    def go(self) -> None:
        """Lose the peer; whoever waits for it learns that."""
        self.gone = True
        self._takes.set()

    # The protocol

    def is_gone(self) -> bool:
        return self.gone

    def closed_by_server(self) -> tuple[int, str] | None:
        return self.said_by_server

    def is_writable(self) -> bool:
        return False

    def write_now(self, messages: Batch) -> bool:
        return False

    async def write(self, messages: Batch) -> None:
        self.handed += messages
        await self._wait(messages)
        self._deliver(messages)

    async def close(self, close: object) -> None:
        await self._wait([])
        if self.closes:
            self.faults.append("a second close frame")
        self.closes.append(close)

    def can_abort(self) -> bool:
        return self.in_reach

    def abort(self) -> None:
        if self.in_reach:
            self.aborts += 1
            self.held = 0

    def buffered(self) -> int:
        return self.held

    def is_closing(self) -> bool:
        return self.gone

    def has_left(self) -> bool:
        return self.aborts > 0 or ((self.gone or bool(self.closes)) and not self.held)

    def taken(self) -> int:
        return sum(message.size for message in self.written) - self.held

    async def _wait(self, messages: Iterable[Message]) -> None:
        if self._busy:
            self.faults.append("two writes at once")
        self._busy = True
        self.in_flight = list(messages)
        try:
            await self._takes.wait()
            self._fail()
        finally:
            self.in_flight = []
            self._busy = False

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error
        if self.gone:
            raise ConnectionResetError("the peer is gone")

    def _deliver(self, messages: Batch) -> None:
        if not messages:
            self.faults.append("an empty write")
        if self.closes:
            self.faults.append("a write behind the close frame")
        self.writes.append(list(messages))


class WaitingWire(FakeWire):
    """Like ASGI's: every write may wait."""


class ImmediateWire(FakeWire):
    """Like uvicorn's: writes at once until the transport's buffer is full, which `room` says (None: never)."""

    batch_bytes = 64

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.room = room

    def is_writable(self) -> bool:
        return not self.is_blocked

    def write_now(self, messages: Batch) -> bool:
        if self.gone:
            raise ConnectionResetError("the peer is gone")
        if self.is_blocked or (messages.size > self.batch_bytes and len(messages) > 1):
            return False
        self.handed += messages
        if self.error is not None:
            raise self.error
        self._deliver(messages)
        return True

    def _deliver(self, messages: Batch) -> None:
        super()._deliver(messages)
        if self.room is not None:
            self.room -= sum(message.size for message in messages)
            if self.room <= 0:
                self.room = None
                self.block()


WIRES = [ImmediateWire, WaitingWire]


class Desk:
    """An outbox with everything around it, and what it reported."""

    def __init__(self, **limits: object) -> None:
        self.settings = RoomsSettings(**limits)
        self.counters = Counters()
        self.ended: list[Outbox] = []
        self.stalled: list[Outbox] = []
        self.left: list[Outbox] = []
        self.failed: list[tuple[Outbox, BaseException]] = []
        self.flusher = Flusher(self.settings, self.on_stall, self.left.append, self.on_failed)

    def on_stall(self, outbox: Outbox) -> None:
        self.stalled.append(outbox)
        outbox.abort()

    def on_failed(self, outbox: Outbox, error: BaseException) -> None:
        self.failed.append((outbox, error))

    def outbox(self, wire: FakeWire | None = None) -> Outbox:
        outbox = Outbox(Connection(None), self.settings, self.counters, self.flusher, self.ended.append)
        if wire is not None:
            outbox.open(wire)
            self.flusher.watch(outbox)
        return outbox


class FakeTransport:
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.held = 0
        self.closing = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.held


class Peer:
    """The far end of a WebSocket in memory, and the server in between: `websocket` is what an app gets."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []  # what the app sent
        self.accepts = asyncio.Event()  # cleared: the handshake hangs
        self.accepts.set()
        self.reads = asyncio.Event()  # cleared: the peer takes nothing
        self.reads.set()
        self.accept_error: Exception | None = None
        self.send_error: Exception | None = None
        self.transport = FakeTransport()
        self._incoming: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "subprotocols": []}
        self.websocket = WebSocket(scope, self._receive, self._send)

    @property
    def texts(self) -> list[object]:
        return [event["text"] for event in self.events if "text" in event]

    @property
    def close_codes(self) -> list[object]:
        return [event["code"] for event in self.events if event["type"] == "websocket.close"]

    def say(self, message: str | bytes) -> None:
        kind = "text" if isinstance(message, str) else "bytes"
        self._incoming.put_nowait({"type": "websocket.receive", kind: message})

    def go(self, code: int = 1005) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": code})

    async def _receive(self) -> dict[str, object]:
        return await self._incoming.get()

    async def _send(self, event: dict[str, object]) -> None:
        if event["type"] == "websocket.accept":
            await self.accepts.wait()
            if self.accept_error is not None:
                raise self.accept_error
        else:
            await self.reads.wait()
            if self.send_error is not None:
                raise self.send_error
        self.events.append(event)


async def connected(
    manager: ConnectionManager, room: str | None = None, user_id: str | None = None
) -> tuple[Peer, Connection]:
    """Connect a new peer; return it without the events of its handshake."""
    peer = Peer()
    connection = await manager.connect(peer.websocket, room, user_id)
    peer.events.clear()
    return peer, connection


async def texts(*peers: Peer) -> list[list[object]]:
    """Return what each peer has got, once the outboxes were flushed."""
    await settled()
    return [peer.texts for peer in peers]


def is_empty(manager: ConnectionManager) -> bool:
    """Return whether nothing is left of anybody."""
    lifecycle = manager._parts.lifecycle
    return not (lifecycle.opening or len(lifecycle.timekeeper) or any(vars(manager._registry).values()))
