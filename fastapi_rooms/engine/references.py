"""Whom an app means: a connection, its WebSocket or its id."""

import logging
from collections.abc import Iterable
from time import monotonic
from typing import Final, NamedTuple

from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.connection_id import IN_ITS_PLACE, ConnectionId, could_be_id
from fastapi_rooms.domain.errors import NotConnectedError
from fastapi_rooms.domain.names import check_name
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.seldom import Seldom

logger = logging.getLogger("fastapi_rooms")

Reference = WebSocket | Connection | ConnectionId
"""Who is meant: a Connection, its WebSocket, or its `connection_id`."""

Excluded = Reference | Iterable[Reference]
"""Who is left out: one or many."""


class LeftOut(NamedTuple):
    """Who is left out, on every node."""

    ids: frozenset[str] = frozenset()
    user_id: str | None = None
    """With all connections."""

    def here(self, registry: Registry) -> frozenset[str]:
        """Return the ids of all who are left out and are here, and maybe others."""
        if self.user_id is None:
            return self.ids
        return self.ids.union(connection.connection_id for connection in registry.of_user(self.user_id))


NOBODY: Final = LeftOut()
"""Nobody is left out."""

SCOPE_KEY = "fastapi_rooms.connection"
"""Where the Connection of a WebSocket lies in its ASGI scope; None once it was forgotten."""

_mistakes_said = Seldom()


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
        return registry.find(target) if is_id(target) else None
    found: Connection | None = target if isinstance(target, Connection) else target.scope.get(SCOPE_KEY)
    return found


def find(target: Reference, registry: Registry) -> Connection | None:
    """Return the registered connection that is meant."""
    connection = meant(target, registry)
    return connection if connection is not None and connection in registry else None


def is_id(text: str) -> bool:
    """Return whether a text can be a `connection_id`; what cannot is nobody's, and that is logged, once a minute.

    No error: it may have come from a client, which ought not to end anything by it.
    """
    if could_be_id(text):
        return True
    if _mistakes_said.is_due(monotonic()):
        logger.warning("%.60r %s (said once a minute)", text, IN_ITS_PLACE)
    return False


def left_out(excluded: Excluded, user_id: str | None) -> LeftOut:
    """Return who is left out, of one or many targets and a user with all connections.

    Raises:
        ConfigurationError: The user is no str.
        InvalidName: No user can be called that.
    """
    if user_id is None and not excluded:
        return NOBODY
    return LeftOut(ids(excluded), None if user_id is None else check_name("exclude_user", user_id))


def ids(excluded: Excluded) -> frozenset[str]:
    """Return the connection ids of one or many targets."""
    if not excluded:
        return frozenset()
    if isinstance(excluded, WebSocket | str | Connection):  # a WebSocket is a mapping, and so an iterable of its own
        excluded = (excluded,)
    return frozenset(found for one in excluded if (found := _id(one)) is not None)


def _id(target: Reference) -> str | None:
    if isinstance(target, str):
        return target if is_id(target) else None
    if isinstance(target, Connection):
        return target.connection_id
    if target.scope.get(SCOPE_KEY, target) is None:
        return None  # it was forgotten
    return connection_of(target).connection_id  # made here, if it is to be connected only later
