"""A connection: one accepted WebSocket on this node, with the identity that the app gave it."""

from collections.abc import AsyncIterator, Callable, Coroutine
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from enum import Enum
from os import urandom
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection_id import ConnectionId
from fastapi_rooms.domain.errors import NotConnectedError
from fastapi_rooms.domain.messages import MessageType

if TYPE_CHECKING:
    from asyncio import Task

    from starlette.websockets import WebSocket

    from fastapi_rooms.domain.messages import Close, Message
    from fastapi_rooms.domain.settings import RoomsSettings

T = TypeVar("T")

_SHORT = Repr()
_SHORT.maxstring = 64  # a log line is no place for a name of 255 bytes


class Phase(Enum):
    """How far a connection has come. It only ever moves down this list."""

    NEW = "new"
    """Made, not accepted; known to nobody but the one who made it."""
    OPENING = "opening"
    """Hears its room and its user already; the handshake is being answered."""
    OPEN = "open"
    """Accepted and registered."""
    ENDED = "ended"
    """Closed by this node, or the peer was found gone. In no room any more; `disconnect` has not been called yet."""
    GONE = "gone"
    """Forgotten."""


class Verdict(Enum):
    """What an outbox answers to an offer."""

    ACCEPTED = "accepted"
    """It will be written, or counted as lost if the peer does not take it."""
    DROPPED = "dropped"
    """The outbox is full and the policy gave up this message."""
    OVERFLOW = "overflow"
    """The outbox is full and the policy gives up the connection."""
    GONE = "gone"
    """The connection has ended."""


SUBPROTOCOL_KEY = "fastapi_rooms.subprotocol"
"""Where the subprotocol to accept with is left in the ASGI scope, by a dependency or a route; None or nothing: none."""


class Outbox(Protocol):
    """What the domain knows of the engine's outbox."""

    connection: "Connection"
    """Whose it is."""

    def offer(self, message: "Message") -> Verdict:
        """Queue a message for the end of this tick."""
        ...

    def queued(self) -> tuple[int, int] | None:
        """Return how many messages wait, and their bytes; None if nothing does."""
        ...

    def close(self, close: "Close | None") -> None:
        """Take no more offers; the frame follows what is queued."""
        ...

    @property
    def is_writing(self) -> bool:
        """Whether a task writes to the peer, since not everything could be written at once."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether more waits than may, so that the next offer costs something."""
        ...

    def write_at_once(self) -> None:
        """Write what was offered now, if nothing waits before it and this is the first write of the tick."""
        ...

    def lose_peer(self) -> None:
        """Write nothing more: the server says that the peer has gone."""
        ...

    def note_close_by_server(self) -> None:
        """Remember that the server has closed the socket by itself, if it has."""
        ...

    async def wait_for_space(self) -> None:
        """Wait while the peer is behind."""
        ...

    async def wait_until_done(self) -> None:
        """Wait until nothing will be written any more."""
        ...


class Talk(Protocol):
    """What a connection asks of those who send to it alone, and read from it."""

    async def send(self, connection: "Connection", message: Any, message_type: MessageType | str | None) -> bool:
        """Send to one connection, no faster than its client takes it."""
        ...

    def messages(self, connection: "Connection", message_type: Any) -> AsyncIterator[Any]:
        """Iterate over what the client sends."""
        ...

    def start_task(self, connection: "Connection", coroutine: Coroutine[Any, Any, T]) -> "Task[T]":
        """Start a task that ends with the connection."""
        ...


