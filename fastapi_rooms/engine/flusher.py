"""The writing side of a node: flushes outboxes at the end of the tick, and aborts those that stall."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from itertools import islice
from typing import Any

from fastapi_rooms.engine.outbox import Outbox
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

MIN_SWEEP_SECONDS = 0.02
MAX_SWEEP_SECONDS = 1.0
SLICE_SECONDS = 0.005
"""How long outboxes are flushed before the rest of the node has its turn. The order of each member is its outbox's."""
AT_ONCE = 50
"""Outboxes that are flushed without a look at the clock; each takes up to 20 µs."""


class Flusher:
    """Owns the end-of-tick call, the tasks of blocked outboxes and the timer that finds stalled ones.

    Bound to a loop only while it has something to do, so that a manager can outlive a loop.
    """

    def __init__(self, send_timeout: float, on_stall: Callable[[Outbox], object]) -> None:
        self._sweep_seconds = min(MAX_SWEEP_SECONDS, max(MIN_SWEEP_SECONDS, send_timeout / 4))
        self._on_stall = on_stall
        self._context = Context()  # an empty one: a node outlives the request that happened to be first
        self._dirty: list[Outbox] = []  # with something pending since this tick
        self._groups: deque[Iterator[Outbox]] = deque()  # the same, but many, or since an earlier tick
        self._flush_loop: asyncio.AbstractEventLoop | None = None  # where the end-of-tick call is due; None: not due
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: set[Outbox] = set()
        self._timer: asyncio.TimerHandle | None = None  # the next sweep; None: nothing is watched
        self._timer_loop: asyncio.AbstractEventLoop | None = None  # where the next sweep is due

    def add(self, outbox: Outbox) -> None:
        """Flush an outbox at the end of this tick."""
        self._dirty.append(outbox)
        self._schedule()

    def add_all(self, outboxes: list[Outbox]) -> None:
        """Flush outboxes at the end of this tick; if they are many, in turn with others, over some ticks."""
        if len(outboxes) > AT_ONCE:
            self._groups.append(iter(outboxes))
        else:
            self._dirty += outboxes
        self._schedule()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if self._flush_loop is not loop:
            self._flush_loop = loop
            loop.call_soon(self._flush, context=self._context)

    def start(self, writing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what a blocked outbox has to do, and keep it until it ends."""
        task = asyncio.get_running_loop().create_task(writing, name="fastapi_rooms outbox", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def watch(self, outbox: Outbox) -> None:
        """Look at the outbox now and then until its socket is gone, and report it when it stalls."""
        self._watched.add(outbox)
        self._set_timer()

    def unwatch_if_left(self, outbox: Outbox) -> None:
        """Stop looking at an outbox whose socket is gone."""
        if outbox.has_left():
            self._watched.discard(outbox)

    async def settle(self, seconds: float) -> None:
        """Wait until every watched outbox is written or stalled, at most `seconds`; abort the rest. Leaves no task."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        pause = 0.0
        while not all(outbox.is_written() for outbox in self._watched) and loop.time() < deadline:
            await asyncio.sleep(pause)  # a transport tells nobody when its buffer is empty
            pause = MIN_SWEEP_SECONDS
            self._sweep()
        for outbox in list(self._watched):
            if not outbox.is_written():
                outbox.abort()
        self._watched.clear()
        self._stop_timer()
        await end_tasks(self._tasks)

    def _flush(self) -> None:
        """Flush for a while: some of each group in turn, so that nobody waits for a large room that is not his own."""
        self._flush_loop = None
        dirty, self._dirty = self._dirty, []
        groups = self._groups
        if not groups and len(dirty) <= AT_ONCE:
            self._flush_all(dirty)
            return
        groups.appendleft(iter(dirty))
        clock = asyncio.get_running_loop().time
        end = clock() + SLICE_SECONDS
        while groups:
            group = groups.popleft()
            some = list(islice(group, AT_ONCE))
            self._flush_all(some)
            if len(some) == AT_ONCE:
                groups.append(group)
            if groups and clock() > end:
                self._schedule()
                return

    def _flush_all(self, outboxes: list[Outbox]) -> None:
        for outbox in outboxes:
            try:
                outbox.flush()
            except Exception:  # whatever it is, the other outboxes must be flushed
                logger.exception("the outbox of %r failed", outbox.connection)

    def _sweep(self) -> None:
        """Notice who is gone, abort what stalls, forget whose socket is gone."""
        now = asyncio.get_running_loop().time()
        for outbox in list(self._watched):
            try:
                self._look_at(outbox, now)
            except Exception:  # whatever it is, the other outboxes must be looked at
                self._watched.discard(outbox)
                logger.exception("the outbox of %r failed", outbox.connection)

    def _look_at(self, outbox: Outbox, now: float) -> None:
        outbox.notice_end()
        if outbox.has_left():
            self._watched.discard(outbox)
        elif outbox.is_stalled(now):
            self._watched.discard(outbox)
            self._on_stall(outbox)

    def _on_timer(self) -> None:
        self._timer = None
        self._sweep()
        if self._watched:
            self._set_timer()

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer_loop is not loop:
            self._timer_loop = loop
            self._timer = loop.call_later(self._sweep_seconds, self._on_timer, context=self._context)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
