"""What waits to be sent to one connection. The only writer of its socket.

Frames offered within one tick of the event loop leave together at its end, in one write where the wire can. Limits are
judged only after a write was tried and the peer did not take it all, or while the handshake hangs: however much is
offered within one tick, a healthy peer is not taken for a slow one. What is left of such a burst is an allowance on
top of the limits until it is written. So the bound on memory is the limit plus what single ticks offered, and messages
are shared between outboxes.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fastapi_rooms.domain.connection import Connection, Verdict
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.settings import Overflow, RoomsSettings
from fastapi_rooms.engine.outbound.batch import EMPTY, REFUSING, Batch
from fastapi_rooms.engine.outbound.wire import Wire

if TYPE_CHECKING:
    from fastapi_rooms.engine.outbound.flusher import Flusher

logger = logging.getLogger("fastapi_rooms")

LINGER_SECONDS = 1.0
"""How long a peer may take nothing of what the server holds for it when the server has closed the socket."""

MARK = 64 * 1024
"""Up to how much a server's buffer is written to: the high-water mark of asyncio's and uvloop's transports."""
GROWING_SWEEPS = 2
"""After how many sweeps that found more in a server's buffer than we can have written a peer is given up."""

_NOTHING: Final[list[Message]] = []  # the queue of all who are not behind: a list each costs memory. Never changed


