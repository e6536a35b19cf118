"""What who shows no good credentials is answered."""

from contextlib import suppress
from typing import NoReturn

from fastapi import HTTPException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.dependencies import find_manager


def refuse_credentials(
    connection: HTTPConnection,
    challenge: str = "Bearer",
    detail: str = "Not authenticated.",
    manager: ConnectionManager | None = None,
) -> NoReturn:
    """Refuse a client that does not prove who it is, with 401.

    For dependencies. An `HTTPException(401)` does as well; but a handshake that is refused here is also counted, told
    to the hook `refused`, and does not make uvicorn log an error.

    Args:
        connection: The request, or the WebSocket.
        challenge: What kind of credentials are wanted.
        detail: What a request is told.
        manager: Who counts it; that of the app by default.

    Raises:
        HTTPException: It is a request, or the app has no manager.
        HandshakeRefused: It is a WebSocket that is not accepted yet.
        WebSocketException: It is one that the app has accepted.
    """
    if manager is None:
        with suppress(KeyError):  # in a scope without an app there is none to look in
            manager = find_manager(connection)
    if isinstance(connection, WebSocket) and manager is not None:
        sessions_of(manager).refuse_credentials(connection, challenge)
    raise HTTPException(401, detail, {"WWW-Authenticate": challenge})
