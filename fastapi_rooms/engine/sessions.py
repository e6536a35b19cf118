"""What connections, and the endpoints of this package, ask of a manager, and an app does not."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.connection import Connection, Outbox, Owner, Phase
from fastapi_rooms.domain.errors import ConnectionEnded, RoomsError
from fastapi_rooms.domain.incoming import Decoder, decoder_for
from fastapi_rooms.domain.limits import RouteLimits
from fastapi_rooms.domain.messages import Close, MessageType, encode
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.engine.inbound.claimed import claim
from fastapi_rooms.engine.inbound.reader import Reader
from fastapi_rooms.engine.inbound.received import Received
from fastapi_rooms.engine.parts import Parts
from fastapi_rooms.engine.references import connection_of

if TYPE_CHECKING:
    from fastapi_rooms.domain.settings import RoomsSettings

T = TypeVar("T")

WRITING_TICKS = 2
"""How long a write through ASGI takes that does not wait: a tick until its task runs, and one until it is done."""


class Sessions:
    """Before a connection: refusing it. While there is one: sending to it alone, reading from it, tasks beside it.

    Args:
        owner: The manager.
        parts: What it is made of.
    """

    def __init__(self, owner: Owner, parts: Parts) -> None:
        self._owner = owner
        self._parts = parts
        self._registry = parts.registry
        self._flusher = parts.flusher
        self._deliver = parts.delivery.deliver
        self._home = parts.home
        self._limited: dict[RouteLimits, RoomsSettings] = {}  # one of each for all connections of a route

    # Before there is a connection

    def limit(self, websocket: WebSocket, limits: RouteLimits) -> None:
        """Let these limits count for a socket that is to be connected, in place of the manager's.

        Raises:
            NotConnectedError: The manager was told to forget it.
        """
        connection = connection_of(websocket)
        if connection._phase is not Phase.NEW:
            return  # connected by somebody else: what was begun with some limits goes on with them
        settings = self._limited.get(limits)
        if settings is None:
            settings = self._limited[limits] = limits.over(self._parts.settings)
        connection._settings = settings

    def check_handshake(self, websocket: WebSocket) -> None:
        """Refuse foreign HTTP origins, and everybody while this node is draining.

        `connect` does so first, and `ws_route` before its dependencies.

        Raises:
            HandshakeRefused: It is refused: an HTTP status, since nothing was accepted.
            WebSocketException: It is refused, but the app has accepted it.
        """
        self._parts.admission.check_handshake(websocket)

    def refuse_credentials(self, websocket: WebSocket, challenge: str) -> NoReturn:
        """Refuse a client that does not prove who it is: 401 before accept, counted, and told to the hook `refused`.

        Args:
            websocket: The socket.
            challenge: What kind of credentials are wanted, for `WWW-Authenticate`.

        Raises:
            HandshakeRefused: Always, unless the app has accepted it.
            WebSocketException: The app has accepted it.
        """
        self._parts.admission.refuse_credentials(websocket, challenge)

    def note_refusal(self, websocket: WebSocket, reason: Refusal) -> None:
        """Count a handshake that somebody else has refused, and tell the hook `refused`."""
        self._parts.admission.note_refusal(websocket, reason)

    @property
    def has_ended(self) -> bool:
        """Whether the app has, so that nobody is let in until the manager is started again."""
        return self._parts.drain.is_shut

    def shut(self) -> None:
        """Let nobody in until the manager is started again."""
        self._parts.drain.shut()

    def report_ended(self) -> None:
        """Log that the server goes on, where somebody asks from outside although the app has ended."""
        self._parts.drain.report_shut()

    def backend_status(self) -> BackendStatus | None:
        """Return whether this node hears the others; None: it has none. `stats` goes through all connections for it."""
        return self._parts.nodes.status()

    def is_revoked(self, user_id: str, since: datetime) -> bool:
        """Return whether a user was closed everywhere since then, as far as this node knows."""
        return self._parts.revoked.is_revoked(user_id, since)

    # Sending

    async def send(self, connection: Connection, message: Any, message_type: MessageType | str | None) -> bool:
        """Send to one connection, no faster than its client takes it. See `Connection.send`."""
        self._home.check()
        encoded = encode(message, message_type)
        outbox = connection._outbox
        if outbox.is_writing:
            await self._wait_for_peer(outbox)
        if connection not in self._registry:
            raise ConnectionEnded(
                f"{connection!r} has ended: there is nobody to send to. If it is not your own, call "
                "manager.send_personal, which returns False then",
                connection,
            )
        if isinstance(encoded, Close):
            return await self._parts.delivery.send_here((outbox,), encoded) == 1
        handed = self._deliver((outbox,), encoded) == 1
        outbox.write_at_once()
        if outbox.is_writing:
            await self._wait_for_peer(outbox)
        elif self._flusher.is_late():
            await asyncio.sleep(0)  # who sends in a loop leaves others their turn
        return handed

    async def _wait_for_peer(self, outbox: Outbox) -> None:
        """Wait until a peer has been written all that waits for it, for `send_timeout` at most."""
        for _ in range(WRITING_TICKS):
            await asyncio.sleep(0)
            if not outbox.is_writing:
                return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._parts.settings.send_timeout):
                await outbox.wait_for_space()

    def start_task(self, connection: Connection, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that ends with a connection. See `Connection.start_task`."""
        try:
            self._home.check()
            if connection not in self._registry:
                raise ConnectionEnded(f"{connection!r} has ended: no task is started for it", connection)
        except RoomsError:
            coroutine.close()  # nobody will await it
            raise
        return self._parts.tasks.start(connection, coroutine)

    # Receiving

    def reader(self, connection: Connection) -> Reader:
        """Return the reader of a connection, made at the first call. Once it reads, nobody else may receive."""
        reader: Reader | None = connection._reader
        if reader is None:
            readers, settings = self._parts.readers, connection._settings
            if settings is not None:
                readers = readers.like(settings)
            reader = connection._reader = Reader(connection, self._owner, readers)
            claim(connection.websocket)
            if connection not in self._registry or connection.websocket.client_state is WebSocketState.DISCONNECTED:
                reader.end()  # nothing will come, and no server says so twice
        return reader

    def messages(self, connection: Connection, message_type: Any) -> AsyncIterator[Any]:
        """Iterate over what a client sends, read by a task of its own. See `Connection.messages`."""
        self._home.check()
        self.reader(connection).start()
        return self.received(connection, decoder_for(message_type))

    def received(self, connection: Connection, decoder: Decoder) -> Received:
        """Iterate over what a client sends.

        Whoever waits for the next message reads by itself, unless the reader was started, and is to be cancelled when
        the connection ends.
        """
        return Received(connection, self.reader(connection), decoder, self._parts.readers)


class HasSessions(Protocol):
    """A manager."""

    _sessions: Sessions


def sessions_of(manager: HasSessions) -> Sessions:
    """Return what the endpoints of this package ask of a manager."""
    return manager._sessions
