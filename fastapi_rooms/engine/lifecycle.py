"""From the handshake to the end: opens connections and ends them. The only one who changes their phase."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from starlette.websockets import WebSocketState

from fastapi_rooms.domain.close_codes import ABNORMAL, CloseCode
from fastapi_rooms.domain.connection import Connection, Owner, Phase, Verdict
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.envelope import room_target, user_target
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.settings import Overflow, RoomsSettings
from fastapi_rooms.engine.endings.connection_tasks import ConnectionTasks
from fastapi_rooms.engine.endings.timekeeper import LATE_SECONDS, OLD_AGE, Timekeeper
from fastapi_rooms.engine.hooks import Announcer, Disconnected, Hooks
from fastapi_rooms.engine.many_nodes import ManyNodes
from fastapi_rooms.engine.outbound.ended import ENDED
from fastapi_rooms.engine.outbound.failed_write import FAILED
from fastapi_rooms.engine.outbound.flusher import Flusher
from fastapi_rooms.engine.outbound.outbox import Outbox
from fastapi_rooms.engine.outbound.wire_choice import choose_wire

if TYPE_CHECKING:
    from fastapi_rooms.engine.inbound.reader import Reader

logger = logging.getLogger("fastapi_rooms")

_REPLACED = Close(CloseCode.REPLACED, "replaced by a newer connection")
TOO_SLOW = Close(CloseCode.TRY_AGAIN_LATER, "slow consumer")

_COUNTED = frozenset(
    {
        CloseCode.INVALID_DATA,
        CloseCode.POLICY_VIOLATION,
        CloseCode.TOO_BIG,
        CloseCode.SERVICE_RESTART,
        CloseCode.TRY_AGAIN_LATER,
        CloseCode.LOGIN_EXPIRED,
        CloseCode.SILENT,
        CloseCode.REPLACED,
    }
)
"""Who was closed with one of these is counted by the reason for it, so not once more if it does not even take that."""


class Cause(Enum):
    """Why a connection ends, which says what becomes of its outbox and of its reader."""

    CLOSED = "closed"
    """This node closes it: a close frame follows what was sent. What it sent and nobody took is given up."""
    FORGOTTEN = "forgotten"
    """The app or the endpoint is done with it: nothing is written or read any more."""
    STALLED = "stalled"
    """Its peer takes nothing: the socket is aborted."""
    LOST = "lost"
    """A write found that its peer has gone. What it sent before is still read and handled, up to the end."""


class Lifecycle:
    """Opens and ends the connections of one node.

    Args:
        settings: Limits and policies.
        counters: Where is counted what is given up.
        registry: Who is connected.
        hooks: What the app wants to be told.
        announcer: Who tells it.
        nodes: How this node stands to the others.
    """

    def __init__(
        self,
        settings: RoomsSettings,
        counters: Counters,
        registry: Registry,
        hooks: Hooks,
        announcer: Announcer,
        nodes: ManyNodes,
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._registry = registry
        self._hooks = hooks
        self._announcer = announcer
        self._nodes = nodes
        # Registered, but the handshake is being answered. The event, if somebody waits for that, is set afterwards.
        self.opening: dict[Connection, asyncio.Event | None] = {}
        self.flusher = Flusher(settings, self._on_stall, self._on_left, self._on_failed)
        self.timekeeper = Timekeeper(settings, counters, self._on_time, self._offer, self._is_behind)
        self.tasks = ConnectionTasks(settings.disconnect_grace, self.close)
        self._on_outbox_done = self._on_done  # one bound method for all outboxes
        self._failures_said = Seldom()

    @property
    def closing(self) -> int:
        """How many connections have ended and have a socket that has not left."""
        return max(0, self.flusher.sockets - len(self._registry))

    def visible(self, connections: Collection[Connection]) -> list[Connection]:
        """Return those whose handshake has been answered."""
        if not self.opening:
            return list(connections)
        return [connection for connection in connections if connection not in self.opening]

    def visible_rooms(self) -> list[str]:
        """Return the rooms with members whose handshake has been answered."""
        if not self.opening:
            return list(self._registry.rooms())
        return [room for room in self._registry.rooms() if self.visible(self._registry.members(room))]

    def refresh(self, connection: Connection | None, expires_at: datetime | None) -> bool:
        """Let an open connection expire at another time, None: never; False if it is not open."""
        if connection is None or not connection.is_open:
            return False
        self.timekeeper.expire(connection, expires_at)
        return True

    async def open(
        self,
        connection: Connection,
        owner: Owner,
        room: str | None,
        address: str | None,
        answer_handshake: Callable[[], Awaitable[None]],
        giving_way: Callable[[], Sequence[Connection]],
    ) -> None:
        """Register first, then answer the handshake, so that nothing is missed in between; undone on error.

        `giving_way` says who has to go, and is asked as it is registered and when its handshake was answered. Not
        before that does anybody go who is open: this one may hang up yet.
        """
        targets = [] if connection.user_id is None else [user_target(connection.user_id)]
        if room is not None:
            targets.append(room_target(room))
        settings = connection._settings or self._settings
        outbox = Outbox(connection, settings, self._counters, self.flusher, self._on_outbox_done)
        connection._owner, connection._outbox, connection._phase = owner, outbox, Phase.OPENING
        self.opening[connection] = None
        self.flusher.watch(outbox)
        self._registry.add(connection, address)
        if room is not None:
            self._registry.join(connection, room)
        self._replace(giving_way())
        try:
            await self._nodes.follow(targets)
            if self._is_unproven(connection):
                await self._nodes.recheck(connection)
            await answer_handshake()
        except BaseException:
            self.end(connection, Cause.FORGOTTEN)
            outbox.abort()
            raise
        if connection in self.opening:  # else it has ended meanwhile
            self._leave_opening(connection)
            connection._phase = Phase.OPEN
            self._replace(giving_way())
            self._begin(connection)
        elif connection.close_code == CloseCode.SERVICE_RESTART:
            self._counters.restarted += 1  # let in all the same, to get its close frame
        if connection._phase is Phase.GONE and not outbox.has_close_frame:
            return  # forgotten meanwhile: the socket is its endpoint's business
        newest_counts = settings.overflow is Overflow.DROP_OLDEST
        outbox.open(
            choose_wire(connection.websocket, settings.wire, settings.compress_min_bytes, newest_counts=newest_counts)
        )

    def _is_unproven(self, connection: Connection) -> bool:
        """Return whether nobody of this user is here of whom is certain that his close would have been heard."""
        user_id = connection.user_id
        if user_id is None or connection not in self.opening:
            return False
        for other in self._registry.of_user(user_id):  # noqa: SIM110 - at every connect, mostly once
            if other not in self.opening:
                return False
        return True

    async def wait_until_opened(self, connection: Connection) -> None:
        """Wait until the handshake of a connection has been answered, or has failed."""
        if connection not in self.opening:
            return
        opened = self.opening[connection] = self.opening[connection] or asyncio.Event()
        await opened.wait()

    def end(self, connection: Connection, cause: Cause, close: Close | None = None) -> None:
        """Take a connection out of everything, in one order whatever the cause.

        First nobody finds it any more, then nothing is sent, then nothing is read, then the app is told.

        Args:
            connection: Which; one that has ended already may only be forgotten, or found stalled.
            cause: Why.
            close: The close frame, if this node closes it.
        """
        if close is not None:
            connection._note_close(close.code, close.reason)
        elif cause is Cause.STALLED or (cause is Cause.FORGOTTEN and connection._phase is Phase.ENDED):
            connection._note_close(ABNORMAL, "")  # of who was found lost, if its reader learned nothing better
        self._remove(connection)
        self._leave_opening(connection)
        if connection._phase is not Phase.GONE:
            connection._phase = Phase.GONE if cause is Cause.FORGOTTEN else Phase.ENDED
        match cause:
            case Cause.CLOSED | Cause.FORGOTTEN:
                connection._outbox.close(close)
                if cause is Cause.FORGOTTEN and connection.websocket.client_state is WebSocketState.DISCONNECTED:
                    connection._outbox.lose_peer()
                self._end_reading(connection, now=cause is Cause.FORGOTTEN)
            case Cause.LOST if self._is_read(connection):
                return  # its reader will see the end, and why, and have it forgotten
            case Cause.LOST:
                connection._note_close(ABNORMAL, "")
        self._announce_end(connection)

    def forget_unconnected(self, connection: Connection) -> None:
        """Let whoever is connecting it learn that it has ended: it is not registered yet."""
        connection._phase = Phase.GONE

    def close(self, connection: Connection, close: Close) -> bool:
        """Close a connection, if it is not closed yet; return whether it was not."""
        is_here = connection in self._registry
        if is_here:
            self.end(connection, Cause.CLOSED, close)
        return is_here

    def _replace(self, others: Sequence[Connection]) -> None:
        for other in others:
            self._counters.replaced += 1
            self.close(other, _REPLACED)

    def _begin(self, connection: Connection) -> None:
        """Take note that the handshake was answered."""
        connection.connected_at = datetime.now(UTC)
        self.timekeeper.begin(connection)
        connection._is_announced = True
        self._announcer.tell(self._hooks.connected, connection)
        for joined in connection.rooms if self._hooks.joined is not None else ():
            self._announcer.tell(self._hooks.joined, connection, joined)

    def _remove(self, connection: Connection) -> None:
        """Take a connection out of the registry, and cancel its timers. Idempotent."""
        left = self._registry.remove(connection)
        self.timekeeper.end(connection)
        self.tasks.end(connection)
        try:
            self._nodes.unfollow(left)
        except Exception:  # whatever a backend raises: who has ended has to end, and others after it
            logger.exception("closing %r failed", connection)

    def _leave_opening(self, connection: Connection) -> None:
        """Take note that the handshake is over, one way or another, and wake who waits for that. Idempotent."""
        opened = self.opening.pop(connection, None)
        if opened is not None:
            opened.set()

    def _announce_end(self, connection: Connection) -> None:
        """Tell the app that a connection has ended, once."""
        if not connection._is_announced:
            return
        connection._is_announced = False
        if self._hooks.left is not None:
            for room in connection.rooms:
                self._announcer.tell(self._hooks.left, connection, room)
        if self._hooks.disconnected is not None:
            seconds = max(0.0, (datetime.now(UTC) - connection.connected_at).total_seconds())
            self._announcer.tell(
                self._hooks.disconnected,
                Disconnected(connection, connection.close_code, connection.close_reason, seconds),
            )

    def _is_read(self, connection: Connection) -> bool:
        reader: Reader | None = connection._reader
        return reader is not None and not reader.has_ended

    def _end_reading(self, connection: Connection, *, now: bool = True) -> None:
        reader: Reader | None = connection._reader
        if reader is not None:
            reader.end()
            if now:
                reader.stop()

    # What others notice

    def _on_done(self, outbox: Outbox) -> None:
        """Nothing can be written any more: the close frame is out, or the peer was found gone."""
        connection = outbox.connection
        connection._outbox = ENDED
        self.flusher.unwatch_if_left(outbox)
        if connection in self._registry:
            self.end(connection, Cause.LOST)
        else:
            self._end_reading(connection, now=not outbox.is_pending)  # else its end is still to come

    def _on_stall(self, outbox: Outbox) -> bool:
        """Give up a peer that takes nothing; return whether its socket is still there."""
        connection = outbox.connection
        if outbox.can_abort:
            if not (_is_counted(connection) or outbox.was_closed_by_server()):
                self._counters.aborted += 1
            logger.info("%r does not take what it is sent: aborted", connection)
            self.end(connection, Cause.STALLED)
            outbox.abort()
            return False
        if outbox.is_said_gone:
            logger.debug("%r has gone, and its server has not ended what it was passed", connection)
            outbox.abort()
            return False
        # There is no way to end the socket. A close frame may still get out, when the server is done with the write.
        if connection in self._registry:
            self._counters.slow_consumers += 1
            self.end(connection, Cause.CLOSED, TOO_SLOW)
        if (close := outbox.cut(TOO_SLOW)) is not None:
            self._counters.slow_consumers += close.code == TOO_SLOW.code and not _is_counted(connection)
            logger.info("%r does not take what it is sent: closed with %d", connection, close.code)
        elif outbox.give_up():
            logger.warning(
                "%r does not take its close frame either: its socket stays until the server ends it", connection
            )
        else:
            connection._note_close(ABNORMAL, "")  # so that its endpoint does not say that all is well
            logger.info("%r was forgotten, and does not take what it was sent before", connection)
        return not outbox.has_left()

    def _on_failed(self, outbox: Outbox, error: BaseException) -> None:
        """A write raised although the peer is there: the outbox sends a close frame, or has tried to."""
        connection = outbox.connection
        self.close(connection, FAILED)
        if self._failures_said.is_due(asyncio.get_running_loop().time()):
            logger.error(
                "%r could not be sent to, although its client is there: closed with %s. Does a middleware around the "
                "app fail in its `send`? (said once a minute)",
                connection,
                connection.close_code,
                exc_info=error,
            )
        else:
            logger.debug("%r could not be sent to: %r", connection, error)

    def _on_left(self, outbox: Outbox) -> None:
        self._registry.release(outbox.connection)

    def _on_time(self, connection: Connection, close: Close) -> None:
        if connection in self._registry:
            logger.info("%r: %s, closed with %d", connection, close.reason, close.code)
            self.end(connection, Cause.CLOSED, close)

    def _offer(self, connection: Connection, message: Message) -> bool:
        """Send a ping, unless the peer is behind: it would push out what the app has sent, or be lost itself."""
        outbox = connection._outbox
        if outbox.is_over or outbox.offer(message) is not Verdict.ACCEPTED:
            return False
        self._counters.sent_messages += 1
        return True

    def _is_behind(self) -> bool:
        return self.flusher.behind_seconds() > LATE_SECONDS


def _is_counted(connection: Connection) -> bool:
    """Return whether the reason for which a connection was closed is counted."""
    code = connection.close_code
    return code in _COUNTED or (code, connection.close_reason) == (OLD_AGE.code, OLD_AGE.reason)
