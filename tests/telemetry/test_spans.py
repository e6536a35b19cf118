"""Spans on one node that lead to what was published on another."""

import asyncio
import json

import pytest
from engine.fakes import connected, texts
from opentelemetry import propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState
from support import until

from fastapi_rooms import DistributedWebSocketManager, Publisher, RoomsSettings
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, TraceContext, decode, room_target
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.testing import LocalCluster

OTHER_NODE = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def nodes(spans):
    """Two managers that trace, a member of the kitchen on the second, and what it hears."""
    managers = [DistributedWebSocketManager(backend) for backend in LocalCluster()]
    for manager in managers:
        await manager.start()
    yield managers
    for manager in managers:
        await manager.stop()


@pytest.fixture
def published(nodes, monkeypatch):
    """The envelopes that the first node publishes."""
    envelopes = []
    publish = nodes[0]._backend.publish

    def note(envelope):
        envelopes.append(envelope)
        return publish(envelope)

    monkeypatch.setattr(nodes[0]._backend, "publish", note)
    return envelopes


async def test_what_is_heard_links_to_what_was_published(nodes, spans):
    here, there = nodes
    peers = [(await connected(there, "kitchen"))[0] for _ in range(2)]
    with spans.tracer.start_as_current_span("a request") as request:
        await here.broadcast_to_room("kitchen", "hello")
        await until(lambda: all(peer.texts for peer in peers))
    (span,) = spans.delivered()
    assert span.kind is SpanKind.CONSUMER
    assert span.parent is None
    (link,) = span.links
    context = request.get_span_context()
    assert (link.context.trace_id, link.context.span_id) == (context.trace_id, context.span_id)
    assert link.context.is_remote
    assert span.context.trace_id != context.trace_id
    assert span.attributes == {
        "fastapi_rooms.target": "room",
        "fastapi_rooms.origin": here.node_id,
        "fastapi_rooms.recipients": 2,
    }


@pytest.mark.parametrize(
    ("call", "target"),
    [
        (lambda manager: manager.broadcast("x"), "all"),
        (lambda manager: manager.send_to_user("ann", "x"), "user"),
        (lambda manager: manager.send_personal(OTHER_NODE, "x"), "connection"),
        (lambda manager: manager.close_room("kitchen"), "room"),
    ],
)
async def test_whatever_is_published_links(nodes, spans, call, target):
    here, there = nodes
    await connected(there, "kitchen", "ann")
    with spans.tracer.start_as_current_span("a request"):
        await call(here)
    await until(spans.delivered)
    assert [span.attributes["fastapi_rooms.target"] for span in spans.delivered()] == [target]


async def test_a_trace_state_travels_along(nodes, spans):
    here, there = nodes
    await connected(there, "kitchen")
    context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("rojo", "a1")]))
    with trace.use_span(NonRecordingSpan(context)):
        await here.broadcast_to_room("kitchen", "hello")
    await until(spans.delivered)
    (link,) = spans.delivered()[0].links
    assert link.context.trace_state.to_header() == "rojo=a1"


async def test_outside_of_a_span_nothing_is_added(nodes, spans, published):
    here, there = nodes
    peer, _ = await connected(there, "kitchen")
    await here.broadcast_to_room("kitchen", "hello")
    await until(lambda: peer.texts)
    assert [envelope.trace for envelope in published] == [None]
    assert published[0].encode()[2] == 1
    assert not spans.delivered()


async def test_what_a_publisher_without_connections_sends_links_too(spans):
    one, other = LocalCluster()
    there = DistributedWebSocketManager(other)
    await there.start()
    await connected(there, "kitchen")
    async with Publisher(one) as publisher:
        with spans.tracer.start_as_current_span("a job") as job:
            await publisher.broadcast_to_room("kitchen", "hello")
        await until(spans.delivered)
        (link,) = spans.delivered()[0].links
        context = job.get_span_context()
        assert (link.context.trace_id, link.context.span_id) == (context.trace_id, context.span_id)
        await publisher.broadcast_to_room("kitchen", "outside")
    await there.stop()
    assert len(spans.delivered()) == 1


async def test_a_span_that_is_not_sampled_leads_nowhere(nodes, spans, published):
    unsampled = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0))
    with trace.use_span(NonRecordingSpan(unsampled)):
        await nodes[0].broadcast("hello")
    assert published[0].trace is None


async def test_what_the_apps_propagators_do_not_pass_on_does_not_travel(nodes, spans, published, monkeypatch):
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", CompositePropagator([]))
    with spans.tracer.start_as_current_span("a request"):
        await nodes[0].broadcast("hello")
    assert published[0].trace is None


@pytest.mark.parametrize("traceparent", ["nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ÿ" * 512, "00-" * 170])
async def test_a_broken_trace_does_not_stop_a_message(nodes, spans, traceparent):
    _, there = nodes
    peer, _ = await connected(there, "kitchen")
    broken = TraceContext(traceparent, "=,=;" * 100)
    data = Envelope(OTHER_NODE, room_target("kitchen"), Message(b"hello", is_text=True), trace=broken).encode()
    there._hear(decode(data))
    assert await texts(peer) == [["hello"]]
    assert not spans.delivered()


