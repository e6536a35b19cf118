"""One server for many apps, and the example that the README and the tests share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import pytest
from fastapi import FastAPI
from support import DEADLINE, LiveServer, until
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from fastapi_rooms import RoomsExtension

FASTAPI = tuple(int(part) for part in version("fastapi").split(".")[:2])
"""The version that is installed, for what FastAPI itself learned later than the oldest we support."""

EXAMPLE = """\
from typing import Annotated, Literal
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel
from fastapi_rooms import Connection, ConnectionManager, Incoming, RoomsExtension, current_connection, get_manager, ws_route

rooms = RoomsExtension()
router = APIRouter()

class Say(BaseModel):
    type: Literal["say"]
    text: str

@ws_route(router, "/ws/{room_id}", room="{room_id}", user_id=authenticated_user)      # any dependency that returns a str
async def chat(
    room_id: str,
    message: Incoming[Say],
    connection: Annotated[Connection, Depends(current_connection)],
    manager: Annotated[ConnectionManager, Depends(get_manager)],
) -> None:
    await manager.broadcast_to_room(room_id, message, exclude={connection.connection_id})

@router.post("/announce")
async def announce(text: str, manager: Annotated[ConnectionManager, Depends(get_manager)]) -> int:
    return await manager.broadcast(text)

app = FastAPI(lifespan=rooms.lifespan)
app.include_router(router)
"""  # noqa: E501 - exactly as users are shown it


class Stage:
    """A real uvicorn that stays up while one app after the other plays on it.

    Starting a server for each test would take most of the time. The lifespan of the app runs around each play, and its
    state goes into the scopes, as uvicorn does it.
    """

    def __init__(self, loop: str) -> None:
        self._app: Any = None  # None: nobody plays
        self._state: dict[str, Any] = {}
        self._end: asyncio.Event | None = None  # ends the play; belongs to the server's loop
        self.server = LiveServer(self._serve, loop, lifespan="off", interface="asgi3").start()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = self._state.copy()
        await self._app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def plays(self, show: FastAPI | RoomsExtension) -> AsyncIterator[LiveServer]:
        """Put an app on; at the end wait until the last of its connections has been served to the end."""
        self._app = app = smallest_app(show) if isinstance(show, RoomsExtension) else show
        lifespan = self.server.call(self._run_lifespan, app)
        try:
            await until(lambda: self._end is not None or lifespan.done(), "the app starts")
            if self._end is None:
                await lifespan
            yield self.server
            await until(lambda: not self.server.uvicorn.server_state.tasks, "every connection is served to its end")
        finally:
            for left_by_a_failed_test in list(self.server.uvicorn.server_state.tasks):
                await self.server.call(left_by_a_failed_test.cancel)
            await self.end_lifespan()
            await asyncio.wait_for(lifespan, DEADLINE)
            self._app = None
        assert not [name for name in self.server.tasks() if name.startswith("fastapi_rooms")]

    async def end_lifespan(self) -> None:
        """End the app's lifespan while its clients are connected, as servers do that do not close them first."""
        if self._end is not None:
            await self.server.call(self._end.set)
            await until(lambda: self._end is None)

    async def _run_lifespan(self, app: FastAPI) -> None:
        async with app.router.lifespan_context(app) as state:
            self._state = dict(state or {})
            self._end = end = asyncio.Event()
            await end.wait()
        self._end = None


def smallest_app(rooms: RoomsExtension) -> FastAPI:
    app = FastAPI()
    app.include_router(rooms.router)
    return app


async def refused(server: LiveServer, path: str, **options: Any) -> Response:
    """Knock, be refused before accept, and return the HTTP response."""
    with pytest.raises(InvalidStatus) as refusal:
        async with server.client(path, **options):
            pass
    return refusal.value.response
