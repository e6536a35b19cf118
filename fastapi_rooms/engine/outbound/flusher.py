"""The writing side of a node: flushes outboxes at the end of the tick, and aborts those that stall."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from itertools import chain, islice
from math import inf
from time import perf_counter

from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.outbound.outbox import Outbox
from fastapi_rooms.engine.outbound.stall import Stall
from fastapi_rooms.engine.outbound.writers import SLICE_SECONDS, Writers

logger = logging.getLogger("fastapi_rooms")

MIN_SWEEP_SECONDS = 0.02
MAX_SWEEP_SECONDS = 1.0
LEFT_AT_ONCE = 64
"""How many that have ended are looked at for one who finds no place."""
WORD_SECONDS = 0.1
"""How long a stop waits for word of who has gone with the server, of sockets that are out of reach."""
GONE_SECONDS = 0.25
"""How long a stop waits for who is said to be gone, and has not taken his close frame: some servers say so of everybody
whom they close."""
AT_ONCE = 16
"""Outboxes that are flushed without a look at the clock, some 10 µs each; where messages are compressed, one."""


class Flusher:
    """Owns the call that flushes, the writers of those that are behind and the timer that finds stalled ones.

    Bound to a loop only while it has something to do, so that a manager can outlive a loop.

    Args:
        settings: How long what is offered may be gathered, and how long a peer may take nothing.
        on_stall: Called with the outbox of a peer that is to be given up; returns whether its socket is still there, so
            that it is to be looked at on.
        on_left: Called with each outbox that was watched, once, when it is no more: its socket is gone, or given up.
        failed: Called with an outbox and what a write to it raised although its peer is there; it ends.
    """

    def __init__(
        self,
        settings: RoomsSettings,
        on_stall: Callable[[Outbox], bool],
        on_left: Callable[[Outbox], object],
        failed: Callable[[Outbox, BaseException], None],
    ) -> None:
        self.failed = failed
        self._settings = settings
        self._at_once = AT_ONCE if settings.compress_min_bytes is None else 1  # to compress may take long
        self._interval = settings.flush_interval / 1000  # seconds; 0: until the end of the tick
        self._last_flush = -inf  # loop time, if there is an interval: the next comes that much later
        self._sweep_seconds = min(MAX_SWEEP_SECONDS, max(MIN_SWEEP_SECONDS, settings.send_timeout / 4))
        self._on_stall = on_stall
        self._on_left = on_left
        self._context = Context()  # an empty one: a node outlives the request that happened to be first
        self._dirty: list[Outbox] = []  # with something pending since this tick
        self._groups: deque[Iterator[Outbox]] = deque()  # the same, but many, or since an earlier tick
        self._flush_loop: asyncio.AbstractEventLoop | None = None  # where `_flush` is due; None: not due
        self._due_since = 0.0  # by the performance counter: that of uvloop stands still within a tick
        self._early_at = -inf  # when something was written before the end of its tick
        self.tick: int | None = None if self._interval else 0
        """Another number after each flush; None where messages are gathered for longer than a tick."""
        self._writers = Writers()
        self.write_later = self._writers.add
        """Let a task write what an outbox could not write at once."""
        self._watched: dict[Outbox, Stall | None] = {}  # None: nothing waited for its peer when it was looked at
        self._ended: dict[Outbox, None] = {}  # those of the watched that are done, and whose socket was still there
        self._unseen: list[Outbox] = []  # those of the watched that this sweep has not looked at
        self._timer: asyncio.TimerHandle | None = None  # the next sweep; None: nothing is watched
        self._timer_loop: asyncio.AbstractEventLoop | None = None  # where the next sweep is due

    def add(self, outbox: Outbox) -> None:
        """Flush an outbox at the end of this tick."""
        self._dirty.append(outbox)
        self._schedule()

    def add_all(self, outboxes: list[Outbox]) -> None:
        """Flush outboxes at the end of this tick; if they are many, in turn with others, over some ticks."""
        if len(outboxes) > self._at_once:
            self._groups.append(iter(outboxes))
        else:
            self._dirty += outboxes
        self._schedule()

    def is_late(self, seconds: float = SLICE_SECONDS) -> bool:
        """Return whether a flush has been due for so long, within this tick: somebody computes, or sends in a loop."""
        return self._flush_loop is not None and self.tick is not None and perf_counter() - self._due_since > seconds

    def flush_if_late(self) -> None:
        """Write in the middle of a tick that has lasted for long: its end may be as far away.

        For a slice at most, and what peers take: who does not is found behind at the end of the tick, as ever.
        """
        if self._flush_loop is None or not self.is_late() or perf_counter() - self._early_at <= SLICE_SECONDS:
            return
        end = perf_counter() + SLICE_SECONDS
        groups = [list(group) for group in self._groups]
        self._groups = deque(map(iter, groups))
        for outbox in chain(self._dirty, *groups):
            try:
                outbox.write_early()
            except Exception:  # whatever it is, the other outboxes must be flushed
                logger.exception("the outbox of %r failed", outbox.connection)
            if perf_counter() > end:
                break
        self._early_at = perf_counter()

    def watch(self, outbox: Outbox) -> None:
        """Look at the outbox now and then until its socket is gone, and report it when it stalls."""
        self._watched.setdefault(outbox, None)
        self._set_timer(self._sweep_seconds)

    def unwatch_if_left(self, outbox: Outbox) -> None:
        """Stop looking at an outbox that is done, if its socket is gone."""
        if outbox.has_left():
            self._unwatch(outbox)
        elif outbox in self._watched:
            self._ended[outbox] = None

    def look_for_left(self) -> None:
        """Stop looking at some whose socket has gone since the last sweep; for who needs their places now."""
        for outbox in list(islice(self._ended, LEFT_AT_ONCE)):
            del self._ended[outbox]  # to the end of the row, or out of it
            self.unwatch_if_left(outbox)

    @property
    def sockets(self) -> int:
        """How many are watched: every connection, and those that have ended and whose socket has not left."""
        return len(self._watched)

    def behind_seconds(self) -> float:
        """Return for how long something has waited for its turn to be written, since this node is behind."""
        return self._writers.behind_seconds()

    async def wait_until_written(self, seconds: float) -> bool:
        """Wait until every watched outbox is written or aborted; return whether that is so after `seconds`."""
        return await self._wait_for(lambda: all(outbox.is_written() for outbox in self._watched), seconds)

    async def wait_until_left(self, seconds: float) -> bool:
        """Wait until the server is done with every watched socket; return whether that is so after `seconds`."""
        return await self._wait_for(lambda: not self._watched, seconds)

    def abort_rest(self) -> int:
        """Abort every watched socket that is left; return how many have not taken everything.

        Those who have took their close frame, too, so nothing is lost that is on its way to them, and pings of theirs
        fill no buffer any more. Whose handshake is not answered yet is left alone: a close frame follows the answer.
        """
        late = 0
        for outbox in [outbox for outbox in self._watched if outbox.can_abort]:
            late += not outbox.is_written()
            outbox.abort()
        return late

    def count_unwritten(self) -> int:
        """Return how many of the watched sockets have not taken everything, and cannot be aborted.

        uvloop holds what was not taken until the next tick, also for sockets that were aborted in this one.
        """
        return sum(
            outbox.is_open and not outbox.can_abort and (outbox.is_pending or not outbox.is_written())
            for outbox in self._watched
        )

    async def wait_for_word(self) -> None:
        """Let those be told of as gone whose server has ended their sockets before it ended the app, as granian does.

        Nobody else would see it, and what they are sent then may never end.
        """
        watched = self._watched
        await self._wait_for(lambda: not any(outbox.awaits_word for outbox in watched), WORD_SECONDS, sweeps=False)

    async def settle(self, seconds: float) -> None:
        """Wait until everything is written, and abort the rest; then look at nothing any more. Leaves no task."""
        watched, end = self._watched, asyncio.get_running_loop().time() + seconds
        await self._wait_for(lambda: all(outbox.is_lost_to_us or outbox.is_written() for outbox in watched), seconds)
        await self.wait_until_written(min(GONE_SECONDS, end - asyncio.get_running_loop().time()))
        for outbox in list(self._watched):
            if not outbox.is_written():
                outbox.abort()
            self._unwatch(outbox)
        self._unseen = []
        self._stop_timer()
        await self._writers.end()

    async def _wait_for(self, fact: Callable[[], bool], seconds: float, *, sweeps: bool = True) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        pause = 0.0
        while not (is_so := fact()) and loop.time() < deadline:
            await asyncio.sleep(pause)  # a transport tells nobody when its buffer is empty
            pause = MIN_SWEEP_SECONDS
            if sweeps:
                self._sweep()
        return is_so

    def _schedule(self) -> None:
        """Flush at the end of the tick, or as soon as the interval since the last time is over."""
        loop = asyncio.get_running_loop()
        if self._flush_loop is loop:
            return
        self._flush_loop = loop
        self._due_since = perf_counter()
        # On uvloop no time passes within a tick. Less than none: it was on another loop, with a clock of its own.
        if self._interval and 0 <= (since := loop.time() - self._last_flush) < self._interval:
            loop.call_later(self._interval - since, self._flush, context=self._context)
        else:
            loop.call_soon(self._flush, context=self._context)

    def _flush(self) -> None:
        """Flush for a while: some of each group in turn, so that nobody waits for a large room that is not his own."""
        self._flush_loop = None
        if self.tick is not None:
            self.tick += 1
        if self._interval:
            self._last_flush = asyncio.get_running_loop().time()
        dirty, self._dirty = self._dirty, []
        groups = self._groups
        if not groups and len(dirty) <= self._at_once:
            self._flush_all(dirty)
            return
        groups.appendleft(iter(dirty))
        clock = asyncio.get_running_loop().time
        end = clock() + SLICE_SECONDS
        while groups:
            group = groups.popleft()
            some = list(islice(group, self._at_once))
            self._flush_all(some)
            if len(some) == self._at_once:
                groups.append(group)
            if groups and clock() > end:
                self._go_on()
                return

    def _go_on(self) -> None:
        """Flush the rest in the next tick: no interval lies between the slices of one flush."""
        self._flush_loop = loop = asyncio.get_running_loop()
        self._due_since = perf_counter()
        loop.call_soon(self._flush, context=self._context)

    def _flush_all(self, outboxes: list[Outbox]) -> None:
        for outbox in outboxes:
            try:
                outbox.flush()
            except Exception:  # whatever it is, the other outboxes must be flushed
                logger.exception("the outbox of %r failed", outbox.connection)

    def _sweep(self, seconds: float = inf) -> bool:
        """Notice who is gone, abort what stalls, forget whose socket is gone; return whether all were looked at."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        unseen = self._unseen = self._unseen or list(self._watched)
        while unseen and (now := clock()) <= end:
            outbox = unseen.pop()
            if outbox not in self._watched:
                continue
            try:
                self._look_at(outbox, now)
            except Exception:  # whatever it is, the other outboxes must be looked at
                self._unwatch(outbox)
                logger.exception("the outbox of %r failed", outbox.connection)
        return not unseen

    def _look_at(self, outbox: Outbox, now: float) -> None:
        outbox.notice_end()
        outbox.judge_wait()
        if outbox.has_left():
            self._unwatch(outbox)
            return
        behind, stall = outbox.behind(), self._watched[outbox]
        if behind is None:
            self._watched[outbox] = None
        elif stall is None:
            self._watched[outbox] = Stall(outbox.settings, now, behind)
        elif stall.look_again(now, behind):
            self._watched[outbox] = None
            if not self._on_stall(outbox):
                self._unwatch(outbox)

    def _unwatch(self, outbox: Outbox) -> None:
        self._ended.pop(outbox, None)
        if outbox in self._watched:
            del self._watched[outbox]
            self._on_left(outbox)

    def _on_timer(self) -> None:
        self._timer = None
        is_done = self._sweep(SLICE_SECONDS)
        if self._watched:
            self._set_timer(self._sweep_seconds if is_done else 0)

    def _set_timer(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer_loop is not loop:
            self._timer_loop = loop
            self._timer = loop.call_later(seconds, self._on_timer, context=self._context)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