class Owner(Protocol):
    """What a connection asks of the manager that holds it."""

    @property
    def _sessions(self) -> Talk:
        """Who sends to a connection alone, and reads from it."""
        ...

    def disconnect(self, websocket: "Connection") -> object:
        """Forget a connection."""
        ...

    async def send_personal(
        self, websocket: "Connection", message: Any, message_type: MessageType | str | None = None
    ) -> bool:
        """Send to one connection."""
        ...

    async def close(self, target: "Connection", code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close a connection."""
        ...


class Connection:
    """One accepted WebSocket on this node. Made by `ConnectionManager.connect`, hashable by identity.

    Attributes:
        websocket: The Starlette WebSocket. Read from it what you like (headers, cookies, state); send and close
            through the connection, so that order is kept and a slow client stalls nobody.
        connected_at: When the connection was accepted, in UTC with its zone.
        metadata: The app's own; never logged, never sent.
    """

    __slots__ = (
        "__weakref__",
        "_authorize_join",
        "_close_code",
        "_close_reason",
        "_connection_id",
        "_expires_at",
        "_is_announced",
        "_made_at",
        "_outbox",
        "_owner",
        "_phase",
        "_reader",
        "_rooms",
        "_settings",
        "_user_id",
        "connected_at",
        "metadata",
        "websocket",
    )

    def __init__(self, websocket: "WebSocket") -> None:
        self.websocket = websocket
        self._connection_id = ConnectionId(urandom(16).hex())
        self._made_at = self.connected_at = datetime.now(UTC)
        self.metadata: dict[str, Any] = {}
        self._user_id: str | None = None  # set by the manager's connect
        self._rooms: set[str] = set()  # written by the registry alone
        self._phase = Phase.NEW  # written by `engine/lifecycle.py` alone
        self._owner: Owner | None = None  # set when it is opened
        self._settings: RoomsSettings | None = None  # of its route, if that has limits of its own
        self._outbox: Outbox  # set when it is opened: every registered connection has one
        self._reader: Any = None  # set by the engine when somebody asks for the messages
        self._authorize_join: Callable[[Connection, str], object] | None = None  # of its route, if that has one
        self._expires_at: datetime | None = None  # written by `connect` and the timekeeper; None: never
        self._is_announced = False  # the app was told that it is connected, and not yet that it is no more
        self._close_code: int | None = None  # set once, by whoever first knows
        self._close_reason = ""

    def __repr__(self) -> str:
        user = f" user={_SHORT.repr(self.user_id)}" if self.user_id is not None else ""
        return f"<Connection {self.connection_id}{user} {self._phase.value} rooms={len(self._rooms)}>"

    @property
    def connection_id(self) -> ConnectionId:
        """The id of this connection, unique across processes."""
        return self._connection_id

    @property
    def user_id(self) -> str | None:
        """The identity that the app gave at connect, or None; it never changes."""
        return self._user_id

    @property
    def rooms(self) -> AbstractSet[str]:
        """The rooms it is in, read-only. Once it has ended: the rooms it was in then, so that they can be told."""
        return frozenset(self._rooms)

    @property
    def expires_at(self) -> datetime | None:
        """When it is closed with 4401, unless `ConnectionManager.refresh` moves that; None: never."""
        return self._expires_at

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was negotiated, None without one. Not known where the app has accepted by itself."""
        chosen: str | None = self.websocket.scope.get(SUBPROTOCOL_KEY)
        return chosen

    @property
    def close_code(self) -> int | None:
        """The close code that ended it: ours, the server's or the client's; 1006: no close frame; None: not known."""
        return self._close_code

    @property
    def close_reason(self) -> str:
        """The reason beside the close code."""
        return self._close_reason

    @property
    def is_open(self) -> bool:
        """Whether it is accepted and nobody has ended it, as far as this node knows."""
        return self._phase is Phase.OPEN

    async def send(self, message: Any, message_type: MessageType | str | None = None) -> bool:
        """Send to this connection alone, no faster than its client takes it.

        On the wire when this returns, if the client keeps up; what follows within the same tick of the event loop
        shares a write at its end. While the client is behind this waits, for `send_timeout` at most, and gives others
        a turn where a tick has become long. See `ConnectionManager.send_personal` for a send that never waits.

        Returns:
            Whether the message was handed over; False if `overflow` gave it up.

        Raises:
            MessageError: The message cannot be encoded.
            ConnectionEnded: The connection has ended; quiet in its own `ws_route` handler, and in its own tasks.
            NotConnectedError: The connection is not accepted yet.
        """
        return await self._owned()._sessions.send(self, message, message_type)  # noqa: SLF001 - of the protocol above

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close with a close frame that follows what was sent before. See `ConnectionManager.close`."""
        await self._owned().close(self, code, reason)

    async def wait_until_caught_up(self) -> None:
        """Wait while the client is behind with what was sent to it; for producers that can be slowed down.

        Returns at once if the connection has ended, and ends with it at the latest.

        Raises:
            NotConnectedError: The connection is not accepted yet.
        """
        self._owned()
        if self._phase in (Phase.OPENING, Phase.OPEN):
            await self._outbox.wait_for_space()

    async def wait_until_closed(self) -> None:
        """Wait until a connection that was closed is done: its close frame is written, or it is gone or aborted.

        For endpoints of your own: the server hangs up when they have returned.

        Raises:
            NotConnectedError: The connection is not accepted yet.
        """
        self._owned()
        await self._outbox.wait_until_done()

    @overload
    def messages(self, message_type: type[T]) -> AsyncIterator[T]: ...

    @overload
    def messages(self, message_type: Any) -> AsyncIterator[Any]: ...

    def messages(self, message_type: Any) -> AsyncIterator[Any]:
        """Iterate over what the client sends, validated as `message_type`, in order; ends when the client is gone.

        `str` yields text frames and `bytes` binary ones as they are; any other type is JSON, validated by pydantic.
        What does not fit is answered with an error frame and skipped; after `max_invalid_messages` in a row the
        client is closed with 1007. A ping that `message_type` does not claim is answered with a pong.

        Type checkers know the type of the messages for classes; for unions and other forms, annotate the variable.

        One iterator at a time; from the first on, `websocket.receive…` belongs to the connection's own reader.

        Raises:
            NotConnectedError: The connection is not accepted yet.
        """
        return self._owned()._sessions.messages(self, message_type)  # noqa: SLF001 - of the protocol above

    def start_task(self, coroutine: Coroutine[Any, Any, T]) -> "Task[T]":
        """Start a task that ends with the connection: for what is pushed to a client beside its handler.

        It is cancelled when the connection has ended and `disconnect_grace` is over, and when the manager stops. One
        that raises is logged, and its client is closed with 1011, as that of a handler that raises. `ConnectionEnded`
        ends it quietly, whosever connection it was, and also out of a task group.

        Raises:
            ConnectionEnded: The connection has ended.
            NotConnectedError: The connection is not accepted yet.
        """
        return self._owned()._sessions.start_task(self, coroutine)  # noqa: SLF001 - of the protocol above

    def _note_close(self, code: int, reason: str) -> bool:
        """Remember how it ended: the first who knew is right. Return whether nobody did before."""
        if self._close_code is not None:
            return False
        self._close_code, self._close_reason = code, reason
        return True

    def _owned(self) -> Owner:
        if self._owner is None:
            raise NotConnectedError(
                "this connection is not accepted yet, so it can neither send nor receive: dependencies run before "
                "accept; do it in the handler, or call manager.connect(websocket) first"
            )
        return self._owner
