"""What a peer that is behind has not been sent yet, and whether that is too much.

However much is offered within one tick, a healthy peer is not taken for a slow one: what had gathered when the peer was
found to be behind is an *allowance* on top of the limits until it is written. So the bound on memory is the limit plus
what single ticks offered, and messages are shared between outboxes.
"""

from fastapi_rooms.domain.messages import Message
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.outbound.batch import Batch


class Backlog:
    """A queue of messages, with the sizes by which it is judged.

    Args:
        burst: What is allowed on top of the limits.

    Attributes:
        bytes: The bytes of the messages that wait.
    """

    __slots__ = ("_allowed_bytes", "_allowed_messages", "_messages", "bytes")

    def __init__(self, burst: Batch) -> None:
        self._messages: list[Message] = []  # oldest first
        self.bytes = 0
        self._allowed_messages = len(burst)  # still to be written
        self._allowed_bytes = burst.size

    def __len__(self) -> int:
        return len(self._messages)

    def allow(self, pending: Batch) -> None:
        """Hold nothing of what waits now against the peer: neither what is queued nor what is pending behind it."""
        self._allowed_messages = len(self._messages) + len(pending)
        self._allowed_bytes = self.bytes + pending.size

    def use_up(self, batch: Batch) -> None:
        """Shrink the allowance by what is written."""
        self._allowed_messages = max(0, self._allowed_messages - len(batch))
        self._allowed_bytes = max(0, self._allowed_bytes - batch.size)

    def exceeds(self, limits: RoomsSettings) -> bool:
        """Return whether more waits than may."""
        return (
            len(self._messages) > limits.outbox_messages + self._allowed_messages
            or self.bytes > limits.outbox_bytes + self._allowed_bytes
        )

    def add(self, batch: Batch) -> None:
        """Queue what was offered in one tick."""
        self._messages += batch.messages()
        self.bytes += batch.size

    def take(self, size: int) -> Batch:
        """Take messages of about `size` bytes off the front, one at least."""
        count = 0
        for message in self._messages:
            if count and size < message.size:
                break
            size -= message.size
            count += 1
        batch = Batch.of(self._messages[:count])
        del self._messages[:count]
        self.bytes -= batch.size
        return batch

    def replace_oldest(self, message: Message, limits: RoomsSettings) -> int:
        """Give up the oldest messages until another fits, and queue it; return how many were given up."""
        messages = limits.outbox_messages - 1
        size = limits.outbox_bytes - message.size
        dropped = 0
        for oldest in self._messages:
            if len(self._messages) - dropped <= messages and self.bytes <= size:
                break
            self.bytes -= oldest.size
            dropped += 1
        del self._messages[:dropped]
        self._allowed_messages = self._allowed_bytes = 0
        self._messages.append(message)
        self.bytes += message.size
        return dropped
