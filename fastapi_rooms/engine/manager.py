"""The manager of one node: what an app calls."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, overload

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Phase
from fastapi_rooms.domain.connection import Outbox as AnyOutbox
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.envelope import EVERYBODY, Target, connection_target, room_target, user_target
from fastapi_rooms.domain.errors import ConfigurationError, NotConnectedError
from fastapi_rooms.domain.incoming import Decoder, decoder_for
from fastapi_rooms.domain.messages import Close, Message, MessageType, encode
from fastapi_rooms.domain.registry import Left, Registry
from fastapi_rooms.domain.revocation import Revocation
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.engine.admission.admission import Admission, AuthorizeJoin, Limiter
from fastapi_rooms.engine.admission.revoked_users import Revocations
from fastapi_rooms.engine.delivery import Delivery
from fastapi_rooms.engine.endings.drain import Drain
from fastapi_rooms.engine.endings.timekeeper import Expiry, as_datetime
from fastapi_rooms.engine.hooks import Announcer, Hooks
from fastapi_rooms.engine.inbound.handshake import accept
from fastapi_rooms.engine.inbound.reader import Reader, Readers
from fastapi_rooms.engine.inbound.received import Received
from fastapi_rooms.engine.lifecycle import Lifecycle, Seams
from fastapi_rooms.engine.references import NOBODY, SCOPE_KEY, Excluded, Reference, connection_of, ids
from fastapi_rooms.tasks import end_tasks
from fastapi_rooms.telemetry.telemetry import Telemetry, start_telemetry

logger = logging.getLogger("fastapi_rooms")

T = TypeVar("T")


class ConnectionManager:
    """Connections, rooms and users of one node, and the way to reach them.

    Usable alone at module level: nothing is bound to an event loop before the first connection.

    **Delivery** is at most once. A message is handed to the outbox of each recipient and written at the end of the
    current tick of the event loop; the returned numbers say to how many connections it was handed. A dead or slow peer
    never raises and never delays the others: what happens to it is decided by `RoomsSettings`.

    **Order** per connection is the order of the calls, whatever mix of rooms, users and broadcasts.

    **Cancellation**: the methods that wait for something that can be slow are `connect`, `join_room` where the app is
    asked, `caught_up`, `closed`, `drain` and `stop`; each of the others has had its effect once it is called.

    Not thread-safe: call it from the event loop that serves the connections.

    Args:
        settings: Limits and policies.
        authorize_join: Asked before a connection joins a room: `(connection, room)`, `async`, or a function that runs
            in a thread. What is false, and any exception, means no.
        limiter: Asked whether a connection may do something, for limits that count on all nodes:
            `(connection, "connect" or "message")`.
        hooks: What the app wants to be told.
    """

    def __init__(
        self,
        settings: RoomsSettings | None = None,
        *,
        authorize_join: AuthorizeJoin | None = None,
        limiter: Limiter | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        if settings is not None and not isinstance(settings, RoomsSettings):
            raise ConfigurationError(
                f"settings takes RoomsSettings, not {type(settings).__name__}: write settings=RoomsSettings(...)"
            )
        if hooks is not None and not isinstance(hooks, Hooks):
            raise ConfigurationError(f"hooks takes Hooks, not {type(hooks).__name__}: write hooks=Hooks(connected=...)")
        self.settings = settings if settings is not None else RoomsSettings()
        self._hooks = hooks if hooks is not None else Hooks()
        self._announcer = Announcer()
        self._counters = Counters()
        self._registry = Registry()
        self._lifecycle = Lifecycle(
            self.settings,
            self._counters,
            self._registry,
            self._hooks,
            self._announcer,
            Seams(self._follow, self._unfollow, self._recheck, self._refuse_stopped),
        )
        self._revocations = Revocations(
            self.settings.revocation_seconds, self.settings.probe_interval, self._registry, self._lifecycle.close
        )
        self._flusher = self._lifecycle.flusher
        delivery = Delivery(self._counters, self._registry, self._lifecycle, self._hooks, self._announcer)
        self._deliver = delivery.deliver
        self._drain = Drain(self.settings, self._counters, self._registry, self._flusher, delivery.close)
        self._admission = Admission(
            self.settings,
            self._counters,
            self._registry,
            self._hooks,
            self._announcer,
            authorize_join,
            limiter,
            self._drain.seconds_left,
        )
        self._readers = Readers(self.settings, self._counters, None if limiter is None else self._admission.ask_limiter)
        self._telemetry: Telemetry | None = None  # from start to stop, if OpenTelemetry is set up by then
        self._lock = asyncio.Lock()  # held while it starts or stops, on `_lock_loop`
        self._lock_loop: asyncio.AbstractEventLoop | None = None  # where it last started or stopped; None: nowhere yet

    def __repr__(self) -> str:
        return f"<{type(self).__name__} connections={self.active_connections} rooms={len(self._registry.rooms())}>"

    # Queries

    @property
    def active_connections(self) -> int:
        """How many connections are open on this node."""
        return len(self._registry) - len(self._lifecycle.opening)

    @property
    def active_rooms(self) -> list[str]:
        """The rooms that have members on this node."""
        if not self._lifecycle.opening:
            return list(self._registry.rooms())
        return [room for room in self._registry.rooms() if self._lifecycle.visible(self._registry.members(room))]

    @property
    def counters(self) -> Counters:
        """What was lost and who was refused since the manager was made: a copy."""
        return self._counters.copy()

    @property
    def is_draining(self) -> bool:
        """Whether this node refuses new connections, since it is being stopped."""
        return self._drain.is_on

    def stats(self) -> Stats:
        """Return how this node is doing, in one snapshot. Takes about 0.2 ms per thousand connections."""
        return Stats.of(self._registry, self._counters, is_draining=self.is_draining, backend=self._backend_status())

    def get_room_members(self, room: str) -> list[Connection]:
        """Return the members of a room on this node, first come first."""
        return self._lifecycle.visible(self._registry.members(room))

    def get_user_connections(self, user_id: str) -> list[Connection]:
        """Return the connections of a user on this node, first come first."""
        return self._lifecycle.visible(self._registry.of_user(user_id))

    # Membership

    async def connect(
        self,
        websocket: WebSocket,
        room: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        expires_at: Expiry | None = None,
        authorize_join: AuthorizeJoin | None = None,
    ) -> Connection:
        """Accept a WebSocket, unless that has happened, and register it.

        Room and user reach it from before the handshake is answered, so a client that is open misses nothing; queries
        show it once the handshake has succeeded. If it fails, or the call is cancelled, nothing is left behind.

        Called again for the same socket, it joins `room` and returns the same Connection, unchanged otherwise.

        Args:
            websocket: The socket.
            room: A room to join.
            user_id: The identity, which may have many connections.
            metadata: The app's own, copied into `Connection.metadata`.
            subprotocol: The subprotocol to accept with.
            headers: Headers to accept with.
            expires_at: When the credentials expire, and the connection is closed with 4401 unless it is refreshed.
            authorize_join: Asked before this connection joins a room, in place of the manager's.

        Raises:
            HandshakeRefused: It may not connect: an HTTP status, since nothing was accepted.
            WebSocketException: It may not connect, but the app has accepted it.
            ConfigurationError: Another manager holds the socket.
            NotConnectedError: The socket has ended.
            Exception: Whatever the server raises when the client went during the handshake.
        """
        connection = connection_of(websocket)
        if connection._owner not in (None, self):
            raise ConfigurationError("this WebSocket is connected to another manager: use one manager for a socket")
        await self._admission.wait_while_asked(connection)
        if connection._phase is Phase.NEW:
            self._admission.check_handshake(websocket)
            connection._user_id = user_id
            connection.metadata.update(metadata or {})
            connection._expires_at = None if expires_at is None else as_datetime(expires_at)
            connection._authorize_join = authorize_join
            self._admission.check_limits(connection)  # before the app is asked, which may cost it something
            await self._admission.check_connect(connection, room)
        if connection._phase is Phase.NEW:  # nobody has forgotten it meanwhile
            self._check_not_revoked(connection)
            address = self._admission.check_limits(connection)
            await self._lifecycle.open(connection, self, room, address, lambda: accept(websocket, subprotocol, headers))
            return connection
        await self._lifecycle.wait_until_opened(connection)
        if connection._phase is not Phase.OPEN:
            raise NotConnectedError("this WebSocket has ended: a client that comes again is a new WebSocket")
        if room is not None:
            await self.join_room(connection, room)
        return connection

    def check_handshake(self, websocket: WebSocket) -> None:
        """Refuse foreign HTTP origins, and everybody while this node is draining.

        `connect` does so first, and `ws_route` before its dependencies. For routes that ask a database before they
        connect.

        Raises:
            HandshakeRefused: It is refused: an HTTP status, since nothing was accepted.
            WebSocketException: It is refused, but the app has accepted it.
        """
        self._admission.check_handshake(websocket)

    def refuse_credentials(self, websocket: WebSocket, challenge: str = "Bearer") -> NoReturn:
        """Refuse a client that does not prove who it is: 401 before accept, counted, and told to the hook `refused`.

        For dependencies. An `HTTPException(401)` does as well, but is not counted, and uvicorn logs an error for it.

        Args:
            websocket: The socket.
            challenge: What kind of credentials are wanted, for `WWW-Authenticate`.

        Raises:
            HandshakeRefused: Always, unless the app has accepted it.
            WebSocketException: The app has accepted it.
        """
        self._admission.refuse_credentials(websocket, challenge)

    def disconnect(self, websocket: Reference) -> Connection | None:
        """Forget a connection at once; None if it is not known (any more). Idempotent; does not close the socket.

        The Connection keeps the `rooms` it was in, so that they can be told.
        """
        connection = self._meant(websocket)
        if connection is not None and connection._phase is Phase.NEW and self._admission.is_asked_about(connection):
            connection._phase = Phase.GONE  # and whoever connects it learns that it has ended
        if connection is None or connection._owner is not self or connection._phase is Phase.GONE:
            return None
        self._lifecycle.end(connection, Phase.GONE, None)
        # No cycle keeps it, and the server's protocol object with it, until the garbage collector comes.
        connection.websocket.scope[SCOPE_KEY] = None
        connection._reader = connection._authorize_join = None
        return connection

    async def join_room(self, websocket: Reference, room: str, *, authorize: bool = True) -> bool:
        """Make a connection a member of a room; True also if it was one, False if the connection is unknown.

        Args:
            websocket: The connection.
            room: The room.
            authorize: Ask `authorize_join` first. False for rooms that the app chooses, and not the client.

        Raises:
            JoinRefused: `authorize_join` said no.
            TooManyRooms: The connection is in `max_rooms_per_connection` rooms.
            InvalidName: A room cannot be called that.
        """
        connection = self._find(websocket)
        self._admission.check_room_name(connection, room)
        target = room_target(room)
        if connection is not None and authorize:
            await self._admission.check_join(connection, room)
        if connection is None or connection not in self._registry:
            return False
        self._admission.check_room_limit(connection, room)
        is_new = room not in connection._rooms
        self._registry.join(connection, room)
        if is_new and connection._is_announced:
            self._announcer.tell(self._hooks.joined, connection, room)
        await self._follow((target,))
        return True

    async def leave_room(self, websocket: Reference, room: str) -> bool:
        """End a membership; False if there was none."""
        connection = self._find(websocket)
        left = self._registry.leave(connection, room) if connection is not None else None
        if connection is None or left is None:
            return False
        if connection._is_announced:
            self._announcer.tell(self._hooks.left, connection, room)
        self._unfollow(left)
        return True

    async def refresh(self, connection: Reference, expires_at: Expiry | None) -> bool:
        """Let the credentials of a connection expire at another time; False if it is not open (any more).

        Args:
            connection: The connection.
            expires_at: A `datetime` with its zone, or seconds since the epoch; None: never.

        Raises:
            ConfigurationError: The time has no zone.
        """
        when = None if expires_at is None else as_datetime(expires_at)
        found = self._find(connection)
        if found is None or not found.is_open:
            return False
        self._lifecycle.timekeeper.expire(found, when)
        return True

    # Sending

    async def send_personal(
        self, websocket: Reference, message: Any, message_type: MessageType | str | None = None
    ) -> bool:
        """Send to one connection; return whether the message was handed to it.

        Raises:
            MessageError: The message cannot be encoded.
        """
        encoded = encode(message, message_type)
        if isinstance(websocket, str):
            return await self._send(connection_target(websocket), encoded) == 1
        connection = self._find(websocket)
        return connection is not None and await self._send_here((connection._outbox,), encoded) == 1

    async def send_to_user(self, user_id: str, message: Any, message_type: MessageType | str | None = None) -> int:
        """Send to all connections of a user.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(user_target(user_id), encode(message, message_type))

    async def broadcast(
        self, message: Any, message_type: MessageType | str | None = None, exclude: Excluded = ()
    ) -> int:
        """Send to everybody.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(EVERYBODY, encode(message, message_type), ids(exclude))

    async def broadcast_to_room(
        self, room: str, message: Any, message_type: MessageType | str | None = None, exclude: Excluded = ()
    ) -> int:
        """Send to the members of a room, 0 if there is no such room.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(room_target(room), encode(message, message_type), ids(exclude))

    async def caught_up(self, connection: Connection) -> None:
        """Wait while a connection is behind with what was sent to it; for producers that can be slowed down.

        Returns at once if the connection has ended, and ends with it at the latest.
        """
        if connection in self._registry:
            await connection._outbox.wait_for_space()

    # Closing

    async def close(self, target: Reference, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close a connection with a close frame that follows what was sent before.

        It is out of its rooms at once. Returns without waiting for the peer; one that takes nothing for `send_timeout`
        is aborted. Unknown targets are ignored. An endpoint of your own that returns now also waits for `closed`: the
        server hangs up when it has returned.

        Raises:
            ConfigurationError: The code may not be sent.
        """
        close = Close(code, reason)
        if isinstance(target, str):
            await self._send(connection_target(target), close)
            return
        connection = self._find(target)
        if connection is not None:
            await self._send_here((connection._outbox,), close)

    async def close_user(self, user_id: str, code: int = CloseCode.NORMAL, reason: str = "") -> int:
        """Close all connections of a user; return how many. See `close`.

        A handshake that began before is refused with 401, also if its credentials were good when they were checked. On
        many nodes it is also kept for `revocation_seconds`, so that a node that was cut off closes them when it is
        back.
        """
        target, close = user_target(user_id), Close(code, reason)
        return await self._close_user(target, close, self._revocations.note(user_id, close))

    async def close_room(self, room: str, code: int = CloseCode.NORMAL, reason: str = "") -> int:
        """Close all members of a room; return how many. See `close`."""
        return await self._send(room_target(room), Close(code, reason))

    async def closed(self, connection: Connection) -> None:
        """Wait until a connection that was closed is done: its close frame is written, or it is gone or aborted."""
        if connection._owner is self:
            await connection._outbox.wait_until_done()

    # Receiving

    @overload
    def messages(self, connection: Connection, message_type: type[T]) -> AsyncIterator[T]: ...

    @overload
    def messages(self, connection: Connection, message_type: Any) -> AsyncIterator[Any]: ...

    def messages(self, connection: Connection, message_type: Any) -> AsyncIterator[Any]:
        """Iterate over what a client sends. See `Connection.messages`.

        Given a decoder in place of a type, whoever waits for the next message reads by itself, and is to be cancelled
        when the connection ends: for `ws_route` alone.
        """
        reader = self.reader(connection)
        if not isinstance(message_type, Decoder):
            reader.start()
        return Received(connection, reader, decoder_for(message_type), self._readers)

    def reader(self, connection: Connection) -> Reader:
        """Return the reader of a connection, made at the first call. Once it reads, nobody else may receive."""
        reader: Reader | None = connection._reader
        if reader is None:
            reader = connection._reader = Reader(connection, self, self._readers)
            if connection not in self._registry or connection.websocket.client_state is WebSocketState.DISCONNECTED:
                reader.end()  # nothing will come, and no server says so twice
        return reader

    # Lifecycle

    async def start(self, *, required: bool = False) -> None:  # noqa: ARG002 - one node needs nothing
        """Make ready. One node has nothing to prepare but its measuring; a manager of many nodes has. See there.

        From now on OpenTelemetry is told how the node is doing, if it is set up. Idempotent.

        Args:
            required: Fail if what is needed is not there, where the manager could begin without it.
        """
        async with self._changing():
            await self._drain.resume()  # after a stop which was cancelled
            self._telemetry = start_telemetry(self.stats, self._telemetry)

    async def drain(self, seconds: float | None = None) -> None:
        """Refuse new connections with 503, and close those that are here with 1012, a few at a time.

        What was sent to them goes out first. Returns when the last one is written and has had half a second to answer,
        and after `seconds` at the latest, or a quarter of a second later where the loop was blocked until then; who has
        not taken everything by then is aborted. Called again meanwhile, it waits for the same end. A server that is
        told to stop does this by itself under uvicorn: see `RoomsExtension`.

        **Cancellation** of the call leaves the drain going on; `stop` ends it.

        Args:
            seconds: Over how long; None: `drain_timeout`, or 10 if there is none.

        Raises:
            ConfigurationError: `seconds` is not above 0, or without end.
        """
        await self._drain.run(seconds)

    async def stop(self) -> None:
        """Close what is left with 1012 and end everything that runs. Can be used again afterwards.

        Returns when all outboxes are written and closed, or after `send_timeout`; then the rest is aborted. Hooks that
        are `async` have `disconnect_grace` to finish. New connections are refused until then. Cancelled, it is half
        done: call it again.
        """
        async with self._changing():
            await self._end_everybody()
            await self._announcer.stop()
            await self._drain.stop()
            self._stop_telemetry()

    def _changing(self) -> asyncio.Lock:
        """Return the lock of this loop, held by who starts or stops: a manager can outlive a loop, a lock cannot."""
        loop = asyncio.get_running_loop()
        if self._lock_loop is not loop:
            self._lock, self._lock_loop = asyncio.Lock(), loop
        return self._lock

    async def _end_everybody(self) -> None:
        await self._drain.interrupt(self.settings.send_timeout)  # who came now would go without a close frame
        left = self._registry.outboxes(EVERYBODY)
        self._counters.restarted += self._deliver(left, Close(CloseCode.SERVICE_RESTART), NOBODY)
        await asyncio.sleep(0)  # the close frames of those who are not behind go out now
        await self._flusher.settle(self.settings.send_timeout)
        await end_tasks(self._readers.tasks)
        await self._announcer.finish(self.settings.disconnect_grace)  # while the other nodes can still be told

    def _stop_telemetry(self) -> None:
        telemetry, self._telemetry = self._telemetry, None
        if telemetry is not None:
            telemetry.stop(self.stats())

    # Reaching connections

    def _check_not_revoked(self, connection: Connection) -> None:
        user_id = connection.user_id
        if user_id is not None and self._revocations.is_revoked(user_id, connection._made_at):
            self.refuse_credentials(connection.websocket)

    def _refuse_stopped(self, connection: Connection) -> NoReturn:
        self._admission.refuse_stopped(connection)

    def _find(self, target: Reference) -> Connection | None:
        """Return the registered connection that is meant."""
        connection = self._meant(target)
        return connection if connection is not None and connection in self._registry else None

    def _meant(self, target: Reference) -> Connection | None:
        if isinstance(target, str):
            return self._registry.find(target)
        found: Connection | None = target if isinstance(target, Connection) else target.scope.get(SCOPE_KEY)
        return found

    async def _send(self, target: Target, content: Message | Close, excluded: frozenset[str] = NOBODY) -> int:
        """Send to a target, wherever it is; return how many connections of this node it reached. A seam."""
        here = self._registry.outboxes(target)
        if self._telemetry is None:
            reached = self._deliver(here, content, excluded)
        else:
            reached = self._telemetry.deliver(self._deliver, target, here, content, excluded)
        if reached and isinstance(content, Close):
            await asyncio.sleep(0)  # the close frames of those who are not behind go out now
        return reached

    async def _send_here(self, outboxes: Collection[AnyOutbox], content: Message | Close) -> int:
        """Send to connections of this node."""
        reached = self._deliver(outboxes, content, NOBODY)
        if reached and isinstance(content, Close):
            await asyncio.sleep(0)  # as in `_send`, which spells this out: it is what a message goes through
        return reached

    # What a manager of many nodes does beside that

    async def _follow(self, targets: Collection[Target]) -> None:
        """Hear other nodes about rooms and users that have connections here. A seam: one node has nobody to hear."""

    def _unfollow(self, left: Left | None) -> None:
        """Stop hearing about what has no connections here any more. A seam."""

    async def _close_user(self, target: Target, close: Close, revocation: Revocation) -> int:  # noqa: ARG002
        """Close the connections of a user. A seam: one node has nobody for whom to keep it."""
        return await self._send(target, close)

    async def _recheck(self, connection: Connection) -> None:
        """Look again, when it is certain that nothing is missed any more, whether a user may come in. A seam.

        Raises:
            HandshakeRefused: The user was closed meanwhile.
        """

    def _backend_status(self) -> BackendStatus | None:
        """Return whether this node hears the others. A seam."""
        return None
