"""The manager of one node: what an app calls."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar, overload

from starlette.websockets import WebSocket

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Phase, Verdict
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.errors import ConfigurationError, NotConnectedError
from fastapi_rooms.domain.incoming import Decoder, decoder_for
from fastapi_rooms.domain.messages import Close, Message, MessageType, encode
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.flusher import Flusher, end_tasks
from fastapi_rooms.engine.handshake import accept
from fastapi_rooms.engine.outbox import ENDED, Outbox
from fastapi_rooms.engine.reader import Reader
from fastapi_rooms.engine.received import Received
from fastapi_rooms.engine.targets import SCOPE_KEY, Excluded, Target, connection_of, ids
from fastapi_rooms.engine.wires import choose_wire

logger = logging.getLogger("fastapi_rooms")

T = TypeVar("T")


class ConnectionManager:
    """Connections, rooms and users of one node, and the way to reach them.

    Usable alone at module level: nothing is bound to an event loop before the first connection.

    **Delivery** is at most once. A message is handed to the outbox of each recipient and written at the end of the
    current tick of the event loop; the returned numbers say to how many connections it was handed. A dead or slow peer
    never raises and never delays the others: what happens to it is decided by `RoomsSettings`.

    **Order** per connection is the order of the calls, whatever mix of rooms, users and broadcasts.

    **Cancellation**: apart from `connect` and `stop`, no method waits for anything that can be slow; once called, its
    effect is complete.

    Not thread-safe: call it from the event loop that serves the connections.
    """

    def __init__(self, settings: RoomsSettings | None = None) -> None:
        if settings is not None and not isinstance(settings, RoomsSettings):
            raise ConfigurationError(
                f"settings takes RoomsSettings, not {type(settings).__name__}: write settings=RoomsSettings(...)"
            )
        self.settings = settings if settings is not None else RoomsSettings()
        self._counters = Counters()
        self._registry = Registry()
        self._opening: dict[Connection, asyncio.Future[None]] = {}  # registered, but the handshake is being answered
        self._flusher = Flusher(self.settings.send_timeout, self._on_stall)
        self._reading: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} connections={self.active_connections} rooms={len(self._registry.rooms())}>"

    # Queries

    @property
    def active_connections(self) -> int:
        """How many connections are open on this node."""
        return len(self._registry) - len(self._opening)

    @property
    def active_rooms(self) -> list[str]:
        """The rooms that have members on this node."""
        if not self._opening:
            return list(self._registry.rooms())
        return [room for room in self._registry.rooms() if self._visible(self._registry.members(room))]

    @property
    def counters(self) -> Counters:
        """What was lost and who was refused since the manager was made: a copy."""
        return replace(self._counters)

    def get_room_members(self, room: str) -> list[Connection]:
        """Return the members of a room on this node, first come first."""
        return self._visible(self._registry.members(room))

    def get_user_connections(self, user_id: str) -> list[Connection]:
        """Return the connections of a user on this node, first come first."""
        return self._visible(self._registry.of_user(user_id))

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

        Raises:
            ConfigurationError: Another manager holds the socket.
            NotConnectedError: The socket has ended.
            Exception: Whatever the server raises when the client went during the handshake.
        """
        connection = connection_of(websocket)
        if connection._owner not in (None, self):
            raise ConfigurationError("this WebSocket is connected to another manager: use one manager for a socket")
        if connection._phase is Phase.NEW:
            connection._user_id = user_id
            connection.metadata.update(metadata or {})
            await self._open(connection, room, lambda: accept(websocket, subprotocol, headers))
            return connection
        if (opening := self._opening.get(connection)) is not None:
            await asyncio.shield(opening)
        if connection._phase is not Phase.OPEN:
            raise NotConnectedError("this WebSocket has ended: a client that comes again is a new WebSocket")
        if room is not None:
            await self.join_room(connection, room)
        return connection

    def disconnect(self, websocket: Target) -> Connection | None:
        """Forget a connection at once; None if it is not known (any more). Idempotent; does not close the socket.

        The Connection keeps the `rooms` it was in, so that they can be told.
        """
        connection = self._meant(websocket)
        if connection is None or connection._owner is not self or connection._phase is Phase.GONE:
            return None
        self._end(connection, Phase.GONE, None)
        # No cycle keeps it, and the server's protocol object with it, until the garbage collector comes.
        connection.websocket.scope[SCOPE_KEY] = None
        connection._reader = None
        return connection

    async def join_room(self, websocket: Target, room: str) -> bool:
        """Make a connection a member of a room; True also if it was one, False if the connection is unknown."""
        connection = self._find(websocket)
        if connection is None:
            return False
        self._registry.join(connection, room)
        return True

    async def leave_room(self, websocket: Target, room: str) -> bool:
        """End a membership; False if there was none."""
        connection = self._find(websocket)
        return connection is not None and self._registry.leave(connection, room) is not None

    # Sending

    async def send_personal(
        self, websocket: Target, message: Any, message_type: MessageType | str | None = None
    ) -> bool:
        """Send to one connection; return whether the message was handed to it.

        Raises:
            MessageError: The message cannot be encoded.
        """
        encoded = encode(message, message_type)
        connection = self._find(websocket)
        return connection is not None and await self._send((connection,), encoded) == 1

    async def send_to_user(self, user_id: str, message: Any, message_type: MessageType | str | None = None) -> int:
        """Send to all connections of a user.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(self._registry.of_user(user_id), encode(message, message_type))

    async def broadcast(
        self, message: Any, message_type: MessageType | str | None = None, exclude: Excluded = ()
    ) -> int:
        """Send to everybody.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(self._registry.all(), encode(message, message_type), exclude)

    async def broadcast_to_room(
        self, room: str, message: Any, message_type: MessageType | str | None = None, exclude: Excluded = ()
    ) -> int:
        """Send to the members of a room, 0 if there is no such room.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(self._registry.members(room), encode(message, message_type), exclude)

    async def caught_up(self, connection: Connection) -> None:
        """Wait while a connection is behind with what was sent to it; for producers that can be slowed down.

        Returns at once if the connection has ended, and ends with it at the latest.
        """
        if connection in self._registry:
            await connection._outbox.wait_for_space()

    # Closing

    async def close(self, target: Target, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close a connection with a close frame that follows what was sent before.

        It is out of its rooms at once. Returns without waiting for the peer; one that takes nothing for `send_timeout`
        is aborted. Unknown targets are ignored.

        Raises:
            ConfigurationError: The code may not be sent.
        """
        close = Close(code, reason)
        connection = self._find(target)
        if connection is not None:
            await self._close_all([connection], close)

    async def close_user(self, user_id: str, code: int = CloseCode.NORMAL, reason: str = "") -> int:
        """Close all connections of a user; return how many. See `close`."""
        return await self._close_all(self._registry.of_user(user_id), Close(code, reason))

    async def close_room(self, room: str, code: int = CloseCode.NORMAL, reason: str = "") -> int:
        """Close all members of a room; return how many. See `close`."""
        return await self._close_all(self._registry.members(room), Close(code, reason))

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
        return Received(connection, reader, decoder_for(message_type), self.settings, self._counters)

    def reader(self, connection: Connection) -> Reader:
        """Return the reader of a connection, made at the first call. Once it reads, nobody else may receive."""
        reader: Reader | None = connection._reader
        if reader is None:
            reader = connection._reader = Reader(connection, self, self.settings, self._counters, self._reading)
            if connection not in self._registry:
                reader.end()
        return reader

    # Lifecycle

    async def stop(self) -> None:
        """Close what is left with 1012 and end everything that runs. Can be used again afterwards.

        Returns when all outboxes are written and closed, or after `send_timeout`; then the rest is aborted.
        """
        await self._close_all(self._registry.all(), Close(CloseCode.SERVICE_RESTART))
        await self._flusher.settle(self.settings.send_timeout)
        await end_tasks(self._reading)

    # Opening and ending

    async def _open(
        self, connection: Connection, room: str | None, answer_handshake: Callable[[], Awaitable[None]]
    ) -> None:
        """Register first, then answer the handshake, so that nothing is missed in between; undone on error."""
        outbox = Outbox(connection, self.settings, self._counters, self._flusher, self._on_end)
        connection._owner, connection._outbox, connection._phase = self, outbox, Phase.OPENING
        self._opening[connection] = asyncio.get_running_loop().create_future()
        self._flusher.watch(outbox)
        self._registry.add(connection)
        if room is not None:
            self._registry.join(connection, room)
        try:
            await answer_handshake()
        except BaseException:
            self._end(connection, Phase.GONE, None)
            outbox.abort()
            raise
        if self._opened(connection):
            connection._phase = Phase.OPEN
            connection.connected_at = datetime.now(UTC)
        outbox.open(choose_wire(connection.websocket, self.settings.wire))

    def _opened(self, connection: Connection) -> bool:
        """End the opening of a connection; False if that has happened, since it was closed meanwhile."""
        opening = self._opening.pop(connection, None)
        if opening is None:
            return False
        opening.set_result(None)
        return True

    def _end(self, connection: Connection, phase: Phase, close: Close | None) -> None:
        """Take a connection out of everything; a close frame follows what was sent, if there is to be one."""
        self._registry.remove(connection)
        self._opened(connection)
        connection._phase = phase
        connection._outbox.close(close)
        self._end_reading(connection, now=phase is Phase.GONE)

    def _end_reading(self, connection: Connection, *, now: bool = True) -> None:
        reader: Reader | None = connection._reader
        if reader is not None:
            reader.end()
            if now:
                reader.stop()

    def _on_end(self, outbox: Outbox) -> None:
        """Nothing can be written any more: the close frame is out, or the peer was found gone."""
        connection = outbox.connection
        connection._outbox = ENDED
        self._flusher.unwatch_if_left(outbox)
        if self._registry.remove(connection) is None:
            self._end_reading(connection)
        else:
            # The peer went. What it sent before is still read and handled; then the reader sees the end by itself.
            connection._phase = Phase.ENDED

    def _on_stall(self, outbox: Outbox) -> None:
        connection = outbox.connection
        self._counters.aborted += 1
        logger.info("%r took nothing for %s s: aborted", connection, self.settings.send_timeout)
        if self._registry.remove(connection) is not None:
            connection._phase = Phase.ENDED
        outbox.abort()

    # Reaching connections

    def _find(self, target: Target) -> Connection | None:
        """Return the registered connection that is meant."""
        connection = self._meant(target)
        return connection if connection is not None and connection in self._registry else None

    def _meant(self, target: Target) -> Connection | None:
        if isinstance(target, str):
            return self._registry.find(target)
        found: Connection | None = target if isinstance(target, Connection) else target.scope.get(SCOPE_KEY)
        return found

    def _visible(self, connections: Collection[Connection]) -> list[Connection]:
        if not self._opening:
            return list(connections)
        return [connection for connection in connections if connection not in self._opening]

    async def _send(self, connections: Collection[Connection], message: Message | Close, exclude: Excluded = ()) -> int:
        excluded = ids(exclude)
        if isinstance(message, Close):
            return await self._close_all([c for c in connections if c.connection_id not in excluded], message)
        return self._fan_out(connections, message, excluded)

    def _fan_out(self, connections: Collection[Connection], message: Message, excluded: frozenset[str]) -> int:
        """Offer a message to all; act on the verdicts afterwards, since that changes the registry."""
        handed = 0
        overflowed: list[Connection] = []
        for connection in connections:
            if excluded and connection.connection_id in excluded:
                continue
            verdict = connection._outbox.offer(message)
            if verdict is Verdict.ACCEPTED:
                handed += 1
            elif verdict is Verdict.OVERFLOW:
                overflowed.append(connection)
        for connection in overflowed:
            self._counters.slow_consumers += 1
            logger.info("%r is a slow consumer: closed with 1013", connection)
            self._end(connection, Phase.ENDED, Close(CloseCode.TRY_AGAIN_LATER, "slow consumer"))
        return handed

    async def _close_all(self, connections: Iterable[Connection], close: Close) -> int:
        closed = list(connections)
        for connection in closed:
            self._end(connection, Phase.ENDED, close)
        if closed:
            await asyncio.sleep(0)  # the close frames of those who are not behind go out now
        return len(closed)
