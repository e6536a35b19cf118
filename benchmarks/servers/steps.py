"""The steps from the plain loop to one write per connection and tick, each as small as it can be.

They show what a step is worth, for docs/why-one-write.md. None of them limits what waits, closes who is slow or
survives an error: they are a measure, not an example.
"""

import asyncio
from collections import defaultdict
from typing import Any

from fastapi import WebSocket
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.client.frames import server_frame
from benchmarks.servers.docs_manager import Fanout, app_of
from benchmarks.servers.options import Options

SERVER_SEND = "benchmarks.server_send"


class Gather(Fanout):
    """All sends at once."""

    async def broadcast(self, room: str, text: str) -> None:
        """Send to all, and wait for the last."""
        sends = (websocket.send_text(text) for websocket in self.rooms[room])
        await asyncio.gather(*sends, return_exceptions=True)


class Queues(Fanout):
    """A queue and a task for each socket."""

    def __init__(self) -> None:
        super().__init__()
        self._queues: dict[WebSocket, asyncio.Queue[str]] = {}
        self._writers: dict[WebSocket, asyncio.Task[None]] = {}

    def add(self, room: str, websocket: WebSocket) -> None:
        """Take a socket in, and start its writer."""
        super().add(room, websocket)
        self._queues[websocket] = queue = asyncio.Queue[str]()
        self._writers[websocket] = asyncio.create_task(_write(websocket, queue))

    def remove(self, room: str, websocket: WebSocket) -> None:
        """Forget a socket, and end its writer."""
        super().remove(room, websocket)
        del self._queues[websocket]
        self._writers.pop(websocket).cancel()

    async def broadcast(self, room: str, text: str) -> None:
        """Put into every queue, and wait for nobody."""
        for websocket in self.rooms[room]:
            self._queues[websocket].put_nowait(text)


async def _write(websocket: WebSocket, queue: asyncio.Queue[str]) -> None:
    while True:
        await websocket.send_text(await queue.get())


class FramesOnce(Fanout):
    """One frame per message, written to every transport."""

    async def broadcast(self, room: str, text: str) -> None:
        """Write the same bytes to all."""
        frame = server_frame(text.encode())
        for websocket in self.rooms[room]:
            _transport(websocket).write(frame)


class OneWrite(Fanout):
    """All frames of a tick joined, and one write of them to every transport."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, list[bytes]] = defaultdict(list)

    async def broadcast(self, room: str, text: str) -> None:
        """Keep the frame until the end of the tick."""
        waiting = self._waiting[room]
        waiting.append(server_frame(text.encode()))
        if len(waiting) == 1:
            asyncio.get_running_loop().call_soon(self._flush, room)

    def _flush(self, room: str) -> None:
        frames = b"".join(self._waiting.pop(room))
        for websocket in self.rooms[room]:
            _transport(websocket).write(frames)


def _transport(websocket: WebSocket) -> Any:
    return websocket.scope[SERVER_SEND].__self__.transport


def _with_server_send(app: ASGIApp) -> ASGIApp:
    """Keep uvicorn's own `send`, which leads to the transport, before FastAPI wraps it."""

    async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SERVER_SEND] = send
        await app(scope, receive, send)

    return outermost


def gather(_: Options) -> ASGIApp:
    """Return the app with `asyncio.gather`."""
    return app_of(Gather())


def queues(_: Options) -> ASGIApp:
    """Return the app with a queue per socket."""
    return app_of(Queues())


def frames_once(_: Options) -> ASGIApp:
    """Return the app that encodes once."""
    return _with_server_send(app_of(FramesOnce()))


def one_write(_: Options) -> ASGIApp:
    """Return the app that writes once per tick."""
    return _with_server_send(app_of(OneWrite()))
