"""The local half of every call that reaches somebody: outboxes of this node are offered a message, or closed."""

import asyncio
import logging
from collections.abc import Callable, Collection

from fastapi_rooms.domain.connection import Connection, Outbox
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.envelope import Envelope, Target
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.engine.hooks import Announcer, Hooks
from fastapi_rooms.engine.lifecycle import TOO_SLOW, Cause, Lifecycle
from fastapi_rooms.engine.outbound.fan_out import fan_out
from fastapi_rooms.engine.outbound.outbox import Outbox as WrittenOutbox
from fastapi_rooms.engine.references import LeftOut
from fastapi_rooms.telemetry.telemetry import Telemetry, start_telemetry

logger = logging.getLogger("fastapi_rooms")


class Delivery:
    """Synchronous: nobody can come or go meanwhile.

    Args:
        counters: Where is counted what was handed over and who was too slow.
        registry: Who is connected.
        lifecycle: Who ends connections.
        hooks: What the app wants to be told.
        announcer: Who tells it.
    """

    def __init__(
        self, counters: Counters, registry: Registry, lifecycle: Lifecycle, hooks: Hooks, announcer: Announcer
    ) -> None:
        self._counters = counters
        self._registry = registry
        self._lifecycle = lifecycle
        self._flusher = lifecycle.flusher
        self._hooks = hooks
        self._announcer = announcer
        self.telemetry: Telemetry | None = None  # from start to stop, if OpenTelemetry is set up by then

    def reach(self, target: Target, content: Message | Close, out: LeftOut) -> int:
        """Hand a message to all of a target who are here, or close them; measured, if anybody measures."""
        here = self._registry.outboxes(target)
        excluded = out.ids if out.user_id is None else out.here(self._registry)  # nearly always the first
        if self.telemetry is None:
            return self.deliver(here, content, excluded)
        return self.telemetry.deliver(self.deliver, target, here, content, excluded)

    def hear(self, envelope: Envelope) -> None:
        """Do the same with what another node has published."""
        target, content = envelope.target, envelope.content
        assert not isinstance(content, Move), "which is delivered to nobody"
        here = self._registry.outboxes(target)
        excluded = LeftOut(envelope.excluded, envelope.excluded_user).here(self._registry)
        if self.telemetry is None:
            self.deliver(here, content, excluded)
        else:
            self.telemetry.hear(self.deliver, here, envelope, content, excluded)

    def deliver(
        self, outboxes: Collection[Outbox], content: Message | Close, excluded: frozenset[str] = frozenset()
    ) -> int:
        """Hand a message to connections of this node, or close them; return how many were reached.

        The verdicts are acted on afterwards, since that changes the registry.
        """
        if isinstance(content, Close):
            return self.close(outboxes, content, excluded)
        self._flusher.flush_if_late()
        skipped: Collection[Outbox] = ()
        if excluded:
            skipped = {found._outbox for one in excluded if (found := self._registry.find(one)) is not None}
        handed, overflowed = fan_out(outboxes, content, skipped, self._flusher)
        self._counters.sent_messages += handed
        for outbox in overflowed:
            self._give_up(outbox)
        return handed

    def start_telemetry(self, stats: Callable[[], Stats]) -> None:
        """Measure from now on, if OpenTelemetry is set up. Idempotent."""
        self.telemetry = start_telemetry(stats, self.telemetry)

    def stop_telemetry(self, stats: Callable[[], Stats]) -> None:
        """Measure no more, and report how it ended."""
        telemetry, self.telemetry = self.telemetry, None
        if telemetry is not None:
            telemetry.stop(stats())

    async def send_here(self, outboxes: Collection[Outbox], content: Message | Close) -> int:
        """Hand a message to connections of this node whoever they are, or close them; return how many were reached."""
        reached = self.deliver(outboxes, content)
        if reached and isinstance(content, Close):
            await asyncio.sleep(0)  # the close frames of those who are not behind go out now
        return reached

    def close(self, outboxes: Collection[Outbox], close: Close, excluded: frozenset[str] = frozenset()) -> int:
        """Close connections of this node; return how many."""
        connections: list[Connection] = [outbox.connection for outbox in outboxes]
        closed = [connection for connection in connections if connection.connection_id not in excluded]
        for connection in closed:
            self._lifecycle.end(connection, Cause.CLOSED, close)
        return len(closed)

    def _give_up(self, outbox: WrittenOutbox) -> None:
        connection = outbox.connection
        self._counters.slow_consumers += 1
        reason = "is not written to, since this node is behind" if outbox.awaits_turn else "is a slow consumer"
        logger.info("%r %s: closed with 1013", connection, reason)
        self._announcer.tell(self._hooks.overflow, connection)
        self._lifecycle.end(connection, Cause.CLOSED, TOO_SLOW)
