"""What a manager measures with, if there is anybody to tell."""

import asyncio
import logging
from collections.abc import Callable, Collection
from time import perf_counter
from typing import TYPE_CHECKING

from fastapi_rooms.domain.connection import Outbox
from fastapi_rooms.domain.envelope import Envelope, Target, TargetKind, TraceContext
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.telemetry.caller_trace import CallerTrace
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

    What of OpenTelemetry fails, such as a propagator of the app's own, is logged and stops no message.

    Made by `start_telemetry`, only where somebody measures or traces: a manager that has none does nothing of this.
    """

    def __init__(self, reporter: Reporter, instruments: "Instruments | None", tracing: "Tracing | None") -> None:
        self.reporter = reporter
        self._instruments = instruments  # None: only spans are recorded
        self._tracing = tracing  # None: only numbers are recorded
        self._caller_trace = CallerTrace()
        self._failures_said = Seldom()
        number = None if instruments is None else instruments.add(reporter)
        self._here = _attributes(number, "here")
        self._elsewhere = _attributes(number, "other_node")

    def trace(self) -> TraceContext | None:
        """Return what an envelope that is published now tells about its trace."""
        return None if self._tracing is None else self._caller_trace.get()

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

    def hear(
        self,
        deliver: Deliver,
        outboxes: Collection[Outbox],
        envelope: Envelope,
        content: Message | Close,
        excluded: frozenset[str],
    ) -> None:
        """Deliver what was published on another node, in a span of its own if that was in one."""
        end = self._begin_span(envelope)
        reached = 0
        try:
            reached = self._measure(self._elsewhere, deliver, envelope.target, outboxes, content, excluded)
        finally:
            end(reached)

    def stop(self, stats: Stats) -> None:
        """Report how the manager ended, and nothing more."""
        self.reporter.end(stats)

    def _begin_span(self, envelope: Envelope) -> Callable[[int], None]:
        """Begin the span in which an envelope is delivered, if there is to be one; return what ends it."""
        try:
            hearing = None if self._tracing is None else self._tracing.hearing(envelope)
            if hearing is None:
                return _do_nothing
            span = hearing.__enter__()
        except Exception as error:  # noqa: BLE001 - whatever the app's propagators, samplers and processors raise
            self._log(error)
            return _do_nothing

        def end(reached: int) -> None:
            try:
                span.set_attribute(RECIPIENTS, reached)
                hearing.__exit__(None, None, None)
            except Exception as error:  # noqa: BLE001 - as above
                self._log(error)

        return end

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
        seconds = perf_counter() - began
        try:
            self._instruments.record(seconds, reached, attributes[target.kind])
        except Exception as error:  # noqa: BLE001 - whatever the app's meter provider raises
            self._log(error)
        return reached

    def _log(self, error: Exception) -> None:
        if self._failures_said.is_due(perf_counter()):
            logger.warning("OpenTelemetry failed; messages go on without it (said once a minute)", exc_info=error)


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


def _do_nothing(_reached: int) -> None:
    """End no span."""


def _attributes(number: int | None, source: str) -> dict[TargetKind, dict[str, str | int]]:
    """Return the attributes of a broadcast by the kind of its target, made once."""
    if number is None:
        return {}
    return {kind: {MANAGER: number, TARGET: kind.name.lower(), SOURCE: source} for kind in TargetKind}
