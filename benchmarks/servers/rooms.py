"""This package as a plain manager, in an endpoint of one's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from benchmarks.servers.options import UNLIMITED, Options
from fastapi_rooms import ConnectionManager, DistributedWebSocketManager, RoomsSettings


def make_app(options: Options) -> FastAPI:
    """Return an app with one endpoint and one manager."""
    settings = RoomsSettings(**UNLIMITED, **options.settings)
    url = options.redis_url
    manager = ConnectionManager(settings) if url is None else DistributedWebSocketManager(url, settings=settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await manager.start(required=True)
        yield
        await manager.stop()

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/ws/{room}")
    async def endpoint(websocket: WebSocket, room: str) -> None:
        await manager.connect(websocket, room)
        try:
            while True:
                await manager.broadcast_to_room(room, await websocket.receive_text())
        except WebSocketDisconnect:
            manager.disconnect(websocket)

    return app
