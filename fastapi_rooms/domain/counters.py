"""What a node counts: everything lost, everybody refused."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts of one node since it was made."""

    lost_messages: int = 0
    """Messages that an outbox had accepted or was offered, and that were not written: dropped, or the peer was gone."""
    slow_consumers: int = 0
    """Connections closed with 1013 because their outbox overflowed."""
    aborted: int = 0
    """Connections aborted because they took no byte for `send_timeout`."""
    invalid_messages: int = 0
    """Messages of clients that did not fit the type that the handler takes."""
    oversized_messages: int = 0
    """Messages of clients above `max_message_bytes`."""
    full_inboxes: int = 0
    """Connections closed with 1013 because their inbox stayed full for `inbox_timeout`."""
