"""Where in a trace somebody is who publishes."""

import logging
from collections.abc import Callable
from functools import cache
from time import perf_counter

from fastapi_rooms.domain.envelope import TraceContext
from fastapi_rooms.domain.seldom import Seldom

logger = logging.getLogger("fastapi_rooms")


class CallerTrace:
    """Tells what an envelope takes along of the trace in which it is published. Thread-safe."""

    def __init__(self) -> None:
        self._failures_said = Seldom()

    def get(self) -> TraceContext | None:
        """Return where the caller is in a trace; None if that is nowhere, or OpenTelemetry is not there or fails."""
        here = _here()
        if here is None:
            return None
        try:
            return here()
        except Exception as error:
            if self._failures_said.is_due(perf_counter()):
                logger.warning("a trace is not taken along; messages go on (said once a minute)", exc_info=error)
            return None


@cache
def _here() -> Callable[[], TraceContext | None] | None:
    """Return how to ask OpenTelemetry; None if it is not installed. At the first call, since imports do nothing."""
    try:
        from opentelemetry import propagate, trace  # noqa: PLC0415 - the oldest FastAPI does not bring it
    except ImportError:
        return None

    def here() -> TraceContext | None:
        context = trace.get_current_span().get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return None  # nobody will see that trace
        carrier: dict[str, str] = {}
        propagate.inject(carrier)  # by the app's own propagators
        traceparent = carrier.get("traceparent")
        return None if traceparent is None else TraceContext(traceparent, carrier.get("tracestate", ""))

    return here
