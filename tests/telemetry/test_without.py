"""Where nobody measures, nothing is done."""

import logging
import sys

import pytest
from engine.fakes import connected, texts
from opentelemetry import metrics, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, SpanContext, TraceFlags

from fastapi_rooms import ConnectionManager, DistributedWebSocketManager
from fastapi_rooms.telemetry import caller_trace
from fastapi_rooms.telemetry.caller_trace import CallerTrace
from fastapi_rooms.testing import LocalCluster


def managers():
    return [ConnectionManager(), *(DistributedWebSocketManager(backend) for backend in LocalCluster(1))]


async def check_it_measures_nothing():
    for manager in managers():
        await manager.start()
        assert manager._parts.delivery.telemetry is None
        peer, _ = await connected(manager, "kitchen")
        sampled = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))
        with trace.use_span(NonRecordingSpan(sampled)):
            assert await manager.broadcast_to_room("kitchen", "hello") == 1
        assert await texts(peer) == [["hello"]]
        await manager.stop()
        assert manager._parts.delivery.telemetry is None


async def test_the_api_alone_measures_nothing():
    assert type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")
    meters = list(metrics.get_meter_provider()._meters)  # of others in this process
    await check_it_measures_nothing()
    assert list(metrics.get_meter_provider()._meters) == meters, "not even a proxy of an instrument"


async def test_providers_that_do_nothing_are_none(monkeypatch):
    monkeypatch.setattr(metrics, "get_meter_provider", NoOpMeterProvider)
    monkeypatch.setattr(trace, "get_tracer_provider", NoOpTracerProvider)
    await check_it_measures_nothing()


async def test_an_sdk_that_is_disabled_measures_nothing(monkeypatch):
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    meters, tracers = MeterProvider(), TracerProvider()
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
    await check_it_measures_nothing()
    meters.shutdown()


async def test_without_opentelemetry_everything_works(monkeypatch, numbers, spans):
    for name in list(sys.modules):
        if name in ("fastapi_rooms.telemetry.instruments", "fastapi_rooms.telemetry.tracing"):
            monkeypatch.delitem(sys.modules, name)
        elif name.partition(".")[0] == "opentelemetry":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import opentelemetry  # noqa: F401
    await check_it_measures_nothing()
    caller_trace._here.cache_clear()
    assert CallerTrace().get() is None
    caller_trace._here.cache_clear()


async def test_a_provider_that_fails_is_logged_and_nothing_else_comes_of_it(monkeypatch, caplog):
    def fail():
        raise RuntimeError("configured badly")

    monkeypatch.setattr(metrics, "get_meter_provider", fail)
    await check_it_measures_nothing()
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert "configured badly" in caplog.text


async def test_a_manager_that_is_not_started_is_not_measured(numbers):
    manager = ConnectionManager()
    peer, _ = await connected(manager, "kitchen")
    await manager.broadcast("hello")
    assert await texts(peer) == [["hello"]]
    assert numbers.points() == {}
    await manager.stop()


async def test_one_that_did_not_begin_is_not_measured(numbers):
    cluster = LocalCluster(1)
    cluster.cut(0)
    manager = DistributedWebSocketManager(cluster.backends[0])
    with pytest.raises(Exception, match="cut off"):
        await manager.start(required=True)
    assert manager._parts.delivery.telemetry is None
    assert numbers.points() == {}
