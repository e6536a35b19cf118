"""What happens to a connection when a time has passed: expired credentials, silence, a life that was long enough."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import PING, Close, Message
from fastapi_rooms.domain.settings import RoomsSettings

if TYPE_CHECKING:
    from fastapi_rooms.engine.inbound.reader import Reader

Expiry = datetime | float
"""When something expires: a `datetime` with its zone, or seconds since the epoch, as `exp` of a JWT."""

OLD_AGE = Close(CloseCode.NORMAL, "connected for long enough")
"""What ends a connection that is `max_connection_seconds` old."""
LATE_SECONDS = 1.0
"""How late a timer is when this node was behind itself, so that what clients said may not have been read; and for how
long they are waited for then, before they are called silent after all."""
LONGEST_SECONDS = 3600.0
"""How long a timer runs at most before the wall clock is looked at again: it may have been set."""


def as_datetime(expires_at: Expiry | None) -> datetime | None:
    """Return a time in UTC; None: never.

    Raises:
        ConfigurationError: It has no zone, so nobody knows when that is; or it is no time at all.
    """
    if expires_at is None:
        return None
    if isinstance(expires_at, datetime) and expires_at.tzinfo is None:
        raise ConfigurationError("expires_at has no zone: write datetime.now(UTC) + timedelta(...)")
    try:
        if isinstance(expires_at, datetime):
            return expires_at.astimezone(UTC)
        return datetime.fromtimestamp(expires_at, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise ConfigurationError(
            f"expires_at is no time: {error}. Pass a datetime with its zone, or seconds since the epoch"
        ) from error


class Timekeeper:
    """Owns the timers of connections; each is cancelled with its connection.

    Args:
        settings: How long is long.
        counters: Where is counted what ends here.
        close: Called to close a connection.
        send: Called to send it a message; returns whether it will be sent.
        is_behind: Called to learn whether what is sent waits for this node, and not for the peers.
    """

    def __init__(
        self,
        settings: RoomsSettings,
        counters: Counters,
        close: Callable[[Connection, Close], None],
        send: Callable[[Connection, Message], bool],
        is_behind: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._close = close
        self._send = send
        self._is_behind = is_behind
        self._context = Context()  # an empty one: timers outlive the request in which they were set
        self._timers: dict[Connection, dict[Callable[..., None], asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def begin(self, connection: Connection) -> None:
        """Set the timers of a connection that has just been opened."""
        settings = self._settings
        if settings.first_message_timeout is not None:
            self._set(connection, settings.first_message_timeout, self._on_no_first_message)
        if settings.max_connection_seconds is not None:
            self._set(connection, settings.max_connection_seconds, self._on_old_age)
        if settings.heartbeat_interval is not None:
            self._await_heartbeat(connection)
        if connection.expires_at is not None:
            self._wait_for_expiry(connection)

    def expire(self, connection: Connection, expires_at: datetime | None) -> None:
        """Close an open connection at another time; None: never."""
        connection._expires_at = expires_at
        self._unset(connection, self._on_expiry)
        if expires_at is not None:
            self._wait_for_expiry(connection)

    def end(self, connection: Connection) -> None:
        """Cancel what is set for a connection."""
        for timer in self._timers.pop(connection, {}).values():
            timer.cancel()

    def _set(self, connection: Connection, seconds: float, callback: Callable[..., None], *arguments: object) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, callback, connection, *arguments, context=self._context)
        self._timers.setdefault(connection, {})[callback] = timer

    def _unset(self, connection: Connection, callback: Callable[..., None]) -> None:
        timers = self._timers.get(connection, {})
        timer = timers.pop(callback, None)
        if timer is not None:
            timer.cancel()
        if not timers:
            self._timers.pop(connection, None)

    def _is_put_off(self, connection: Connection, callback: Callable[..., None], *arguments: object) -> bool:
        """Look again later if this node was behind, so that silence says nothing; return whether that is so."""
        due_at = self._timers[connection][callback].when()
        if asyncio.get_running_loop().time() - due_at <= LATE_SECONDS and not self._is_behind():
            return False
        self._set(connection, LATE_SECONDS, callback, *arguments)
        return True

    def _on_no_first_message(self, connection: Connection) -> None:
        if _received(connection) == 0 and self._is_put_off(connection, self._on_no_first_message):
            return
        self._unset(connection, self._on_no_first_message)
        if _received(connection) == 0:
            self._counters.silent += 1
            self._close(connection, Close(CloseCode.SILENT, "no message came in time"))

    def _on_old_age(self, connection: Connection) -> None:
        self._counters.outlived += connection.is_open
        self._close(connection, OLD_AGE)

    def _on_heartbeat(self, connection: Connection, received_before: int) -> None:
        received = _received(connection)
        if received is not None and received == received_before and self._send(connection, PING):
            self._set(connection, self._settings.heartbeat_timeout, self._on_no_answer, received)
        else:
            self._await_heartbeat(connection)

    def _on_no_answer(self, connection: Connection, received_before: int) -> None:
        is_silent = _received(connection) == received_before
        if is_silent and self._is_put_off(connection, self._on_no_answer, received_before):
            return
        self._unset(connection, self._on_no_answer)
        if is_silent:
            self._counters.silent += 1
            self._close(connection, Close(CloseCode.SILENT, "a ping message was not answered"))
        else:
            self._await_heartbeat(connection)

    def _await_heartbeat(self, connection: Connection) -> None:
        seconds = self._settings.heartbeat_interval
        assert seconds is not None, "whoever calls has seen that there is one"
        self._set(connection, seconds, self._on_heartbeat, _received(connection) or 0)

    def _wait_for_expiry(self, connection: Connection) -> None:
        assert connection.expires_at is not None, "whoever calls has looked"
        seconds = (connection.expires_at - datetime.now(UTC)).total_seconds()
        self._set(connection, min(max(0.0, seconds), LONGEST_SECONDS), self._on_expiry)

    def _on_expiry(self, connection: Connection) -> None:
        if connection.expires_at is not None and connection.expires_at > datetime.now(UTC):
            self._wait_for_expiry(connection)  # the wall clock was set, or it is more than one timer away
            return
        self._counters.expired += 1
        self._close(connection, Close(CloseCode.LOGIN_EXPIRED, "the login has expired"))


def _received(connection: Connection) -> int | None:
    """Return how many messages the client has sent; None if nobody here knows.

    The app may receive by itself, or the client be held up: its answer to a ping would lie unread.
    """
    reader: Reader | None = connection._reader
    return None if reader is None or reader.is_held_up else reader.received
