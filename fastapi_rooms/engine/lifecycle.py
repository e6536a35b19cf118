"""From the handshake to the end: opens connections and ends them. The only one who changes their phase."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from fastapi_rooms.domain.close_codes import ABNORMAL
from fastapi_rooms.domain.connection import Connection, Owner, Phase, Verdict
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.envelope import Target, room_target, user_target
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.registry import Left, Registry
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.endings.timekeeper import Timekeeper
from fastapi_rooms.engine.hooks import Announcer, Disconnected, Hooks
from fastapi_rooms.engine.outbound.ended import ENDED
from fastapi_rooms.engine.outbound.flusher import Flusher
from fastapi_rooms.engine.outbound.outbox import Outbox
from fastapi_rooms.engine.outbound.wire_choice import choose_wire

if TYPE_CHECKING:
    from fastapi_rooms.engine.inbound.reader import Reader

logger = logging.getLogger("fastapi_rooms")


@dataclass(frozen=True, slots=True)
class Seams:
    """What the manager does in the middle of a connection's life."""

    follow: Callable[[Collection[Target]], Awaitable[None]]
    """Waits until this node hears about rooms and users."""
    unfollow: Callable[[Left | None], None]
    """Takes what has no connections here any more."""
    recheck: Callable[[Connection], Awaitable[None]]
    """Looks again whether a user may come in, once nothing is missed any more; raises if not."""
    refuse: Callable[[Connection], NoReturn]
    """Refuses who comes when the manager has been stopped; raises."""


class Lifecycle:
    """Opens and ends the connections of one node.

    Args:
        settings: Limits and policies.
        counters: Where is counted what is given up.
        registry: Who is connected.
        hooks: What the app wants to be told.
        announcer: Who tells it.
        seams: What the manager does beside that.
    """

    def __init__(
        self,
        settings: RoomsSettings,
        counters: Counters,
        registry: Registry,
        hooks: Hooks,
        announcer: Announcer,
        seams: Seams,
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._registry = registry
        self._hooks = hooks
        self._announcer = announcer
        self._seams = seams
        # Registered, but the handshake is being answered. The event, if somebody waits for that, is set afterwards.
        self.opening: dict[Connection, asyncio.Event | None] = {}
        self.flusher = Flusher(settings, self._on_stall)
        self.timekeeper = Timekeeper(settings, counters, self._on_time, self._offer)
        self._on_outbox_end = self._on_end  # one bound method for all outboxes

    def visible(self, connections: Collection[Connection]) -> list[Connection]:
        """Return those whose handshake has been answered."""
        if not self.opening:
            return list(connections)
        return [connection for connection in connections if connection not in self.opening]

    async def open(
        self,
        connection: Connection,
        owner: Owner,
        room: str | None,
        address: str | None,
        answer_handshake: Callable[[], Awaitable[None]],
    ) -> None:
        """Register first, then answer the handshake, so that nothing is missed in between; undone on error."""
        targets = [] if connection.user_id is None else [user_target(connection.user_id)]
        if room is not None:
            targets.append(room_target(room))
        outbox = Outbox(connection, self._settings, self._counters, self.flusher, self._on_outbox_end)
        connection._owner, connection._outbox, connection._phase = owner, outbox, Phase.OPENING
        self.opening[connection] = None
        self.flusher.watch(outbox)
        self._registry.add(connection, address)
        if room is not None:
            self._registry.join(connection, room)
        try:
            await self._seams.follow(targets)
            if self._is_unproven(connection):
                await self._seams.recheck(connection)
            if outbox.is_done and connection._phase is Phase.ENDED:  # the manager was stopped
                self._seams.refuse(connection)
            await answer_handshake()
        except BaseException:
            self.end(connection, Phase.GONE, None)
            outbox.abort()
            raise
        if self._opened(connection) and not outbox.is_done:
            connection._phase = Phase.OPEN
            connection.connected_at = datetime.now(UTC)
            self.timekeeper.begin(connection)
            connection._is_announced = True
            self._announcer.tell(self._hooks.connected, connection)
            for joined in connection.rooms if self._hooks.joined is not None else ():
                self._announcer.tell(self._hooks.joined, connection, joined)
        outbox.open(choose_wire(connection.websocket, self._settings.wire, self._settings.compress_min_bytes))

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

    def end(self, connection: Connection, phase: Phase, close: Close | None) -> None:
        """Take a connection out of everything; a close frame follows what was sent, if there is to be one."""
        if close is not None:
            connection._note_close(close.code, close.reason)
        self._remove(connection)
        self._opened(connection)
        connection._phase = phase
        connection._outbox.close(close)
        self._end_reading(connection, now=phase is Phase.GONE)
        self._announce_end(connection)

    def _remove(self, connection: Connection) -> bool:
        """Take a connection out of the registry; False if that has happened."""
        left = self._registry.remove(connection)
        self.timekeeper.end(connection)
        try:
            self._seams.unfollow(left)
        except Exception:  # whatever a backend raises: who has ended has to end, and others after it
            logger.exception("closing %r failed", connection)
        return left is not None

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

    def _opened(self, connection: Connection) -> bool:
        """End the opening of a connection; False if that has happened, since it was closed meanwhile."""
        if connection not in self.opening:
            return False
        opened = self.opening.pop(connection)
        if opened is not None:
            opened.set()
        return True

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
        self.flusher.unwatch_if_left(outbox)
        if not self._remove(connection):
            self._end_reading(connection)
            return
        # The peer went. What it sent before is still read and handled; then the reader sees the end by itself, and why.
        connection._phase = Phase.ENDED
        reader: Reader | None = connection._reader
        if reader is None or reader.has_ended:
            connection._note_close(ABNORMAL, "")
            self._announce_end(connection)

    def _on_stall(self, outbox: Outbox) -> None:
        connection = outbox.connection
        self._counters.aborted += 1
        logger.info("%r does not take what it is sent: aborted", connection)
        if self._remove(connection):
            connection._phase = Phase.ENDED
        connection._note_close(ABNORMAL, "")
        outbox.abort()
        self._announce_end(connection)

    def close(self, connection: Connection, close: Close) -> None:
        """Close a connection, if it is not closed yet."""
        if connection in self._registry:
            self.end(connection, Phase.ENDED, close)

    def _on_time(self, connection: Connection, close: Close) -> None:
        logger.info("%r: %s, closed with %d", connection, close.reason, close.code)
        self.close(connection, close)

    def _offer(self, connection: Connection, message: Message) -> bool:
        return connection._outbox.offer(message) is Verdict.ACCEPTED
