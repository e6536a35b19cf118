"""How a node is doing: one snapshot for people and for metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.registry import Registry


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers of one node. What is counted is counted since the manager was made."""

    connections: int
    """Connections now, with those whose handshake is being answered."""
    users: int
    """Users with a connection now."""
    rooms: int
    """Rooms with a member now."""
    closing: int
    """Connections that have ended and whose socket is still there: their clients do not answer the close frame, or do
    not take it. They count for `max_connections` and `max_connections_per_address`."""
    queued_messages: int
    """Messages that wait for their recipients now."""
    queued_bytes: int
    """The bytes of these messages, counted for each recipient although the bytes are shared."""
    sent_messages: int
    """Messages handed to outboxes, one for each recipient."""
    received_messages: int
    """Messages of clients that were read and not dropped for their rate or size."""
    dropped: Mapping[str, int]
    """Messages that were not delivered or not handled, by reason: `lost`, `rate_limited`, `invalid`, `oversized`,
    `unhandled`."""
    closed: Mapping[str, int]
    """Connections that were ended for a reason: `slow_consumer`, `stalled`, `full_inbox`, `flooding`, `silent`,
    `expired`, `invalid_data`, `lifetime`, `replaced`, `restart`, `by_server`."""
    refused: Mapping[str, int]
    """Handshakes and joins that were refused, by reason: each `Refusal`."""
    is_draining: bool
    """Whether new connections are refused, since the node is being stopped."""
    backend: BackendStatus | None
    """Whether it hears the other nodes; None on a node that has none."""
    behind_seconds: float = 0.0
    """For how long something has waited now for its turn to be written, since this node is behind and not the peers."""

    @classmethod
    def of(
        cls,
        registry: Registry,
        counters: Counters,
        *,
        is_draining: bool,
        backend: BackendStatus | None,
        closing: int = 0,
        behind_seconds: float = 0.0,
    ) -> Self:
        """Return the numbers as they are now."""
        messages = size = 0
        for outbox in registry.outboxes(EVERYBODY):
            waiting = outbox.queued()
            if waiting is not None:
                messages += waiting[0]
                size += waiting[1]
        return cls(
            connections=len(registry),
            users=len(registry.users()),
            rooms=len(registry.rooms()),
            closing=closing,
            queued_messages=messages,
            queued_bytes=size,
            sent_messages=counters.sent_messages,
            received_messages=counters.received_messages,
            dropped={
                "lost": counters.lost_messages,
                "rate_limited": counters.rate_limited_messages,
                "invalid": counters.invalid_messages,
                "oversized": counters.oversized_messages,
                "unhandled": counters.unhandled_messages,
            },
            closed={
                "slow_consumer": counters.slow_consumers,
                "stalled": counters.aborted,
                "full_inbox": counters.full_inboxes,
                "flooding": counters.flooders,
                "silent": counters.silent,
                "expired": counters.expired,
                "invalid_data": counters.unreadable,
                "lifetime": counters.outlived,
                "replaced": counters.replaced,
                "restart": counters.restarted,
                "by_server": counters.closed_by_server,
            },
            refused={reason.value: counters.refused[reason] for reason in Refusal},
            is_draining=is_draining,
            backend=backend,
            behind_seconds=behind_seconds,
        )