class Outbox:
    """A bounded queue of messages and, at most once, a close behind them."""

    __slots__ = (
        "_allowed_bytes",
        "_allowed_messages",
        "_close",
        "_counters",
        "_done",
        "_flusher",
        "_growing",
        "_held",
        "_in_flight",
        "_is_over",
        "_is_writing",
        "_on_end",
        "_queue",
        "_queued_bytes",
        "_sealed",
        "_settings",
        "_space",
        "_stalled_since",
        "_taken",
        "_task",
        "_wire",
        "connection",
        "is_done",
        "pending",
        "ready",
    )

    def __init__(
        self,
        connection: Connection,
        settings: RoomsSettings,
        counters: Counters,
        flusher: "Flusher",
        on_end: Callable[["Outbox"], object],
    ) -> None:
        self.connection = connection
        self._settings = settings
        self._counters = counters
        self._flusher = flusher
        self._on_end = on_end  # called once, when nothing will be written any more
        self._wire: Wire | None = None  # None until `open`: offers wait for the handshake
        # What was offered in this tick, behind the queue. EMPTY: the flusher need not call; REFUSING: ask `offer`.
        self.pending: Batch = EMPTY
        # The wire, while nothing waits before what is pending and nobody waits for space, so that a flush is one write.
        self.ready: Wire | None = None
        self._queue = _NOTHING  # what could not be written at the end of its tick
        self._queued_bytes = 0
        self._close: Close | None = None  # the frame that follows the queue, once `close` was called
        self._sealed = False  # no more offers
        self._allowed_messages = 0  # of a burst, still queued: not counted against the limits
        self._allowed_bytes = 0
        self._in_flight = 0  # messages that were taken from the queue and passed to a write that has not returned
        self._is_writing = False  # `write_rest` is due or at work, since the wire could not write at once
        self._task: asyncio.Task[object] | None = None  # runs `write_rest`; owned by the writers
        self._space: asyncio.Event | None = None  # made by the first `wait_for_space`; set when the queue is written
        self._done: asyncio.Event | None = None  # made by the first `wait_until_done`; set with `is_done`
        self._taken = 0  # the wire's `taken` when it last moved
        self._held = 0  # what the server held when the sweep last looked
        self._growing = 0  # sweeps in a row that found more than the last, above all limits
        self._stalled_since: float | None = None  # loop time since when nothing was taken; None: nothing waits
        self._is_over = False  # a write was tried, or the handshake hangs, and what is left exceeds the limits
        self.is_done = False  # nothing will be written any more; the server may still hold bytes

    def __len__(self) -> int:
        return len(self._queue) + len(self.pending)

    def queued(self) -> tuple[int, int] | None:
        """Return how many messages wait, and their bytes; None if nothing does."""
        pending = self.pending
        if not self._queue and (pending is EMPTY or pending is REFUSING):
            return None
        return len(self), self._queued_bytes + pending.size

    @property
    def is_over(self) -> bool:
        """Whether what waits exceeds the limits, so that the policy decides about the next offer."""
        return self._is_over

    @property
    def is_open(self) -> bool:
        """Whether the handshake was answered."""
        return self._wire is not None

    # Offering

    def offer(self, message: Message) -> Verdict:
        """Let a message wait for the end of this tick. Never waits itself. For many, see `fan_out`."""
        if self.pending is not REFUSING:
            if self.pending is EMPTY:
                self._flusher.add(self)
            self.pending = self.pending.then(message)
            return Verdict.ACCEPTED
        if self._sealed:
            return Verdict.GONE
        if self._settings.overflow is Overflow.DROP_OLDEST:
            self._drop_oldest(message)
            self._queue.append(message)
            self._queued_bytes += message.size
            self._flusher.add(self)  # judged anew at the end of the tick
            return Verdict.ACCEPTED
        self._counters.lost_messages += 1
        return Verdict.OVERFLOW if self._settings.overflow is Overflow.CLOSE else Verdict.DROPPED

    def _drop_oldest(self, message: Message) -> None:
        messages = self._settings.outbox_messages - 1
        size = self._settings.outbox_bytes - message.size
        dropped = 0
        for oldest in self._queue:
            if len(self._queue) - dropped <= messages and self._queued_bytes <= size:
                break
            self._queued_bytes -= oldest.size
            dropped += 1
        del self._queue[:dropped]
        self._allowed_messages = self._allowed_bytes = 0
        self._counters.lost_messages += dropped

    async def wait_for_space(self) -> None:
        """Wait while the peer is behind: until nothing is queued, or the outbox has ended.

        For a producer that can be slowed down, such as a streamed answer. Broadcasts never wait.
        """
        if self.is_done or (
            not self._is_writing
            and len(self) <= self._settings.outbox_messages // 2
            and self._queued_bytes + self.pending.size <= self._settings.outbox_bytes // 2
        ):
            return
        if self._space is None:
            self._space = asyncio.Event()
        self._space.clear()
        self.ready = None
        await self._space.wait()

    async def wait_until_done(self) -> None:
        """Wait until nothing will be written any more: the close frame is out, or the peer is gone or aborted."""
        if self.is_done:
            return
        if self._done is None:
            self._done = asyncio.Event()
        await self._done.wait()

    # Lifecycle

    def open(self, wire: Wire) -> None:
        """Start writing: the handshake is answered."""
        self._wire = wire
        if self.is_done:
            wire.abort()  # given up during the handshake
        else:
            self.flush()

    def close(self, close: Close | None) -> None:
        """Take no more offers, and let a close frame follow what is queued (None: nothing follows)."""
        if self._sealed:
            return
        self._seal(close)
        if self._wire is None and close is None:
            self._lose_peer()
        else:
            self.flush()

    def abort(self) -> None:
        """Drop everything and end the socket without a close frame."""
        self._seal(None)
        self._drop_queue()
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.cancel()
        if self._wire is not None:
            self._wire.abort()
        self._end()

    # Writing: called by the flusher

    def flush(self) -> None:
        """Write what can be written now; let a task go on with the rest."""
        wire, pending = self.ready, self.pending
        if wire is None:
            self._flush_behind()
            return
        # Nearly always: nothing waited before, and the peer takes it.
        if pending is EMPTY:
            return
        try:
            is_written = wire.write_now(pending)
        except Exception as error:  # noqa: BLE001 - whatever a transport raises: it must not stop the other outboxes
            self._give_up(error)
            self._lose_peer()
            return
        if is_written:
            self.pending = EMPTY
        elif wire.is_writable():  # a burst, too large for one write
            self._flush_behind()
        else:
            self._begin_to_wait()

    def _flush_behind(self) -> None:
        """Write what can be written of a queue, and let a task write the rest."""
        wire = self._wire
        if self.is_done:
            return
        if wire is None or self._is_writing:
            self._judge()  # a handshake that hangs must not cost more than a peer that is behind
        elif wire.is_gone() or not self._write_now(wire):
            self._lose_peer()
        elif self._queue or len(self.pending) or self._close:
            self._set_over(is_over=False)
            self._begin_to_wait()
        else:
            self._set_over(is_over=False)
            self._announce_space()
            if self._sealed:
                self._end()
            else:
                self.ready = wire

    def _begin_to_wait(self) -> None:
        """Let a task write what waits, however much a burst it is, and count what comes from now on."""
        self.ready = None
        self._allowed_messages = len(self._queue) + len(self.pending)
        self._allowed_bytes = self._queued_bytes + self.pending.size
        self._is_writing = True
        self._flusher.write_later(self)

    def _absorb(self) -> None:
        """Let what was offered in this tick join the queue."""
        pending = self.pending
        if pending is not EMPTY and pending is not REFUSING:
            if self._queue:
                self._queue += pending.messages()
            else:
                self._queue = pending.messages()
            self._queued_bytes += pending.size
            self.pending = EMPTY

    def _write_now(self, wire: Wire) -> bool:
        """Write what the wire takes without waiting; return False if the peer turned out to be gone."""
        try:
            while wire.is_writable() and (batch := self._next_batch(wire.batch_bytes)) is not None:
                wire.write_now(batch)
                self._in_flight = 0
        except Exception as error:  # noqa: BLE001 - whatever a transport raises: it must not stop the other outboxes
            self._give_up(error)
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        """Notice that nothing can be written any more: the peer went, or else the socket is ended for it."""
        wire = self._wire
        if wire is None or wire.is_gone() or not wire.abort():
            logger.debug("a connection went while it was written to: %r", error)
        else:
            logger.error("%r could not be written to: aborted", self.connection, exc_info=error)

    async def write_rest(self, task: asyncio.Task[object] | None) -> None:
        """Write what waits as the peer takes it, then the close frame.

        Args:
            task: Who runs this. It may have others to write, too; `abort` cancels it.
        """
        wire = self._wire
        if self.is_done or wire is None:
            return  # aborted before its turn came
        self._task = task
        try:
            # In one frame, since on ASGI every message comes through here.
            while (batch := self._next_batch(wire.batch_bytes)) is not None and not wire.is_gone():
                if self._queue or self._is_over:
                    self._allowed_messages = max(0, self._allowed_messages - len(batch))
                    self._allowed_bytes = max(0, self._allowed_bytes - batch.size)
                    self._judge()
                else:
                    self._allowed_messages = self._allowed_bytes = 0
                await wire.write(batch)
                self._in_flight = 0
            if batch is None and self._close is not None:
                await wire.close(self._close)
        except Exception as error:  # noqa: BLE001 - whatever a server raises: this socket cannot be written any more
            self._give_up(error)
            is_here = False
        else:
            is_here = batch is None
        finally:
            self._task = None
        self._is_writing = False
        if not is_here:
            self._lose_peer()
        elif self._sealed:
            self._end()
        else:
            assert not self._is_over, "it was judged when the last of the queue was taken"
            self._announce_space()
            self.ready = wire

    def _next_batch(self, size: int) -> Batch | None:
        """Take what is to be written next, about `size` bytes and at least one message; None: nothing waits."""
        pending = self.pending
        if not self._queue:
            count = len(pending)
            if not count:
                return None
            if count == 1 or pending.size <= size:
                self.pending = EMPTY  # what everybody was offered, as it is
                self._in_flight = count
                return pending
        self._absorb()
        return self._take(size)

    def _take(self, size: int) -> Batch:
        """Take messages of about `size` bytes from the queue, at least one."""
        count = 0
        for message in self._queue:
            if count and size < message.size:
                break
            size -= message.size
            count += 1
        batch = Batch.of(self._queue[:count])
        del self._queue[:count]
        self._queued_bytes -= batch.size
        self._in_flight = count
        return batch

    def _judge(self) -> None:
        self._absorb()
        self._set_over(
            is_over=len(self._queue) > self._settings.outbox_messages + self._allowed_messages
            or self._queued_bytes > self._settings.outbox_bytes + self._allowed_bytes
        )

    def _set_over(self, *, is_over: bool) -> None:
        self._is_over = is_over
        if not self._sealed:
            if is_over:
                self._absorb()
                self.pending = REFUSING
            elif self.pending is REFUSING:
                self.pending = EMPTY

    def _seal(self, close: Close | None) -> None:
        self._absorb()
        self._sealed = True
        self.ready = None
        self._close = close
        self.pending = REFUSING

    def _lose_peer(self) -> None:
        self._seal(None)
        self._drop_queue()
        self._end()

    def _drop_queue(self) -> None:
        self._counters.lost_messages += len(self._queue) + self._in_flight
        self._in_flight = 0
        self._queue = _NOTHING
        self._queued_bytes = 0

    def _announce_space(self) -> None:
        if self._space is not None:
            self._space.set()

    def _end(self) -> None:
        self._announce_space()
        if not self.is_done:
            self.is_done = True
            if self._done is not None:
                self._done.set()
            self._on_end(self)

    # Watching: called by the flusher

    def notice_end(self) -> None:
        """End if the peer went and nothing was written since, so that nobody else has noticed."""
        if not self.is_done and not self._is_writing and self._wire is not None and self._wire.is_gone():
            self._lose_peer()

    def is_written(self) -> bool:
        """Return whether nothing waits any more, neither here nor in the server's buffer."""
        return self.is_done and (self._wire is None or not self._wire.buffered())

    def has_left(self) -> bool:
        """Return whether the server is done with the socket too: until then a peer can fill its buffer with pongs."""
        return self.is_done and (self._wire is None or self._wire.has_left())

    def is_stalled(self, now: float) -> bool:
        """Return whether a peer is to be given up: it took nothing for `send_timeout`, or has itself sent more pongs.

        Less patience is needed once the server has closed the socket: this is all that its shutdown waits for.
        """
        wire = self._wire
        if wire is None or not (self._is_writing or self._queue or wire.buffered()):
            self._stalled_since = None
            self._held = self._growing = 0
            return False
        taken, held, held_before = wire.taken(), wire.buffered(), self._held
        self._held = held
        # Above its mark we write nothing. What grows then are pongs, which the peer asks for and does not read. Twice
        # in a row, since the kernel may have taken much at once and a large message may have followed.
        limit = max(self._settings.outbox_bytes, MARK)
        is_growing = held > held_before > limit and taken - self._taken < held_before - limit
        self._growing = self._growing + 1 if is_growing else 0
        if self._growing == GROWING_SWEEPS:
            return True
        if self._stalled_since is None or taken > self._taken:
            self._stalled_since = now
            self._taken = taken
            return False
        patience = self._settings.send_timeout
        return now - self._stalled_since >= (min(LINGER_SECONDS, patience) if wire.is_closing() else patience)


class _Ended:
    """What a connection has in place of an outbox that is done, so that the outbox can be freed."""

    pending = REFUSING
    connection: Connection  # never asked for: who has ended is in no registry

    def offer(self, message: Message) -> Verdict:  # noqa: ARG002
        return Verdict.GONE

    def queued(self) -> None:
        """Return None: nothing waits."""

    def close(self, close: Close | None) -> None:
        """Do nothing: it is closed."""

    async def wait_for_space(self) -> None:
        """Return: nobody will write any more."""

    async def wait_until_done(self) -> None:
        """Return: it is done."""


ENDED = _Ended()
"""The outbox of every connection that has ended."""
