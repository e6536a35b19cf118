"""What a node counts: everything lost, everybody refused."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Self

from fastapi_rooms.domain.refusal import Refusal


@dataclass(slots=True)
class Counters:
    """Counts of one node since it was made."""

    sent_messages: int = 0
    """Messages handed to outboxes, one for each recipient."""
    received_messages: int = 0
    """Messages of clients that were read and not dropped for their rate or size."""
    lost_messages: int = 0
    """Messages that an outbox had accepted or was offered, and that were not written: dropped, or the peer was gone."""
    slow_consumers: int = 0
    """Connections closed with 1013 because their outbox overflowed, be it since this node was behind, or they took no
    byte for `send_timeout` where the server offers no way to abort them."""
    aborted: int = 0
    """Connections aborted because they took no byte for `send_timeout`, or asked for more pongs than they took. Who had
    been closed for a reason that is counted is not counted once more."""
    invalid_messages: int = 0
    """Messages of clients that did not fit the type that the handler takes."""
    oversized_messages: int = 0
    """Messages of clients above `max_message_bytes`."""
    unhandled_messages: int = 0
    """Messages of clients that had been read when their connection ended, and that no handler took any more."""
    full_inboxes: int = 0
    """Connections closed with 1013 because their inbox stayed full for `inbox_timeout`."""
    rate_limited_messages: int = 0
    """Messages of clients above `messages_per_second`: dropped."""
    flooders: int = 0
    """Connections closed with 1008 because they did not slow down."""
    silent: int = 0
    """Connections closed with 4408: no first message, or no answer to a ping message."""
    expired: int = 0
    """Connections closed with 4401 because their credentials had expired."""
    unreadable: int = 0
    """Connections closed with 1007 because `max_invalid_messages` in a row did not fit."""
    outlived: int = 0
    """Connections closed with 1000 because they were `max_connection_seconds` old."""
    replaced: int = 0
    """Connections closed with 4509 because their user connected once more."""
    restarted: int = 0
    """Connections closed with 1012 because the node was stopped."""
    closed_by_server: int = 0
    """Connections that the server closed by itself: no pong in time (1011), or what it could or would not read."""
    refused: Counter[Refusal] = field(default_factory=Counter)
    """Handshakes and joins that were refused, by reason."""

    def copy(self) -> Self:
        """Return the counts as they are now."""
        return replace(self, refused=Counter(self.refused))
