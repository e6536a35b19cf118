"""What a client has sent and its handler has not taken yet: a bounded queue with one reader in front."""

import asyncio

from fastapi_rooms.domain.settings import RoomsSettings

Payload = str | bytes


class Inbox:
    """A queue with one producer and one consumer. `put` never waits: the producer asks `is_full`, then waits."""

    __slots__ = ("_consumer", "_producer", "_queue", "_queued_bytes", "_settings", "has_ended")

    def __init__(self, settings: RoomsSettings) -> None:
        self._settings = settings
        self._queue: list[tuple[Payload, int]] = []  # short, and mostly empty: a deque takes 0.7 KB even then
        self._queued_bytes = 0
        self.has_ended = False  # nothing more will be put; written by `end`
        self._consumer: asyncio.Future[None] | None = None  # waits for a payload
        self._producer: asyncio.Future[None] | None = None  # waits for space

    @property
    def is_full(self) -> bool:
        """Whether the producer has to wait: the limits are reached."""
        return len(self._queue) >= self._settings.inbox_messages or self._queued_bytes >= self._settings.inbox_bytes

    def put(self, payload: Payload, size: int) -> None:
        """Queue what the client sent; `size` in bytes."""
        if self.has_ended:
            return
        self._queue.append((payload, size))
        self._queued_bytes += size
        _wake(self._consumer)

    def put_back(self, payload: Payload, size: int) -> None:
        """Queue in front of all others what was taken and not handled, even if the inbox is full or has ended."""
        self._queue.insert(0, (payload, size))
        self._queued_bytes += size

    async def get(self) -> Payload | None:
        """Take the next payload, in order; None once the inbox has ended and is empty."""
        while not self._queue:
            if self.has_ended:
                return None
            self._consumer = asyncio.get_running_loop().create_future()
            await self._consumer
        payload, size = self._queue.pop(0)
        self._queued_bytes -= size
        _wake(self._producer)
        return payload

    async def space(self) -> None:
        """Wait until the inbox is not full, or has ended."""
        while self.is_full and not self.has_ended:
            self._producer = asyncio.get_running_loop().create_future()
            await self._producer

    def end(self) -> None:
        """Let nothing more in; what is queued can still be taken. Idempotent."""
        self.has_ended = True
        _wake(self._consumer)
        _wake(self._producer)

    def end_and_drop(self) -> int:
        """End, and drop what is queued; return how many messages that was."""
        count = len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        self.end()
        return count


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
