"""What comes before everything else of a route: refusing who may not connect at all."""

from starlette.websockets import WebSocket

from fastapi_rooms.engine.references import connection_of
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.dependencies import get_manager
from fastapi_rooms.web.refused_by_app import note_answers


async def check_handshake(websocket: WebSocket) -> None:
    """Refuse foreign HTTP origins, and everybody while the node is being stopped.

    `ConnectionManager.connect` does so, too, and `ws_route` first of all. A dependency for WebSocket routes of your
    own that ask a database before they connect.

    Raises:
        HandshakeRefused: It is refused: an HTTP status, since nothing was accepted.
        WebSocketException: It is refused, but the app has accepted it.
        ConfigurationError: No extension is attached, or its lifespan has not started.
    """
    note_answers(websocket)
    # It finds the manager by itself, since FastAPI solves a dependency anew wherever it is named. One that a test puts
    # in its place is left to `connect`.
    if get_manager not in getattr(websocket.scope.get("app"), "dependency_overrides", ()):
        sessions_of(await get_manager(websocket)).check_handshake(websocket)
    connection_of(websocket)  # made before anybody looks at credentials: it counts when somebody is closed meanwhile
