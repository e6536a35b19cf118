"""What a FastAPI app asks for with `Depends()`."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.references import connection_of

STATE_KEY = "rooms"
"""Where the manager lies: `app.state.rooms`, and under this name in the lifespan state."""


def find_manager(connection: HTTPConnection) -> ConnectionManager | None:
    """Return the manager of the app; None if it has none, or its lifespan has not started."""
    # The lifespan state is that of the outermost app. One that is mounted may have an extension of its own.
    manager = getattr(connection.app.state, STATE_KEY, None) if "app" in connection.scope else None
    if manager is None:
        manager = connection.scope.get("state", {}).get(STATE_KEY)
    return manager if isinstance(manager, ConnectionManager) else None


async def get_manager(connection: HTTPConnection) -> ConnectionManager:
    """Return the manager of the app; in HTTP routes, WebSocket routes and mounted sub-apps.

    Raises:
        ConfigurationError: No extension is attached, or its lifespan has not started.
    """
    manager = find_manager(connection)
    if manager is not None:
        return manager
    raise ConfigurationError(
        "this app has no rooms manager. Make a RoomsExtension and attach it to the app:\n\n"
        "    rooms = RoomsExtension()\n"
        "    app = FastAPI(lifespan=rooms.lifespan)\n\n"
        "app.include_router(rooms.router) attaches it, too, and so does `async with rooms.lifespan(app): yield` inside "
        "a lifespan of your own. If it is attached, its lifespan has not run: in tests, use `with TestClient(app) as "
        "client`; a server that runs none (daphne, uvicorn with --lifespan off) cannot serve it"
    )


async def current_connection(connection: HTTPConnection) -> Connection:
    """Return the Connection of this WebSocket.

    In a `ws_route` handler it is accepted. In sub-dependencies, which run before accept, it has its `connection_id`,
    no user yet, and cannot send. Code after a dependency's `yield` runs after the close.

    Raises:
        ConfigurationError: This is an HTTP request, which has no connection.
    """
    if isinstance(connection, WebSocket):
        return connection_of(connection)
    raise ConfigurationError(
        "current_connection was used in an HTTP route, which has no WebSocket connection: use get_manager there, and "
        "reach connections by room, user or connection_id"
    )


ManagerDep = Annotated[ConnectionManager, Depends(get_manager)]
"""The app's manager: `manager: ManagerDep`."""

ConnectionDep = Annotated[Connection, Depends(current_connection)]
"""The connection of this WebSocket: `connection: ConnectionDep`."""
