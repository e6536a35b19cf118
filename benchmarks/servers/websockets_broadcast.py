"""The server of the library `websockets`, with its own `broadcast()`: no FastAPI, no ASGI."""

import asyncio
import socket
from collections import defaultdict

from websockets import ConnectionClosed
from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.servers.options import Options


async def run(listening: socket.socket, options: Options) -> None:
    """Serve until the process ends."""
    rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)

    async def handler(websocket: ServerConnection) -> None:
        if websocket.request is None:
            raise AssertionError("a handler is called after the handshake")
        room = rooms[websocket.request.path]
        room.add(websocket)
        try:
            async for message in websocket:
                broadcast(room, message)
        except ConnectionClosed:
            pass  # a client that says no goodbye, as ours
        finally:
            room.discard(websocket)

    compression = "deflate" if options.deflate else None
    async with serve(handler, sock=listening, compression=compression, backlog=2048):
        await asyncio.get_running_loop().create_future()
