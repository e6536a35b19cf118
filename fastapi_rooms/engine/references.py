"""Whom an app means: a connection, its WebSocket or its id."""

from collections.abc import Iterable
from typing import Final

from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import NotConnectedError
from fastapi_rooms.domain.registry import Registry

Reference = WebSocket | Connection | str
"""Who is meant: a Connection, its WebSocket, or its `connection_id`."""

Excluded = Reference | Iterable[Reference]
"""Who is left out: one or many."""

NOBODY: Final[frozenset[str]] = frozenset()
"""Nobody is left out."""

SCOPE_KEY = "fastapi_rooms.connection"
"""Where the Connection of a WebSocket lies in its ASGI scope; None once it was forgotten."""


def connection_of(websocket: WebSocket) -> Connection:
    """Return the Connection of a WebSocket; made at the first call, before or at connect.

    Raises:
        NotConnectedError: The manager was told to forget it.
    """
    if SCOPE_KEY not in websocket.scope:
        websocket.scope[SCOPE_KEY] = Connection(websocket)
    connection: Connection | None = websocket.scope[SCOPE_KEY]
    if connection is None:
        raise NotConnectedError("this WebSocket has ended: a client that comes again is a new WebSocket")
    return connection


def meant(target: Reference, registry: Registry) -> Connection | None:
    """Return the connection that is meant, registered or not; None if nobody knows it (any more)."""
    if isinstance(target, str):
        return registry.find(target)
    found: Connection | None = target if isinstance(target, Connection) else target.scope.get(SCOPE_KEY)
    return found


def find(target: Reference, registry: Registry) -> Connection | None:
    """Return the registered connection that is meant."""
    connection = meant(target, registry)
    return connection if connection is not None and connection in registry else None


def ids(excluded: Excluded) -> frozenset[str]:
    """Return the connection ids of one or many targets."""
    if not excluded:
        return NOBODY
    if isinstance(excluded, WebSocket | str | Connection):  # a WebSocket is a mapping, and so an iterable of its own
        excluded = (excluded,)
    return frozenset(found for one in excluded if (found := _id(one)) is not None)


def _id(target: Reference) -> str | None:
    if isinstance(target, str):
        return target
    if isinstance(target, Connection):
        return target.connection_id
    if target.scope.get(SCOPE_KEY, target) is None:
        return None  # it was forgotten
    return connection_of(target).connection_id  # made here, if it is to be connected only later
