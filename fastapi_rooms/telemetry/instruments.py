"""The instruments that OpenTelemetry asks, and those that a broadcast is recorded with."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from weakref import WeakValueDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from fastapi_rooms.telemetry.catalogue import (
    BROADCAST_DURATION,
    BROADCAST_RECIPIENTS,
    MANAGER,
    METRICS,
    REASON,
    Histogram,
    Kind,
    Metric,
    Reading,
)
from fastapi_rooms.telemetry.reporter import Reporter

_API = ("opentelemetry.metrics", "opentelemetry.trace")
"""What is defined there measures and records nothing: the API's own proxies and no-ops."""


class Instruments:
    """The instruments of one meter provider. An instrument cannot be taken back, so all managers share them."""

    def __init__(self, provider: MeterProvider, meter: Meter) -> None:
        self._provider = provider
        self._reporters: dict[int, Reporter] = {}  # by the number of their manager
        self._lock = threading.Lock()  # held while a reporter comes or goes, and while they are listed
        create = {
            Kind.COUNTER: meter.create_observable_counter,
            Kind.UP_DOWN_COUNTER: meter.create_observable_up_down_counter,
            Kind.GAUGE: meter.create_observable_gauge,
        }
        for metric in METRICS:
            create[metric.kind](metric.name, [partial(self._observe, metric)], metric.unit, metric.description)
        self._duration = _create_histogram(meter, BROADCAST_DURATION)
        self._recipients = _create_histogram(meter, BROADCAST_RECIPIENTS)

    def add(self, reporter: Reporter) -> int:
        """Observe a manager from now on, until its reporter ends; return its number, which may have been another's."""
        with self._lock:
            number = next(
                number for number in count() if (other := self._reporters.get(number)) is None or other.is_over
            )
            self._reporters[number] = reporter
        return number

    def record(self, seconds: float, recipients: int, attributes: Mapping[str, str | int]) -> None:
        """Record a broadcast."""
        self._duration.record(seconds, attributes)
        self._recipients.record(recipients, attributes)

    def _observe(self, metric: Metric, _options: CallbackOptions) -> Sequence[Observation]:
        observations: list[Observation] = []
        with self._lock:
            reporters = tuple(self._reporters.items())
        for number, reporter in reporters:
            stats = reporter.read(metric.name)
            if stats is not None:
                observations += _observations(metric.read(stats), number)
            elif reporter.is_over:
                self._forget(number, reporter)
        return observations

    def _forget(self, number: int, reporter: Reporter) -> None:
        with self._lock:
            if self._reporters.get(number) is reporter:
                del self._reporters[number]


def _observations(reading: Reading, number: int) -> list[Observation]:
    if reading is None:
        return []
    if isinstance(reading, int | float):
        return [Observation(reading, {MANAGER: number})]
    return [Observation(value, {MANAGER: number, REASON: reason}) for reason, value in reading.items()]


def _create_histogram(meter: Meter, histogram: Histogram) -> metrics.Histogram:
    return meter.create_histogram(
        histogram.name,
        histogram.unit,
        histogram.description,
        explicit_bucket_boundaries_advisory=histogram.boundaries,
    )


# By the id of their provider. They live as long as it does, since it holds their callbacks, and it as long as they do,
# so that its id is not another's meanwhile.
_known: WeakValueDictionary[int, Instruments] = WeakValueDictionary()
_making = threading.Lock()  # held while instruments are looked up or made


def current_instruments() -> Instruments | None:
    """Return the instruments of the meter provider that is set; None if there is none that measures."""
    provider = metrics.get_meter_provider()
    with _making:
        known = _known.get(id(provider))
        if known is None and not is_of_api(provider):
            meter = provider.get_meter("fastapi_rooms")
            if not is_of_api(meter):  # OTEL_SDK_DISABLED
                known = _known[id(provider)] = Instruments(provider, meter)
    return known


def is_of_api(thing: object) -> bool:
    """Return whether a provider, a meter or a tracer is one of the API's own, which measure and record nothing."""
    return type(thing).__module__.startswith(_API)
