"""Whom an app means: a connection, its WebSocket or its id."""

from collections.abc import Iterable

from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import Connection

Target = WebSocket | Connection | str
"""Who is meant: a Connection, its WebSocket, or its `connection_id`."""

Excluded = str | Connection | Iterable[str | Connection]
"""Who is left out: one or many connections or connection ids."""

SCOPE_KEY = "fastapi_rooms.connection"


def connection_of(websocket: WebSocket) -> Connection:
    """Return the Connection of a WebSocket; made at the first call, before or at connect."""
    connection: Connection | None = websocket.scope.get(SCOPE_KEY)
    if connection is None:
        connection = websocket.scope[SCOPE_KEY] = Connection(websocket)
    return connection


def ids(excluded: Excluded) -> frozenset[str]:
    """Return the connection ids of one or many connections or ids."""
    if not excluded:
        return frozenset()
    if isinstance(excluded, str | Connection):
        excluded = (excluded,)
    return frozenset(one if isinstance(one, str) else one.connection_id for one in excluded)
