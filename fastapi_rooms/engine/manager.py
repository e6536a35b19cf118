"""The manager of one node: what an app calls."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from starlette.websockets import WebSocket

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.envelope import EVERYBODY, Target, connection_target, room_target, user_target
from fastapi_rooms.domain.messages import Close, Message, MessageType, encode
from fastapi_rooms.domain.revocation import Revocation
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.engine.admission.admission import AuthorizeJoin, Limiter
from fastapi_rooms.engine.deprecated import DeprecatedNames
from fastapi_rooms.engine.endings.timekeeper import Expiry, as_datetime
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.inbound.handshake import accept
from fastapi_rooms.engine.many_nodes import ONE_NODE, ManyNodes
from fastapi_rooms.engine.parts import Parts
from fastapi_rooms.engine.references import NOBODY, Excluded, LeftOut, Reference, ids, is_id, left_out, meant
from fastapi_rooms.engine.sessions import Sessions
from fastapi_rooms.engine.users import Users


class ConnectionManager(DeprecatedNames):
    """Connections, rooms and users of one node, and the way to reach them.

    Usable alone at module level: nothing is bound to an event loop before the first connection.

    **Delivery** is at most once. A message is handed to the outbox of each recipient and written at the end of the
    current tick of the event loop; the returned numbers say to how many connections it was handed. A dead or slow peer
    never raises and never delays the others: what happens to it is decided by `RoomsSettings`.

    **Order** per connection is the order of the calls, whatever mix of rooms, users and broadcasts.

    **Cancellation**: the methods that wait for something that can be slow are `connect`, `join_room` where the app is
    asked, `drain` and `stop`; each of the others has had its effect once it is called.

    Not thread-safe: call it on the event loop that serves the connections. On another one, and so by `asyncio.run` in a
    thread, each method that does something raises `ConfigurationError`. When its loop has ended it may go on on a
    second one.

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
        self._parts = parts = Parts(settings, authorize_join, limiter, hooks, self._many_nodes())
        self.settings = parts.settings
        self._registry = parts.registry
        self._reach = parts.delivery.reach
        self._sessions = Sessions(self, parts)
        self._find = parts.find
        self._home = parts.home  # its lock is held while it starts or stops

    def __repr__(self) -> str:
        return f"<{type(self).__name__} connections={self.active_connections} rooms={len(self._registry.rooms())}>"

    # Queries

    @property
    def active_connections(self) -> int:
        """How many connections are open on this node."""
        return len(self._registry) - len(self._parts.lifecycle.opening)

    @property
    def active_rooms(self) -> list[str]:
        """The rooms that have members on this node."""
        return self._parts.lifecycle.visible_rooms()

    @property
    def is_draining(self) -> bool:
        """Whether this node refuses new connections, since it is being stopped."""
        return self._parts.drain.is_on

    @property
    def users(self) -> Users:
        """What concerns all connections of a user at once: rooms that they join and leave."""
        return self._parts.users

    def stats(self) -> Stats:
        """Return how this node is doing, in one snapshot. Takes about 0.2 ms per thousand connections."""
        return self._parts.stats()

    def get_room_members(self, room: str) -> list[Connection]:
        """Return the members of a room on this node, first come first."""
        return self._parts.lifecycle.visible(self._registry.members(room))

    def get_user_connections(self, user_id: str) -> list[Connection]:
        """Return the connections of a user on this node, first come first."""
        return self._parts.lifecycle.visible(self._registry.of_user(user_id))

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
            ConfigurationError: Another manager holds the socket, or it is open as somebody else.
            NotConnectedError: The socket has ended.
            Exception: Whatever the server raises when the client went during the handshake.
        """
        self._home.settle()
        expires = as_datetime(expires_at)
        answer = partial(accept, websocket, subprotocol, headers)
        connection, is_new = await self._parts.entrance.connect(
            self, websocket, room, user_id, metadata, expires, authorize_join, answer
        )
        if room is not None and not is_new:
            await self.join_room(connection, room)
        return connection

    def disconnect(self, websocket: Reference) -> Connection | None:
        """Forget a connection at once; None if it is not known (any more). Idempotent; does not close the socket.

        The Connection keeps the `rooms` it was in, so that they can be told.
        """
        self._home.check()
        connection = meant(websocket, self._registry)
        return None if connection is None else self._parts.entrance.forget(connection, self)

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
        return await self._parts.membership.join(self._find(websocket), room, authorize=authorize)

    async def leave_room(self, websocket: Reference, room: str) -> bool:
        """End a membership; False if there was none."""
        return self._parts.membership.leave(self._find(websocket), room)

    async def refresh(self, connection: Reference, expires_at: Expiry | None) -> bool:
        """Let the credentials of a connection expire at another time; False if it is not open (any more).

        Args:
            connection: The connection.
            expires_at: A `datetime` with its zone, or seconds since the epoch; None: never.

        Raises:
            ConfigurationError: The time has no zone.
        """
        return self._parts.lifecycle.refresh(self._find(connection), as_datetime(expires_at))

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
            return is_id(websocket) and await self._send(connection_target(websocket), encoded) == 1
        connection = self._find(websocket)
        return connection is not None and await self._parts.delivery.send_here((connection._outbox,), encoded) == 1

    async def send_to_user(self, user_id: str, message: Any, message_type: MessageType | str | None = None) -> int:
        """Send to all connections of a user.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(user_target(user_id), encode(message, message_type))

    async def broadcast(
        self,
        message: Any,
        message_type: MessageType | str | None = None,
        exclude: Excluded = (),
        *,
        exclude_user: str | None = None,
    ) -> int:
        """Send to everybody, but for connections that are left out, or a user with all connections.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
            InvalidName: No user can be called that.
        """
        return await self._send(EVERYBODY, encode(message, message_type), left_out(exclude, exclude_user))

    async def broadcast_to_room(
        self,
        room: str,
        message: Any,
        message_type: MessageType | str | None = None,
        exclude: Excluded = (),
        *,
        exclude_user: str | None = None,
    ) -> int:
        """Send to the members of a room, 0 if there is no such room. Leaves out whom `broadcast` does.

        Raises:
            MessageError: The message cannot be encoded; nobody was sent anything.
        """
        return await self._send(room_target(room), encode(message, message_type), left_out(exclude, exclude_user))

    # Closing

    async def close(self, target: Reference, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close a connection with a close frame that follows what was sent before.

        It is out of its rooms at once. Returns without waiting for the peer; one that takes nothing for `send_timeout`
        is aborted. Unknown targets are ignored. An endpoint of your own that returns now also waits for
        `Connection.wait_until_closed`: the server hangs up when it has returned.

        Raises:
            ConfigurationError: The code may not be sent.
        """
        close = Close(code, reason)
        if not isinstance(target, str):
            if (connection := self._find(target)) is not None:
                await self._parts.delivery.send_here((connection._outbox,), close)
        elif is_id(target):
            await self._send(connection_target(target), close)

    async def close_user(
        self, user_id: str, code: int = CloseCode.NORMAL, reason: str = "", exclude: Excluded = ()
    ) -> int:
        """Close all connections of a user but those that are left out; return how many. See `close`.

        A handshake that began before is refused with 401, also if its credentials were good when they were checked. On
        many nodes it is also kept for `revocation_seconds`, so that a node that was cut off closes them when it is
        back. Whom `exclude` leaves out is spared all of that, also during the handshake, unless the user is closed
        without it, too.
        """
        self._home.check()
        target, close = user_target(user_id), Close(code, reason)
        return await self._close_user(target, close, self._parts.revoked.note(user_id, close, ids(exclude)))

    async def close_room(self, room: str, code: int = CloseCode.NORMAL, reason: str = "") -> int:
        """Close all members of a room; return how many. See `close`."""
        return await self._send(room_target(room), Close(code, reason))

    # Lifecycle

    async def start(self, *, required: bool = False) -> None:  # noqa: ARG002 - one node needs nothing
        """Make ready. One node has nothing to prepare but its measuring; a manager of many nodes has. See there.

        From now on OpenTelemetry is told how the node is doing, if it is set up. Idempotent.

        Args:
            required: Fail if what is needed is not there, where the manager could begin without it.
        """
        async with self._home.settle():
            self._home.settle()  # a stop that this has waited for has left it
            await self._parts.drain.resume()  # after a stop which was cancelled
            self._parts.delivery.start_telemetry(self.stats)

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
        self._home.check()
        await self._parts.drain.run(seconds)

    async def stop(self) -> None:
        """Close what is left with 1012 and end everything that runs. Can be used again afterwards.

        Returns when all outboxes are written and closed, or after `send_timeout`; then the rest is aborted. Hooks that
        are `async` have `disconnect_grace` to finish. New connections are refused until then. Cancelled, it is half
        done: call it again.
        """
        async with self._home.settle():
            await self._parts.end_everybody()
            await self._parts.end_what_runs()
            self._home.leave()

    async def _send(self, target: Target, content: Message | Close, out: LeftOut = NOBODY) -> int:
        """Send to a target, wherever it is; return how many connections of this node it reached. A seam."""
        self._home.check()
        reached = self._reach(target, content, out)
        if reached and isinstance(content, Close):
            await asyncio.sleep(0)  # the close frames of those who are not behind go out now
        return reached

    def _many_nodes(self) -> ManyNodes:
        """Return how this node stands to the others. A seam, asked once."""
        return ONE_NODE

    async def _close_user(self, target: Target, close: Close, revocation: Revocation) -> int:
        """Close the connections of a user. A seam: one node has nobody for whom to keep it."""
        return await self._send(target, close, LeftOut(revocation.excluded))
