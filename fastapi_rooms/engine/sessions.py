"""What the endpoints of this package ask of a manager, and an app does not."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, NoReturn, Protocol

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.connection import Connection, Owner
from fastapi_rooms.domain.incoming import Decoder
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.engine.admission.admission import Admission
from fastapi_rooms.engine.admission.revoked_users import RevokedUsers
from fastapi_rooms.engine.endings.drain import Drain
from fastapi_rooms.engine.inbound.reader import Reader, Readers
from fastapi_rooms.engine.inbound.received import Received


class Sessions:
    """Before a connection: refusing it. While there is one: reading from it.

    Args:
        owner: The manager.
        registry: Who is connected.
        admission: Who is let in.
        revoked: Who was closed everywhere.
        readers: What the readers of the node share.
        drain: Whether anybody is let in.
    """

    def __init__(
        self,
        owner: Owner,
        registry: Registry,
        admission: Admission,
        revoked: RevokedUsers,
        readers: Readers,
        drain: Drain,
    ) -> None:
        self._owner = owner
        self._registry = registry
        self._admission = admission
        self._revoked = revoked
        self._readers = readers
        self._drain = drain

    @property
    def has_ended(self) -> bool:
        """Whether the app has, so that nobody is let in until the manager is started again."""
        return self._drain.is_shut

    def end(self) -> None:
        """Let nobody in until the manager is started again."""
        self._drain.shut()

    def check_ended(self) -> bool:
        """Return `has_ended` to somebody who asks from outside. That the server goes on is logged."""
        return self._drain.check_shut()

    def check_handshake(self, websocket: WebSocket) -> None:
        """Refuse foreign HTTP origins, and everybody while this node is draining.

        `connect` does so first, and `ws_route` before its dependencies.

        Raises:
            HandshakeRefused: It is refused: an HTTP status, since nothing was accepted.
            WebSocketException: It is refused, but the app has accepted it.
        """
        self._admission.check_handshake(websocket)

    def refuse_credentials(self, websocket: WebSocket, challenge: str) -> NoReturn:
        """Refuse a client that does not prove who it is: 401 before accept, counted, and told to the hook `refused`.

        Args:
            websocket: The socket.
            challenge: What kind of credentials are wanted, for `WWW-Authenticate`.

        Raises:
            HandshakeRefused: Always, unless the app has accepted it.
            WebSocketException: The app has accepted it.
        """
        self._admission.refuse_credentials(websocket, challenge)

    def is_revoked(self, user_id: str, since: datetime) -> bool:
        """Return whether a user was closed everywhere since then, as far as this node knows."""
        return self._revoked.is_revoked(user_id, since)

    def reader(self, connection: Connection) -> Reader:
        """Return the reader of a connection, made at the first call. Once it reads, nobody else may receive."""
        reader: Reader | None = connection._reader
        if reader is None:
            reader = connection._reader = Reader(connection, self._owner, self._readers)
            if connection not in self._registry or connection.websocket.client_state is WebSocketState.DISCONNECTED:
                reader.end()  # nothing will come, and no server says so twice
        return reader

    def received(self, connection: Connection, decoder: Decoder) -> AsyncIterator[Any]:
        """Iterate over what a client sends.

        Whoever waits for the next message reads by itself, unless the reader was started, and is to be cancelled when
        the connection ends.
        """
        return Received(connection, self.reader(connection), decoder, self._readers)


class HasSessions(Protocol):
    """A manager."""

    _sessions: Sessions


def sessions_of(manager: HasSessions) -> Sessions:
    """Return what the endpoints of this package ask of a manager."""
    return manager._sessions
