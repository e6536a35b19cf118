"""What waits to be sent to one connection. The only writer of its socket.

Frames offered within one tick of the event loop leave together at its end, in one write where the wire can. Limits are
judged only after a write was tried and the peer did not take it all, or while the handshake hangs: see `Backlog`.

An outbox is three small machines, and all that it does is a move of one of them:

- its **life** (`Life`): it takes offers, then it writes what it has and a close frame, then it is done;
- **writing**: while its peer takes everything a flush is one write. Once the peer is behind, a task of the writers
  goes on, and what is offered meanwhile waits in a `Backlog`, which there is only as long as something is in it;
- the **gate** (`pending`): a batch that grows, or REFUSING, when offers have to ask. It is shut while the backlog is
  over the limits, and for good at the end of the life.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Verdict
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.settings import Overflow, RoomsSettings
from fastapi_rooms.engine.outbound.backlog import Backlog
from fastapi_rooms.engine.outbound.batch import EMPTY, REFUSING, Batch
from fastapi_rooms.engine.outbound.stall import Behind
from fastapi_rooms.engine.outbound.wire import Wire, may_say_gone, says_gone

logger = logging.getLogger("fastapi_rooms")


SHARED_SECONDS = 0.001
"""How old a tick may be so that messages to one connection share a write: a hundred times what one costs."""
FAILED = Close(CloseCode.INTERNAL_ERROR)
"""Sent to a peer that is there and cannot be written to."""


class Life(Enum):
    """How far an outbox has come. It only ever moves down this list."""

    TAKING = "taking"
    """It takes offers."""
    SEALED = "sealed"
    """It takes no more, and writes what it has, then the close frame, if there is to be one."""
    DONE = "done"
    """Nothing will be written any more. The server may still hold bytes."""


_TAKING, _DONE = Life.TAKING, Life.DONE  # looked up once: on Python 3.11 each look into an Enum is a call


class Flushing(Protocol):
    """What an outbox asks of the one that flushes it."""

    tick: int | None
    """Another number after each flush; None where messages are gathered for longer than a tick."""

    def is_late(self, seconds: float) -> bool:
        """Return whether a flush has been due for so long, within this tick."""
        ...

    def add(self, outbox: "Outbox") -> None:
        """Flush an outbox at the end of this tick."""
        ...

    def write_later(self, outbox: "Outbox") -> None:
        """Let a task call `write_rest`, since the wire may have to wait for the peer."""
        ...

    def failed(self, outbox: "Outbox", error: BaseException) -> None:
        """Take note that a write raised although the peer is there; the outbox ends."""
        ...


class Outbox:
    """A bounded queue of messages and, at most once, a close behind them."""

    __slots__ = (
        "_allows_tick",
        "_backlog",
        "_burst",
        "_close",
        "_counters",
        "_done",
        "_flusher",
        "_in_flight",
        "_on_done",
        "_settings",
        "_space",
        "_task",
        "_wire",
        "_written_in",
        "connection",
        "is_writing",
        "life",
        "pending",
        "ready",
    )

    def __init__(
        self,
        connection: Connection,
        settings: RoomsSettings,
        counters: Counters,
        flusher: Flushing,
        on_done: Callable[["Outbox"], object],
    ) -> None:
        self.connection = connection
        self._settings = settings
        self._counters = counters
        self._flusher = flusher
        self._on_done = on_done  # called once, when it is done
        self.life = Life.TAKING
        self._wire: Wire | None = None  # None until `open`: offers wait for the handshake
        # The gate: what was offered in this tick. EMPTY: the flusher need not call; REFUSING: ask `offer`.
        self.pending: Batch = EMPTY
        # The wire, while nothing waits before what is pending and nobody waits for space, so that a flush is one write.
        self.ready: Wire | None = None
        self._backlog: Backlog | None = None  # what waits before what is pending; None: nothing does
        self._burst = EMPTY  # what was pending when the peer was found behind; EMPTY once it is written or in a backlog
        self._in_flight = EMPTY  # what was passed to a write that has not returned
        self._close: Close | None = None  # the frame that follows everything, once `close` was called
        self.is_writing = False  # `write_rest` is due or at work
        self._written_in = -1  # the tick of the last `write_at_once`
        self._allows_tick = False  # that found the peer behind, and the flush at the end of its tick is still to come
        self._task: asyncio.Task[object] | None = None  # runs `write_rest`; owned by the writers
        self._space: asyncio.Event | None = None  # made by the first `wait_for_space`; set when the peer keeps up
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
        return self.life is _DONE

    @property
    def is_over(self) -> bool:
        """Whether what waits exceeds the limits, so that the policy decides about the next offer."""
        return self.pending is REFUSING and self.life is _TAKING

    @property
    def is_open(self) -> bool:
        """Whether the handshake was answered."""
        return self._wire is not None

    def is_written(self) -> bool:
        """Return whether nothing waits any more, neither here nor in the server's buffer."""
        return self.life is _DONE and (self._wire is None or not self._wire.buffered())

    def has_left(self) -> bool:
        """Return whether the server is done with the socket too: until then a peer can fill its buffer with pongs."""
        return self.life is _DONE and (self._wire is None or self._wire.has_left())

    @property
    def awaits_turn(self) -> bool:
        """Whether something waits for a task to write it: then it is this node that is behind, and not the peer."""
        return self.is_writing and self._task is None

    def behind(self) -> Behind | None:
        """Return how far the peer is with what it is being sent; None if nobody waits for it.

        That is so while a write to this peer is under way, or the server holds something for it. An outbox that has
        not had its turn says nothing of its peer.
        """
        wire = self._wire
        if wire is None:
            return None
        held = wire.buffered()
        if not held and self._task is None:
            return None
        return Behind(wire.taken(), held, wire.is_closing())

    # Offering

    def offer(self, message: Message) -> Verdict:
        """Let a message wait for the end of this tick. Never waits itself. For many, see `fan_out`."""
        if self.pending is not REFUSING:
            if self.pending is EMPTY:
                self._flusher.add(self)
            self.pending = self.pending.then(message)
            return Verdict.ACCEPTED
        if self.life is not _TAKING:
            return Verdict.GONE
        if self._settings.overflow is Overflow.DROP_OLDEST:
            assert self._backlog is not None, "the gate is shut for what it holds"
            self._counters.lost_messages += self._backlog.replace_oldest(message, self._settings)
            self._flusher.add(self)  # judged anew at the end of the tick
            return Verdict.ACCEPTED
        self._counters.lost_messages += 1
        return Verdict.OVERFLOW if self._settings.overflow is Overflow.CLOSE else Verdict.DROPPED

    def write_at_once(self) -> None:
        """Write what was offered now, if nothing waits before it: who computes next has sent it.

        What follows at once, within the same tick, shares a write at its end.
        """
        tick = self._flusher.tick
        if tick is None or self.ready is None:
            return
        if tick != self._written_in or self._flusher.is_late(SHARED_SECONDS):
            self._written_in = tick
            self.flush()
            self._allows_tick = self.is_writing

    def write_early(self) -> None:
        """Write what was offered in this tick, before its end, if the peer takes it all: else nothing is learnt yet."""
        wire, pending = self.ready, self.pending
        if wire is None or pending is EMPTY:
            return
        try:
            if wire.write_now(pending):
                self.pending = EMPTY
        except Exception as error:  # noqa: BLE001 - whatever a transport raises
            self._fail(wire, error)

    async def wait_for_space(self) -> None:
        """Wait while the peer is behind: until nothing is queued, or the outbox is done.

        For a producer that can be slowed down, such as a streamed answer. Broadcasts never wait.
        """
        if self.life is _DONE or (
            not self.is_writing
            and len(self) <= self._settings.outbox_messages // 2
            and self.size <= self._settings.outbox_bytes // 2
        ):
            return
        if self._space is None:
            self._space = asyncio.Event()
        self._space.clear()
        self.ready = None
        await self._space.wait()

    async def wait_until_done(self) -> None:
        """Wait until nothing will be written any more: the close frame is out, or the peer is gone or aborted."""
        if self.life is _DONE:
            return
        if self._done is None:
            self._done = asyncio.Event()
        await self._done.wait()

    # Life

    def open(self, wire: Wire) -> None:
        """Start writing: the handshake is answered."""
        self._wire = wire
        if self.life is _DONE:
            wire.abort()  # given up during the handshake
        else:
            self.flush()

    def close(self, close: Close | None) -> None:
        """Take no more offers, and let a close frame follow what is queued (None: nothing follows)."""
        if self.life is not _TAKING:
            return
        self._seal(close)
        if self._wire is None and close is None:
            self._lose_peer()
        else:
            self.flush()

    @property
    def can_abort(self) -> bool:
        """Whether `abort` would end the socket."""
        return self._wire is not None and self._wire.can_abort()

    def abort(self) -> bool:
        """Drop everything and end the socket without a close frame.

        Returns:
            Whether the socket was ended. If not, the server keeps it: its transport is out of reach, or the handshake
            was not answered.
        """
        self._drop_everything()
        self._cancel_write()
        wire = self._wire
        if wire is not None:
            wire.abort()
        self._finish()
        return wire is not None and wire.can_abort()

    def cut(self, close: Close) -> Close | None:
        """Drop what waits, so that a close frame is all that follows; return which, None if it is that already.

        Args:
            close: Sent in place of one that says that all is well.
        """
        promised = self._close
        if promised is None or self._task is None or not (len(self) or self._in_flight):
            return None
        self._drop_everything()
        self._close = close if promised.code == CloseCode.NORMAL else promised
        self._cancel_write()
        self._flusher.write_later(self)
        return self._close

    def _cancel_write(self) -> None:
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.cancel()

    def notice_end(self) -> None:
        """Be done if the peer went and nothing was written since, so that nobody else has noticed."""
        wire = self._wire
        if self.life is not _DONE and not self.is_writing and wire is not None and wire.is_gone():
            self._lose_peer()

    def note_close_by_server(self) -> None:
        """Remember and count that the server has closed by itself, if it has and nobody else was first."""
        said = None if self._wire is None else self._wire.closed_by_server()
        if said is not None and self.connection._note_close(*said):
            self._counters.closed_by_server += 1

    def was_closed_by_server(self) -> bool:
        """Return whether that is what ended the connection, and was counted."""
        connection = self.connection
        said = None if self._wire is None else self._wire.closed_by_server()
        return said is not None and said == (connection.close_code, connection.close_reason)

    def _seal(self, close: Close | None) -> None:
        self._queue_pending()
        self.life = Life.SEALED if self.life is _TAKING else self.life
        self._close = close
        self.pending = REFUSING
        self.ready = None

    def _lose_peer(self) -> None:
        self.note_close_by_server()
        self._drop_everything()
        self._finish()

    def _drop_everything(self) -> None:
        """Count what waits as lost; nothing follows it."""
        self._seal(None)
        self._counters.lost_messages += len(self) + len(self._in_flight)
        self._backlog, self._in_flight = None, EMPTY

    def _finish(self) -> None:
        if self._space is not None:
            self._space.set()
        if self.life is not _DONE:
            self.life = Life.DONE
            if self._done is not None:
                self._done.set()
            self._on_done(self)

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
            self._fail(wire, error)
            return
        if is_written:
            self.pending = EMPTY
        elif wire.is_writable():  # a burst, too large for one write
            self._flush_behind()
        else:
            self._begin_to_wait()

    def _flush_behind(self) -> None:
        """Write what can be written of what waits, and let a task write the rest."""
        wire = self._wire
        if self.life is _DONE:
            return
        if wire is None or self.is_writing:
            if self._allows_tick:
                self._allow_tick()
            self._judge()  # a handshake that hangs must not cost more than a peer that is behind
        elif wire.is_gone():
            self._lose_peer()
        elif self._write_now(wire):
            self._open_gate()
            if len(self) or self._close is not None:
                self._begin_to_wait()
            else:
                self._keep_up(wire)

    def _allow_tick(self) -> None:
        """Hold nothing against the peer that was offered in the tick in which `write_at_once` found it behind."""
        self._allows_tick = False
        self._queue_pending()
        if self._backlog is not None:
            self._backlog.allow(EMPTY)

    def _write_now(self, wire: Wire) -> bool:
        """Write what the wire takes without waiting; return False if that failed, and was seen to."""
        try:
            while wire.is_writable() and (batch := self._next_batch(wire.batch_bytes)) is not None:
                wire.write_now(batch)
                self._in_flight = EMPTY
        except Exception as error:  # noqa: BLE001 - whatever a transport raises: it must not stop the other outboxes
            self._fail(wire, error)
            return False
        return True

    def _begin_to_wait(self) -> None:
        """Let a task write what waits, however much a burst it is, and count what comes from now on."""
        self.ready = None
        self._allow()
        self.is_writing = True
        self._flusher.write_later(self)

    def _allow(self) -> None:
        """Hold nothing of what waits now against the peer."""
        if self._backlog is None:
            self._burst = self.pending  # on ASGI each message comes through here: no object for what is never queued
        else:
            self._backlog.allow(self.pending)

    def judge_wait(self) -> None:
        """Apply the limits if this has not had its turn for long: nothing else bounds what gathers meanwhile."""
        if self.awaits_turn and self.life is _TAKING:
            self._judge()

    async def write_rest(self, task: asyncio.Task[object] | None) -> None:
        """Write what waits as the peer takes it, then the close frame.

        Args:
            task: Who runs this. It may have others to write, too; `abort` cancels it.
        """
        wire = self._wire
        if self.life is _DONE or wire is None:
            return  # aborted before its turn came
        self._task = task
        self._allow()  # what came before its turn says nothing of the peer
        batch: Batch | None = EMPTY
        try:
            # In one frame, since on ASGI every message comes through here.
            while (batch := self._next_batch(wire.batch_bytes)) is not None and not wire.is_gone():
                if self._backlog is not None:
                    self._backlog.use_up(batch)
                    self._judge()
                elif self.pending is REFUSING:
                    self._open_gate()
                await wire.write(batch)
                self._in_flight = EMPTY
            if batch is None and self._close is not None:
                await wire.close(self._close)
        except (Exception, asyncio.CancelledError) as error:  # whatever a server, or a middleware before it, raises
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # else it is something that a middleware waited for that was cancelled, and not this write
            if self._task is task and self.life is not _DONE:  # it was neither cut nor aborted
                self._fail(wire, error, is_closed=batch is None)
            return
        finally:
            self._task = None if self._task is task else self._task  # if it was cut, another may be at work
        self.is_writing = False
        if batch is None:
            self._keep_up(wire)
        else:
            self._lose_peer()

    def _keep_up(self, wire: Wire) -> None:
        """Take note that the peer was written all there is."""
        if self._space is not None:
            self._space.set()
        if self.life is _TAKING:
            assert self.pending is not REFUSING, "it was judged when the last of the backlog was taken"
            self.ready = wire
        else:
            self._finish()

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

    def _queue_pending(self) -> None:
        """Let what was offered in this tick join the backlog."""
        pending = self.pending
        if pending is not EMPTY and pending is not REFUSING:
            if self._backlog is None:
                self._backlog = Backlog(self._burst)
                self._burst = EMPTY
            self._backlog.add(pending)
            self.pending = EMPTY

    def _judge(self) -> None:
        """Shut the gate, or open it: does more wait than may?"""
        self._queue_pending()
        if self._backlog is not None and self._backlog.exceeds(self._settings):
            self.pending = REFUSING
        else:
            self._open_gate()

    def _open_gate(self) -> None:
        if self.pending is REFUSING and self.life is _TAKING:
            self.pending = EMPTY

    def _fail(self, wire: Wire, error: BaseException, *, is_closed: bool = False) -> None:
        """See to a write that raised: its peer has gone, or else is told with 1011 that it will hear nothing more.

        Args:
            wire: What was written to.
            error: What it raised.
            is_closed: It was the close frame. Then there is only one way left to end the socket.
        """
        self.is_writing = False
        if says_gone(error) or (wire.is_gone() and not is_closed):
            logger.debug("a connection went while it was written to: %r", error)
        elif may_say_gone(error):
            logger.debug("a connection seems to have gone while it was written to: %r", error)
            wire.abort()  # harmless if it has
        elif self._close is None and self.life is not _TAKING:
            logger.debug("a connection that was forgotten could not be written to: %r", error)
        elif is_closed:
            self._flusher.failed(self, error)
            wire.abort()
        else:
            self._close_with_error(error)
            return
        self._lose_peer()

    def _close_with_error(self, error: BaseException) -> None:
        """Let a task send a close frame in place of all that waits: a peer that is never told would wait for ever."""
        promised = self._close
        self._drop_everything()
        self._close = FAILED if promised is None or promised.code == CloseCode.NORMAL else promised
        self.is_writing = True
        self._flusher.write_later(self)
        self._flusher.failed(self, error)
