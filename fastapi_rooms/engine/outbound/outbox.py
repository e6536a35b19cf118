"""What waits to be sent to one connection. The only writer of its socket.

Frames offered within one tick of the event loop leave together at its end, in one write where the wire can. Limits are
judged only after a write was tried and the peer did not take it all, or while the handshake hangs: see `Backlog`.

An outbox is three small machines, and all that it does is a move of one of them: its **life** and the **gate** are in
`BoundedQueue`, with all that waits. Here is **writing**: while its peer takes everything a flush is one write. Once the
peer is behind, a task of the writers goes on, and then comes the close frame.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.outbound.batch import EMPTY, REFUSING, Batch
from fastapi_rooms.engine.outbound.bounded_queue import DONE, TAKING, Flushes
from fastapi_rooms.engine.outbound.failed_write import FAILED, Peer, close_instead, peer_of
from fastapi_rooms.engine.outbound.watched import Watched
from fastapi_rooms.engine.outbound.wire import Wire

logger = logging.getLogger("fastapi_rooms")

SHARED_SECONDS = 0.001
"""How old a tick may be so that messages to one connection share a write: a hundred times what one costs."""


class Flushing(Flushes, Protocol):
    """What an outbox asks of the one that flushes it."""

    tick: int | None
    """Another number after each flush; None where messages are gathered for longer than a tick."""

    def is_late(self, seconds: float) -> bool:
        """Return whether a flush has been due for so long, within this tick."""
        ...

    def write_later(self, outbox: "Outbox") -> None:
        """Let a task call `write_rest`, since the wire may have to wait for the peer."""
        ...

    def failed(self, outbox: "Outbox", error: BaseException) -> None:
        """Take note that a write raised although the peer is there; the outbox ends."""
        ...


class Outbox(Watched):
    """A bounded queue of messages and, at most once, a close behind them."""

    __slots__ = (
        "_allows_tick",
        "_close",
        "_on_done",
        "_space",
        "_written_in",
        "ready",
    )

    _flusher: Flushing

    def __init__(
        self,
        connection: Connection,
        settings: RoomsSettings,
        counters: Counters,
        flusher: Flushing,
        on_done: Callable[["Outbox"], object],
    ) -> None:
        super().__init__(connection, settings, counters, flusher)
        self._on_done = on_done  # called once, when it is done
        # The wire, while nothing waits before what is pending and nobody waits for space, so that a flush is one write.
        self.ready: Wire | None = None
        self._close: Close | None = None  # the frame that follows everything, once `close` was called
        self._written_in = -1  # the tick of the last `write_at_once`
        self._allows_tick = False  # that found the peer behind, and the flush at the end of its tick is still to come
        self._space: asyncio.Event | None = None  # made by the first `wait_for_space`; set when the peer keeps up

    async def wait_for_space(self) -> None:
        """Wait while the peer is behind: until nothing is queued, or the outbox is done.

        For a producer that can be slowed down, such as a streamed answer. Broadcasts never wait.
        """
        if self.life is DONE or (
            not self.is_writing
            and len(self) <= self.settings.outbox_messages // 2
            and self.size <= self.settings.outbox_bytes // 2
        ):
            return
        if self._space is None:
            self._space = asyncio.Event()
        self._space.clear()
        self.ready = None
        await self._space.wait()

    # Life

    def open(self, wire: Wire) -> None:
        """Start writing: the handshake is answered."""
        self._wire = wire
        if self.life is DONE:
            wire.abort()  # given up during the handshake
        else:
            self.flush()

    def close(self, close: Close | None) -> None:
        """Take no more offers, and let a close frame follow what is queued (None: nothing follows)."""
        if self.life is not TAKING:
            return
        self._seal(close)
        if self._wire is None and close is None:
            self._lose_peer()
        else:
            self.flush()

    def abort(self) -> bool:
        """Drop everything and end the socket without a close frame.

        Returns:
            Whether the socket was ended. If not, the server keeps it: its transport is out of reach, or the handshake
            was not answered.
        """
        self._seal(None)
        self._lose()
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
        if self._close is None or self._task is None or self._writes_close:
            return None
        self._cancel_write()
        self._close_instead(close)
        return self._close

    @property
    def has_close_frame(self) -> bool:
        """Whether one is to be written, or is being written."""
        return self._close is not None and self.life is not DONE

    def give_up(self) -> bool:
        """Be done although the socket cannot be ended; return whether there was a close frame.

        One that is being written stays with the server.

        To take it back would leave it to the server what the peer is told, once the endpoint has returned: h2corn says
        1000, after which nobody comes back.
        """
        had_one = self.has_close_frame
        if self._writes_close:
            self._lose()
            self._finish()
        else:
            self.abort()
        return had_one

    def lose_peer(self) -> None:
        """Be done: the server says that the peer has gone. What it was passed and has not ended is let go of at a look.

        Unless that is the close frame, and the socket may still be there: granian says so of whoever is being closed,
        whether or not he takes it.
        """
        wire = self._wire
        if self.life is not DONE and (not self._writes_close or (wire is not None and wire.is_closing())):
            self._lose_peer()

    @property
    def _writes_close(self) -> bool:
        """Whether all that a task waits for is that the peer takes its close frame."""
        return self._close is not None and self._task is not None and not (len(self) or self._in_flight)

    def _cancel_write(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.get_loop().is_closed():
            task.cancel()

    def notice_end(self) -> None:
        """Be done if the peer went and nothing was written since, so that nobody else has noticed.

        And let go of what the server was passed and never ended, although it has said that the peer is gone: granian
        does not when it stops, nor gunicorn's own worker when a peer vanishes.
        """
        wire = self._wire
        if self.is_pending:
            if self.is_said_gone:
                self._cancel_write()
        elif self.life is not DONE and not self.is_writing and wire is not None and wire.is_gone():
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
        self._take_no_more()
        self._close = close
        self.ready = None

    def _lose_peer(self) -> None:
        self.note_close_by_server()
        self._seal(None)
        self._lose()
        self._finish()

    def _finish(self) -> None:
        if self._space is not None:
            self._space.set()
        if self._end():
            self._on_done(self)

    # Writing

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

    def _flush_behind(self) -> None:
        """Write what can be written of what waits, and let a task write the rest."""
        wire = self._wire
        if self.life is DONE:
            return
        if wire is None or self.is_writing:
            if self._allows_tick:
                self._allows_tick = False
                self._allow()
            self._judge()  # a handshake that hangs must not cost more than a peer that is behind
        elif wire.is_gone():
            self._lose_peer()
        elif self._write_now(wire):
            self._open_gate()
            if len(self) or self._close is not None:
                self._begin_to_wait()
            else:
                self._keep_up(wire)

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

    def judge_wait(self) -> None:
        """Apply the limits if this has not had its turn for long: nothing else bounds what gathers meanwhile."""
        if self.awaits_turn and self.life is TAKING:
            self._judge()

    async def write_rest(self, task: asyncio.Task[object] | None) -> None:
        """Write what waits as the peer takes it, then the close frame.

        Args:
            task: Who runs this. It may have others to write, too; `abort` cancels it.
        """
        wire = self._wire
        if self.life is DONE or wire is None:
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
            if self._task is task and self.life is not DONE:  # it was neither cut nor given up
                self._task = None
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
        if self.life is TAKING:
            assert self.pending is not REFUSING, "it was judged when the last of the backlog was taken"
            self.ready = wire
        else:
            self._finish()

    def _fail(self, wire: Wire, error: BaseException, *, is_closed: bool = False) -> None:
        """See to a write that raised: its peer has gone, or else is told with 1011 that it will hear nothing more.

        Args:
            wire: What was written to.
            error: What it raised.
            is_closed: It was the close frame. Then there is only one way left to end the socket.
        """
        self.is_writing = False
        peer = peer_of(error, is_gone=wire.is_gone() and not is_closed)
        if peer is Peer.GONE:
            logger.debug("a connection went while it was written to: %r", error)
        elif peer is Peer.MAYBE_GONE:
            logger.debug("a connection seems to have gone while it was written to: %r", error)
            wire.abort()
        elif self._close is None and self.life is not TAKING:
            logger.debug("a connection that was forgotten could not be written to: %r", error)
        elif is_closed:
            self._flusher.failed(self, error)
            wire.abort()
        else:
            self._close_instead(FAILED)
            self._flusher.failed(self, error)
            return
        self._lose_peer()

    def _close_instead(self, close: Close) -> None:
        """Let a task send a close frame in place of all that waits."""
        self._seal(close_instead(close, self._close))
        self._lose()
        self._begin_to_wait()
