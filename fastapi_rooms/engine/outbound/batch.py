"""Messages that leave together: what one connection is to be sent at the end of this tick.

A batch is never changed; `then` makes a longer one. So all connections that were offered the same messages in a tick,
which is nearly everybody in a busy room, hold the same batch, and its frames are joined once for all of them.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from fastapi_rooms.domain.messages import Message


class Batch:
    """A sequence of messages, linked from its end.

    Attributes:
        size: The bytes of all payloads.
        largest: The bytes of the largest.
    """

    __slots__ = ("_before", "_count", "_frames", "_message", "largest", "size")

    def __init__(self, before: "Batch | None" = None, message: Message | None = None) -> None:
        self._before = before  # None: this is an empty one
        self._message = message
        self._count: int = 0 if before is None else before._count + 1
        self.size: int = 0 if before is None or message is None else before.size + message.size
        self.largest: int = 0 if before is None or message is None else max(before.largest, message.size)
        self._frames: bytes | None = None  # built by the first `frames()`

    @classmethod
    def of(cls, messages: Iterable[Message]) -> "Batch":
        """Return the batch of these messages."""
        batch = EMPTY
        for message in messages:
            batch = cls(batch, message)
        return batch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages())

    def __repr__(self) -> str:
        return f"<Batch of {self._count} messages, {self.size} B>"

    def then(self, message: Message) -> "Batch":
        """Return the batch that ends with one more message."""
        return Batch(self, message)

    def messages(self) -> list[Message]:
        """Return the messages in their order."""
        messages = []
        batch: Batch | None = self
        while batch is not None and batch._message is not None:
            messages.append(batch._message)
            batch = batch._before
        messages.reverse()
        return messages

    def frames(self) -> bytes:
        """Return all frames as one piece; joined once."""
        if self._frames is None:
            message = self._message
            if self._count == 1 and message is not None:
                self._frames = message.frame()
            else:
                self._frames = b"".join([message.frame() for message in self.messages()])
        return self._frames


EMPTY: Final = Batch()
"""Nothing waits."""

REFUSING: Final = Batch()
"""In place of a batch: nothing may be added without asking the outbox."""
