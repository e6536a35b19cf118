"""Why a client is not let in, or not into a room, and what it is told."""

from enum import StrEnum
from typing import NamedTuple

from fastapi_rooms.domain.close_codes import CloseCode


class Refusal(StrEnum):
    """Reasons to refuse a handshake or a join."""

    HTTP_ORIGIN = "http_origin"
    """The page that opened the WebSocket is of a foreign HTTP origin, or did not say of which it is."""
    DRAINING = "draining"
    """The node is being stopped."""
    MAX_CONNECTIONS = "max_connections"
    """The node has as many connections as it may."""
    MAX_CONNECTIONS_PER_USER = "max_connections_per_user"
    """The user has as many connections on this node as may be."""
    MAX_CONNECTIONS_PER_ADDRESS = "max_connections_per_address"
    """As many connections come from that address as may be."""
    CREDENTIALS = "credentials"
    """A ticket or a token that is none, or is missing."""
    EXPIRED = "expired"
    """The credentials have expired already."""
    LIMITER = "limiter"
    """The app's own `limiter` said no."""
    INVALID_NAME = "invalid_name"
    """The room or the user cannot be called that."""
    JOIN = "join"
    """The app's `authorize_join` said no."""
    APP = "app"
    """A dependency of the app raised an `HTTPException` before accept."""
    PARAMETERS = "parameters"
    """A parameter of the path, the query, a header or a cookie was missing or not valid."""
    MAX_ROOMS = "max_rooms_per_connection"
    """The connection is in as many rooms as it may be."""


class Answer(NamedTuple):
    """What a refused client is told."""

    status: int
    """The HTTP status, where the handshake is not answered yet."""
    close_code: CloseCode
    """The close code, where the app has accepted the WebSocket itself."""
    detail: str
    """One sentence."""


HANDSHAKE_ANSWERS = {
    Refusal.HTTP_ORIGIN: Answer(
        403, CloseCode.POLICY_VIOLATION, "Connections from this HTTP origin, or from none, are refused."
    ),
    Refusal.DRAINING: Answer(503, CloseCode.SERVICE_RESTART, "The server restarts."),
    Refusal.MAX_CONNECTIONS: Answer(503, CloseCode.TRY_AGAIN_LATER, "The server has too many connections."),
    Refusal.MAX_CONNECTIONS_PER_USER: Answer(429, CloseCode.TRY_AGAIN_LATER, "Too many connections of this user."),
    Refusal.MAX_CONNECTIONS_PER_ADDRESS: Answer(429, CloseCode.TRY_AGAIN_LATER, "Too many connections from here."),
    Refusal.CREDENTIALS: Answer(401, CloseCode.POLICY_VIOLATION, "Valid credentials are needed."),
    Refusal.EXPIRED: Answer(401, CloseCode.LOGIN_EXPIRED, "The login has expired."),
    Refusal.LIMITER: Answer(429, CloseCode.TRY_AGAIN_LATER, "Too many requests."),
    Refusal.INVALID_NAME: Answer(400, CloseCode.POLICY_VIOLATION, "A room or a user cannot be called that."),
    Refusal.JOIN: Answer(403, CloseCode.POLICY_VIOLATION, "This room may not be joined."),
}
"""What a client is told whose handshake is refused, but by the app or FastAPI, who have answers of their own."""

_UNAUTHORIZED, _FORBIDDEN = 401, 403
_LATER = frozenset({408, 425, 429, 502, 503, 504})
_CLIENT_ERRORS, _SERVER_ERRORS = range(400, 500), range(500, 600)


def close_code_of(status: int, reason: Refusal | None = None) -> CloseCode | None:
    """Return the close code that says the same as an HTTP status; None if no handshake is accepted to say that.

    A 403 never is: it refuses foreign pages, ours or one that the app looks at itself, and they would see an open
    socket.

    Args:
        status: What the client would be answered.
        reason: Why, where it is one of ours: a drain is told from a node that is full.
    """
    if reason is Refusal.DRAINING:
        return CloseCode.SERVICE_RESTART
    if status == _UNAUTHORIZED:
        return CloseCode.LOGIN_EXPIRED
    if status in _LATER:
        return CloseCode.TRY_AGAIN_LATER
    if status in _SERVER_ERRORS:
        return CloseCode.INTERNAL_ERROR
    return CloseCode.POLICY_VIOLATION if status in _CLIENT_ERRORS and status != _FORBIDDEN else None
