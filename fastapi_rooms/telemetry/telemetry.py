"""What a manager measures with, if there is anybody to tell."""

import asyncio
import logging
from collections.abc import Callable, Collection
from time import perf_counter
from typing import TYPE_CHECKING

from fastapi_rooms.domain.connection import Outbox
from fastapi_rooms.domain.envelope import Envelope, Target, TargetKind, TraceContext
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.telemetry.catalogue import MANAGER, RECIPIENTS, SOURCE, TARGET
from fastapi_rooms.telemetry.reporter import Reporter

if TYPE_CHECKING:
    from fastapi_rooms.telemetry.instruments import Instruments
    from fastapi_rooms.telemetry.tracing import Tracing

logger = logging.getLogger("fastapi_rooms")

Deliver = Callable[[Collection[Outbox], Message | Close, frozenset[str]], int]
"""How a manager hands something to connections of its node."""


class Telemetry:
    """Measures what one manager delivers, and reports how it is doing, from its start to its stop.

    Made by `start_telemetry`, only where somebody measures or traces: a manager that has none does nothing of this.
    """

    def __init__(self, reporter: Reporter, instruments: "Instruments | None", tracing: "Tracing | None") -> None:
        self.reporter = reporter
        self._instruments = instruments  # None: only spans are recorded
        self._tracing = tracing  # None: only numbers are recorded
        number = None if instruments is None else instruments.add(reporter)
        self._here = _attributes(number, "here")
        self._elsewhere = _attributes(number, "other_node")

    def trace(self) -> TraceContext | None:
        """Return what an envelope that is published now tells about its trace."""
        return None if self._tracing is None else self._tracing.here()

    def deliver(
        self,
        deliver: Deliver,
        target: Target,
        outboxes: Collection[Outbox],
        content: Message | Close,
        excluded: frozenset[str],
    ) -> int:
        """Deliver what was sent on this node; return how many were reached."""
        return self._measure(self._here, deliver, target, outboxes, content, excluded)

    def hear(self, deliver: Deliver, outboxes: Collection[Outbox], envelope: Envelope) -> None:
        """Deliver what was published on another node, in a span of its own if that was in one."""
        target, content, excluded = envelope.target, envelope.content, envelope.excluded
        hearing = None if self._tracing is None else self._tracing.hearing(envelope)
        if hearing is None:
            self._measure(self._elsewhere, deliver, target, outboxes, content, excluded)
            return
        with hearing as span:
            reached = self._measure(self._elsewhere, deliver, target, outboxes, content, excluded)
            span.set_attribute(RECIPIENTS, reached)

    def stop(self, stats: Stats) -> None:
        """Report how the manager ended, and nothing more."""
        self.reporter.end(stats)

    def _measure(
        self,
        attributes: dict[TargetKind, dict[str, str | int]],
        deliver: Deliver,
        target: Target,
        outboxes: Collection[Outbox],
        content: Message | Close,
        excluded: frozenset[str],
    ) -> int:
        if self._instruments is None or isinstance(content, Close) or target.kind is TargetKind.CONNECTION:
            return deliver(outboxes, content, excluded)  # what reaches one connection is no broadcast
        began = perf_counter()
        reached = deliver(outboxes, content, excluded)
        self._instruments.record(perf_counter() - began, reached, attributes[target.kind])
        return reached


def start_telemetry(stats: Callable[[], Stats], running: Telemetry | None) -> Telemetry | None:
    """Return what a manager measures with from now on; None if OpenTelemetry is not there, or nobody set it up.

    Decided here, once: providers that are set later are not noticed.

    Args:
        stats: The manager's own method.
        running: What it measures with already, which goes on if the loop is the same.
    """
    if running is not None:
        if running.reporter.loop is asyncio.get_running_loop():
            return running
        running.stop(stats())
    try:
        # FastAPI brings the API, but the oldest that we support does not.
        from fastapi_rooms.telemetry.instruments import current_instruments  # noqa: PLC0415
        from fastapi_rooms.telemetry.tracing import current_tracing  # noqa: PLC0415
    except ImportError:
        return None
    try:
        instruments, tracing = current_instruments(), current_tracing()
    except Exception:
        logger.exception("OpenTelemetry is set up in a way that does not work: nothing is measured")
        return None
    if instruments is None and tracing is None:
        return None
    return Telemetry(Reporter(stats), instruments, tracing)


def _attributes(number: int | None, source: str) -> dict[TargetKind, dict[str, str | int]]:
    """Return the attributes of a broadcast by the kind of its target, made once."""
    if number is None:
        return {}
    return {kind: {MANAGER: number, TARGET: kind.name.lower(), SOURCE: source} for kind in TargetKind}
