"""What comes before everything else of a route: refusing who may not connect at all."""

from starlette.websockets import WebSocket

from fastapi_rooms.engine.references import connection_of
from fastapi_rooms.web.dependencies import get_manager


async def gate(websocket: WebSocket) -> None:
    """Refuse foreign HTTP origins, and everybody while the node is being stopped.

    `ConnectionManager.connect` does so, too; here nothing was asked of a database or of Redis yet. It finds the manager
    by itself, since FastAPI solves a dependency anew wherever it is named. One that a test puts in its place is left to
    `connect`.

    Raises:
        HandshakeRefused: It is refused.
    """
    if get_manager not in getattr(websocket.scope.get("app"), "dependency_overrides", ()):
        (await get_manager(websocket)).check_handshake(websocket)
    connection_of(websocket)  # made before anybody looks at credentials: it counts when somebody is closed meanwhile
