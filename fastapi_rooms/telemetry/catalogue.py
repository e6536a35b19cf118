"""What is measured: names, units, and where in a node's stats each number is. Knows no OpenTelemetry.

No attribute ever holds the name of a room or a user: there is no end of them, and they are nobody's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.stats import Stats

MANAGER = "fastapi_rooms.manager"
"""Which manager of the process, counted from 0: nearly always there is one, so its series are the same ever after."""
REASON = "fastapi_rooms.reason"
"""Why something was dropped, closed or refused."""
TARGET = "fastapi_rooms.target"
"""Whom a message was for: `all`, `room` or `user`, never which."""
SOURCE = "fastapi_rooms.source"
"""Where a message was sent: `here`, or on an `other_node`."""
ORIGIN = "fastapi_rooms.origin"
"""The `node_id` of the node that published. Of spans alone: each node would have series of its own."""
RECIPIENTS = "fastapi_rooms.recipients"
"""How many connections a span has handed its message to."""

Reading = float | Mapping[str, float] | None
"""A number, numbers by reason, or nothing where there is nothing to say."""


class Kind(StrEnum):
    """What an instrument is to OpenTelemetry. All of these are asked when somebody collects."""

    COUNTER = "counter"
    """Only grows, since the manager was made."""
    UP_DOWN_COUNTER = "up-down counter"
    """How many there are now; the sum over nodes means something."""
    GAUGE = "gauge"
    """How something is now; the sum over nodes means nothing."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a node, read from its stats when somebody collects."""

    name: str
    kind: Kind
    unit: str
    description: str
    read: Callable[[Stats], Reading]
    attributes: tuple[str, ...] = (MANAGER,)


@dataclass(frozen=True, slots=True)
class Histogram:
    """What is recorded with each broadcast."""

    name: str
    unit: str
    description: str
    boundaries: tuple[float, ...]
    attributes: tuple[str, ...] = (MANAGER, TARGET, SOURCE)


def _of_backend(read: Callable[[BackendStatus], float | None]) -> Callable[[Stats], Reading]:
    return lambda stats: None if stats.backend is None else read(stats.backend)


_BY_REASON = (MANAGER, REASON)

METRICS = (
    Metric(
        "fastapi_rooms.connections",
        Kind.UP_DOWN_COUNTER,
        "{connection}",
        "Connections now, with those whose handshake is being answered.",
        lambda stats: stats.connections,
    ),
    Metric(
        "fastapi_rooms.users",
        Kind.UP_DOWN_COUNTER,
        "{user}",
        "Users with a connection on this node now. Somebody on two nodes counts on both.",
        lambda stats: stats.users,
    ),
    Metric(
        "fastapi_rooms.rooms",
        Kind.UP_DOWN_COUNTER,
        "{room}",
        "Rooms with a member on this node now. A room on two nodes counts on both.",
        lambda stats: stats.rooms,
    ),
    Metric(
        "fastapi_rooms.closing.connections",
        Kind.UP_DOWN_COUNTER,
        "{connection}",
        "Connections that have ended and whose socket is still there now.",
        lambda stats: stats.closing,
    ),
    Metric(
        "fastapi_rooms.queued.messages",
        Kind.UP_DOWN_COUNTER,
        "{message}",
        "Messages that wait for their recipients now.",
        lambda stats: stats.queued_messages,
    ),
    Metric(
        "fastapi_rooms.queued.size",
        Kind.UP_DOWN_COUNTER,
        "By",
        "The bytes of these messages, counted for each recipient although the bytes are shared.",
        lambda stats: stats.queued_bytes,
    ),
    Metric(
        "fastapi_rooms.behind.duration",
        Kind.GAUGE,
        "s",
        "For how long something has waited now for its turn to be written, since this node is behind.",
        lambda stats: stats.behind_seconds,
    ),
    Metric(
        "fastapi_rooms.sent.messages",
        Kind.COUNTER,
        "{message}",
        "Messages handed to outboxes, one for each recipient.",
        lambda stats: stats.sent_messages,
    ),
    Metric(
        "fastapi_rooms.received.messages",
        Kind.COUNTER,
        "{message}",
        "Messages of clients that were read and not dropped for their rate or size.",
        lambda stats: stats.received_messages,
    ),
    Metric(
        "fastapi_rooms.dropped.messages",
        Kind.COUNTER,
        "{message}",
        "Messages that were not delivered or not handled.",
        lambda stats: stats.dropped,
        _BY_REASON,
    ),
    Metric(
        "fastapi_rooms.closed.connections",
        Kind.COUNTER,
        "{connection}",
        "Connections that were ended for a reason.",
        lambda stats: stats.closed,
        _BY_REASON,
    ),
    Metric(
        "fastapi_rooms.refusals",
        Kind.COUNTER,
        "{refusal}",
        "Handshakes and joins that were refused.",
        # All of them, so that the first refusal is an increase, and not the beginning of a series.
        lambda stats: stats.refused,
        _BY_REASON,
    ),
    Metric(
        "fastapi_rooms.draining",
        Kind.UP_DOWN_COUNTER,
        "{node}",
        "1 while new connections are refused, since the node is being stopped; 0 otherwise.",
        lambda stats: int(stats.is_draining),
    ),
    Metric(
        "fastapi_rooms.backend.connected",
        Kind.UP_DOWN_COUNTER,
        "{node}",
        "1 while this node hears the others and is heard, 0 while it is degraded.",
        _of_backend(lambda status: int(status.connected)),
    ),
    Metric(
        "fastapi_rooms.backend.probe.duration",
        Kind.GAUGE,
        "s",
        "How long the last probe took from this node through the broker and back.",
        _of_backend(lambda status: status.probe_seconds),
    ),
    Metric(
        "fastapi_rooms.backend.reconnects",
        Kind.COUNTER,
        "{reconnect}",
        "How often a lost connection to the broker was made again.",
        _of_backend(lambda status: status.reconnects),
    ),
    Metric(
        "fastapi_rooms.backend.gaps",
        Kind.COUNTER,
        "{gap}",
        "How often this node may have missed something.",
        _of_backend(lambda status: status.gaps),
    ),
    Metric(
        "fastapi_rooms.backend.undelivered",
        Kind.COUNTER,
        "{envelope}",
        "Publishes that failed, or of which nobody knows whether they arrived.",
        _of_backend(lambda status: status.undelivered),
    ),
    Metric(
        "fastapi_rooms.backend.undecodable",
        Kind.COUNTER,
        "{envelope}",
        "What arrived and was no envelope.",
        _of_backend(lambda status: status.undecodable),
    ),
)

BROADCAST_DURATION = Histogram(
    "fastapi_rooms.broadcast.duration",
    "s",
    "How long it took to hand a message to its recipients on this node; the event loop does nothing else meanwhile.",
    (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1),
)
BROADCAST_RECIPIENTS = Histogram(
    "fastapi_rooms.broadcast.recipients",
    "{connection}",
    "To how many connections of this node a message was handed.",
    (0, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000),
)
HISTOGRAMS = (BROADCAST_DURATION, BROADCAST_RECIPIENTS)
