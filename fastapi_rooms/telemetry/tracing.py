"""Spans that lead from one node to another."""

from contextlib import AbstractContextManager

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Tracer

from fastapi_rooms.domain.envelope import Envelope, TraceContext
from fastapi_rooms.telemetry.catalogue import ORIGIN, TARGET
from fastapi_rooms.telemetry.instruments import is_of_api

SPAN = "fastapi_rooms deliver"


class Tracing:
    """Makes the spans in which a node delivers what others have published."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def hearing(self, envelope: Envelope) -> AbstractContextManager[Span] | None:
        """Return the span in which an envelope is delivered; None if it was not published in one.

        It begins a trace of its own, linked to the publisher's: one message may be heard by many nodes, and the
        publisher's trace has nobody wait for them.
        """
        publisher = None if envelope.trace is None else _publisher(envelope.trace)
        if publisher is None:
            return None
        attributes = {TARGET: envelope.target.kind.name.lower(), ORIGIN: envelope.origin}
        return self._tracer.start_as_current_span(SPAN, Context(), SpanKind.CONSUMER, attributes, [Link(publisher)])


def current_tracing() -> Tracing | None:
    """Return how the tracer provider that is set is used; None if there is none that records."""
    provider = trace.get_tracer_provider()
    if is_of_api(provider):
        return None
    tracer = provider.get_tracer("fastapi_rooms")
    return None if is_of_api(tracer) else Tracing(tracer)  # it is of the API with OTEL_SDK_DISABLED


def _publisher(published: TraceContext) -> SpanContext | None:
    carrier = {"traceparent": published.traceparent}
    if published.tracestate:
        carrier["tracestate"] = published.tracestate
    found = trace.get_current_span(propagate.extract(carrier, Context())).get_span_context()
    return found if found.is_valid else None