class Failing(CompositePropagator):
    """A propagator of an app, which fails."""

    def inject(self, *_args, **_options):
        raise RuntimeError("no propagation today")

    extract = inject


@pytest.mark.parametrize("times", [1, 3])
async def test_a_propagator_that_fails_stops_no_message(nodes, spans, published, monkeypatch, caplog, times):
    here, there = nodes
    peers = [(await connected(node, "kitchen"))[0] for node in nodes]
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Failing([]))
    with spans.tracer.start_as_current_span("a request"):
        for _ in range(times):
            assert await here.broadcast_to_room("kitchen", "hello") == 1
            traced = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            there._hear(Envelope(OTHER_NODE, room_target("kitchen"), Message(b"heard", is_text=True), trace=traced))
    await until(lambda: len(peers[1].texts) == 2 * times)
    assert peers[0].texts == ["hello"] * times
    assert [envelope.trace for envelope in published] == [None] * times
    assert not spans.delivered()
    assert caplog.text.count("RuntimeError: no propagation today") == 2, "once a minute on each node"


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
async def test_a_span_processor_that_fails_stops_no_message(nodes, spans, monkeypatch, caplog, moment):
    class Processor(SpanProcessor):
        """One of an app, which fails."""

    def fail(*_args, **_options):
        raise RuntimeError("no spans today")

    monkeypatch.setattr(Processor, moment, fail)
    peer, _ = await connected(nodes[1], "kitchen")
    spans.provider.add_span_processor(Processor())
    traced = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    for _ in range(2):
        nodes[1]._hear(Envelope(OTHER_NODE, room_target("kitchen"), Message(b"heard", is_text=True), trace=traced))
    assert await texts(peer) == [["heard"] * 2]
    assert caplog.text.count("RuntimeError: no spans today") == 1
    assert not trace.get_current_span().get_span_context().is_valid


async def test_the_listeners_own_context_is_no_parent(nodes, spans):
    traced = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    with spans.tracer.start_as_current_span("whatever goes on there"):
        nodes[1]._hear(Envelope(OTHER_NODE, EVERYBODY, Message(b"hello", is_text=True), trace=traced))
    (span,) = spans.delivered()
    assert span.parent is None


async def test_no_room_and_no_user_is_named(nodes, spans):
    here, there = nodes
    peer, _ = await connected(there, "a secret room", "a secret user")
    with spans.tracer.start_as_current_span("a request"):
        await here.broadcast_to_room("a secret room", "a secret message")
        await here.send_to_user("a secret user", "a secret message")
    await until(lambda: len(peer.texts) == 2)
    assert len(spans.delivered()) == 2
    assert "secret" not in spans.json()


async def test_spans_and_numbers_together(numbers, nodes, spans):
    here, there = nodes
    peer, _ = await connected(there, "kitchen")
    with spans.tracer.start_as_current_span("a request"):
        await here.broadcast_to_room("kitchen", "hello")
    await until(lambda: peer.texts)
    assert spans.delivered()[0].attributes["fastapi_rooms.recipients"] == 1
    assert sum(count for count, _ in numbers.points()["fastapi_rooms.broadcast.recipients"].values()) == 2


async def test_without_a_tracer_provider_no_trace_travels(numbers):
    here, there = managers = [DistributedWebSocketManager(backend) for backend in LocalCluster()]
    for manager in managers:
        await manager.start()
    peer, _ = await connected(there, "kitchen")
    sampled = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(sampled)):
        assert here._parts.delivery.telemetry.trace() is None
        await here.broadcast_to_room("kitchen", "hello")
    await until(lambda: peer.texts)
    for manager in managers:
        await manager.stop()


async def test_over_a_real_broker(shared_broker, numbers, spans):
    settings = RoomsSettings(key_prefix="test_spans")
    here, there = managers = [DistributedWebSocketManager(shared_broker.url, settings=settings) for _ in range(2)]
    for manager in managers:
        await manager.start(required=True)
    peer, _ = await connected(there, "kitchen")
    with spans.tracer.start_as_current_span("a request") as request:
        await here.broadcast_to_room("kitchen", "hello")
    async with asyncio.timeout(5):
        while not peer.texts:
            await asyncio.sleep(0.005)
    await here.broadcast_to_room("kitchen", "outside")
    async with asyncio.timeout(5):
        while len(peer.texts) < 2:
            await asyncio.sleep(0.005)
    (span,) = spans.delivered()
    assert span.links[0].context.span_id == request.get_span_context().span_id
    assert json.loads(span.to_json())["attributes"]["fastapi_rooms.origin"] == here.node_id
    points = numbers.points()
    assert set(points["fastapi_rooms.backend.connected"].values()) == {1}
    probes = {manager.status.probe_seconds for manager in managers}
    assert set(points["fastapi_rooms.backend.probe.duration"].values()) == probes
    assert there.status.undecodable == 0
    for manager in managers:
        await manager.stop()
