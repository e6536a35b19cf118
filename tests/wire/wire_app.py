"""An app in which the manager and the app itself send to the same sockets."""

import asyncio
import contextlib
import random
import string

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from strict_client import StrictClient
from support import until

from fastapi_rooms import ConnectionManager, RoomsSettings

NOISE = random.Random(7692).randbytes(100_000)
WORDS = "".join(random.Random(6455).choices(string.ascii_letters, k=100_000))


class Stage:
    """An endpoint that echoes by itself what its client says; everything else is up to the test."""

    def __init__(self, **limits):
        self.manager = ConnectionManager(RoomsSettings(**limits))
        self.sockets: list[WebSocket] = []  # first come first
        self.app = FastAPI()
        self.app.add_api_websocket_route("/ws/{room}", self.endpoint)

    async def endpoint(self, websocket: WebSocket) -> None:
        await self.manager.connect(websocket, websocket.path_params["room"])
        self.sockets.append(websocket)
        try:
            # A socket that was closed meanwhile refuses to be sent to.
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                while True:
                    await websocket.send_text("echo " + await websocket.receive_text())
        finally:
            self.manager.disconnect(websocket)

    @contextlib.asynccontextmanager
    async def client(self, server, *args, room="r", **options):
        count = len(self.sockets)
        async with StrictClient.open(server, f"/ws/{room}", *args, **options) as client:
            await until(lambda: len(self.sockets) > count)
            yield client


def labelled(stream, number, size=0):
    """A text that says where it belongs."""
    return f"{stream} {number} " + WORDS[:size]


def numbers(client, stream):
    """The numbers of one stream, as they came."""
    texts = [text if isinstance(text, str) else text.decode("latin-1") for text in client.of("text", "bytes")]
    return [int(text.split(maxsplit=2)[1]) for text in texts if text.startswith(stream)]


async def flushed():
    """Let what was offered leave, as far as the client takes it."""
    await ticks(3)


async def ticks(count):
    for _ in range(count):
        await asyncio.sleep(0)
