"""What was offered to one connection and is not known to be written: whether more may be, and what is next.

Nothing here writes: see `Outbox`, which is one of these. It is a base, and not a part, since a part would be an object
and a look-up for every connection, in the loop of a broadcast. Two small machines:

- its **life** (`Life`): it takes offers, then it writes what it has and a close frame, then it is done;
- the **gate** (`pending`): a batch that grows, or REFUSING, when offers have to ask. It is shut while the backlog is
  over the limits, and for good at the end of the life.

What is offered while the peer is behind waits in a `Backlog`, which there is only as long as something is in it.
"""

import asyncio
from enum import Enum
from typing import Any, Protocol

from fastapi_rooms.domain.connection import Verdict
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.domain.settings import Overflow, RoomsSettings
from fastapi_rooms.engine.outbound.backlog import Backlog
from fastapi_rooms.engine.outbound.batch import EMPTY, REFUSING, Batch


class Life(Enum):
    """How far an outbox has come. It only ever moves down this list."""

    TAKING = "taking"
    """It takes offers."""
    SEALED = "sealed"
    """It takes no more, and writes what it has, then the close frame, if there is to be one."""
    DONE = "done"
    """Nothing will be written any more. The server may still hold bytes."""


TAKING, _SEALED, DONE = Life  # looked up once: on Python 3.11 each look into an Enum is a call


class Flushes(Protocol):
    """Who is told that something waits."""

    def add(self, outbox: Any) -> None:
        """Flush an outbox at the end of this tick. It is more of it than what is known here."""
        ...


class BoundedQueue:
    """Takes offers, and judges what waits.

    Args:
        settings: How much may wait, and what is done when more does.
        counters: Where is counted what is lost.
        flusher: Told once something waits.

    Attributes:
        settings: Those of its connection.
        life: How far it has come.
        pending: The gate: what was offered in this tick. EMPTY: the flusher need not call; REFUSING: ask `offer`.
    """

    __slots__ = ("_backlog", "_burst", "_counters", "_done", "_flusher", "_in_flight", "life", "pending", "settings")

    def __init__(self, settings: RoomsSettings, counters: Counters, flusher: Flushes) -> None:
        self.settings = settings
        self._counters = counters
        self._flusher = flusher
        self.life = TAKING
        self.pending: Batch = EMPTY
        self._backlog: Backlog | None = None  # what waits before what is pending; None: nothing does
        self._burst = EMPTY  # what was pending when the peer was found behind; EMPTY once it is written or in a backlog
        self._in_flight = EMPTY  # the last of `_next_batch`; EMPTY: whoever writes has written it
        self._done: asyncio.Event | None = None  # made by the first `wait_until_done`; set with `Life.DONE`

    def __len__(self) -> int:
        return len(self.pending) + (0 if self._backlog is None else len(self._backlog))

    @property
    def size(self) -> int:
        """The bytes of the messages that wait."""
        return self.pending.size + (0 if self._backlog is None else self._backlog.bytes)

    def queued(self) -> tuple[int, int] | None:
        """Return how many messages wait, and their bytes; None if nothing does."""
        count = len(self)
        return (count, self.size) if count else None

    @property
    def is_done(self) -> bool:
        """Whether nothing will be written any more; the server may still hold bytes."""
        return self.life is DONE

    @property
    def is_over(self) -> bool:
        """Whether what waits exceeds the limits, so that the policy decides about the next offer."""
        return self.pending is REFUSING and self.life is TAKING

    def offer(self, message: Message) -> Verdict:
        """Let a message wait for the end of this tick. Never waits itself. For many, see `fan_out`."""
        if self.pending is not REFUSING:
            if self.pending is EMPTY:
                self._flusher.add(self)
            self.pending = self.pending.then(message)
            return Verdict.ACCEPTED
        if self.life is not TAKING:
            return Verdict.GONE
        if self.settings.overflow is Overflow.DROP_OLDEST:
            assert self._backlog is not None, "the gate is shut for what it holds"
            self._counters.lost_messages += self._backlog.replace_oldest(message, self.settings)
            self._flusher.add(self)  # judged anew at the end of the tick
            return Verdict.ACCEPTED
        self._counters.lost_messages += 1
        return Verdict.OVERFLOW if self.settings.overflow is Overflow.CLOSE else Verdict.DROPPED

    async def wait_until_done(self) -> None:
        """Wait until nothing will be written any more: the close frame is out, or the peer is gone or aborted."""
        if self.life is DONE:
            return
        if self._done is None:
            self._done = asyncio.Event()
        await self._done.wait()

    # Called by the outbox that this is

    def _next_batch(self, size: int) -> Batch | None:
        """Take what is to be written next, about `size` bytes and at least one message; None: nothing waits."""
        pending = self.pending
        count = len(pending)
        if self._backlog is not None or (count > 1 and pending.size > size):
            self._queue_pending()
            assert self._backlog is not None, "there was one, or there is one now"
            batch = self._backlog.take(size)
            if not self._backlog:
                self._backlog = None
        elif count:
            batch = pending  # what everybody was offered, as it is
            self.pending = self._burst = EMPTY
        else:
            return None
        self._in_flight = batch
        return batch

    def _allow(self) -> None:
        """Hold nothing of what waits now against the peer."""
        if self._backlog is None:
            self._burst = self.pending  # on ASGI each message comes through here: no object for what is never queued
        else:
            self._backlog.allow(self.pending)

    def _judge(self) -> None:
        """Shut the gate, or open it: does more wait than may?"""
        self._queue_pending()
        if self._backlog is not None and self._backlog.exceeds(self.settings):
            self.pending = REFUSING
        else:
            self._open_gate()

    def _open_gate(self) -> None:
        if self.pending is REFUSING and self.life is TAKING:
            self.pending = EMPTY

    def _take_no_more(self) -> None:
        """Shut the gate for good."""
        self._queue_pending()
        self.life = _SEALED if self.life is TAKING else self.life
        self.pending = REFUSING

    def _lose(self) -> None:
        """Drop what waits, and what is not known to be written, and count it."""
        self._counters.lost_messages += len(self) + len(self._in_flight)
        self._backlog, self._in_flight = None, EMPTY

    def _end(self) -> bool:
        """Be done; return whether it was not before."""
        if self.life is DONE:
            return False
        self.life = DONE
        if self._done is not None:
            self._done.set()
        return True

    def _queue_pending(self) -> None:
        """Let what was offered in this tick join the backlog."""
        pending = self.pending
        if pending is not EMPTY and pending is not REFUSING:
            if self._backlog is None:
                self._backlog = Backlog(self._burst)
                self._burst = EMPTY
            self._backlog.add(pending)
            self.pending = EMPTY
