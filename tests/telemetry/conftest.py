"""OpenTelemetry's own SDK in memory, in place of what is set for the process, which can be set once alone."""

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Numbers:
    """What a reader of metrics is given."""

    def __init__(self, provider, reader):
        self.provider = provider
        self.reader = reader

    def metrics(self):
        """Collect, here and now: the metrics by their names, without those of which there is nothing to say."""
        data = self.reader.get_metrics_data()
        scopes = [] if data is None else [scope for one in data.resource_metrics for scope in one.scope_metrics]
        assert all(scope.scope.name == "fastapi_rooms" for scope in scopes)
        return {metric.name: metric for scope in scopes for metric in scope.metrics if metric.data.data_points}

    def points(self):
        """Collect: attributes and value of each data point, by the name of its metric."""
        return {
            name: {tuple(sorted(point.attributes.items())): _value(point) for point in metric.data.data_points}
            for name, metric in self.metrics().items()
        }

    def json(self):
        data = self.reader.get_metrics_data()
        return "" if data is None else data.to_json()


def _value(point):
    return (point.count, point.sum) if hasattr(point, "bucket_counts") else point.value


def meter_provider():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    return Numbers(provider, reader)


@pytest.fixture
def numbers(monkeypatch):
    """Metrics are measured."""
    made = meter_provider()
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: made.provider)
    yield made
    made.provider.shutdown()


class Spans:
    """What an exporter of spans is given."""

    def __init__(self):
        self.provider = TracerProvider()
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("an app")

    def delivered(self):
        return [span for span in self._exporter.get_finished_spans() if span.name == "fastapi_rooms deliver"]

    def json(self):
        return "".join(span.to_json() for span in self._exporter.get_finished_spans())


@pytest.fixture
def spans(monkeypatch):
    """Spans are recorded."""
    made = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made.provider)
    yield made
    made.provider.shutdown()
