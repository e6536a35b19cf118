"""Who waits for peers: the tasks that write what could not be written at once.

On servers that are reached through ASGI every write may wait, and hardly any does. A task for each would cost more than
the writes. So one task writes outbox after outbox, and when one of them keeps it waiting, others go on with the rest:
one in the next tick, then two, four and so on, while nothing moves.
"""

import asyncio
import logging
from collections import deque
from contextvars import Context

from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.outbound.outbox import Outbox
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

SLICE_SECONDS = 0.005
"""How long is written, flushed or looked at in one go, before the rest of the node has its turn."""
LATE_SECONDS = 1.0
"""After how long without its turn an outbox has this node say that it is behind."""


class Writers:
    """Owns the tasks that write, and the outboxes that wait for one."""

    def __init__(self) -> None:
        self._context = Context()  # an empty one: a node outlives the request that happened to be first
        self._waiting: deque[tuple[Outbox, float]] = deque()  # since when, in loop time; who waits longest first
        self._warnings = Seldom()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pausing: set[asyncio.Task[None]] = set()  # those that left the loop to others, and go on by themselves
        self._help = 1  # how many tasks are started next if nothing has moved
        self._loop: asyncio.AbstractEventLoop | None = None  # where `_look` is due; None: it is not

    def add(self, outbox: Outbox) -> None:
        """Let a task write an outbox, from the next tick on."""
        loop = asyncio.get_running_loop()
        self._waiting.append((outbox, loop.time()))
        if self._loop is not loop:
            self._help = 1
            self._start(loop)

    def behind_seconds(self) -> float:
        """Return for how long an outbox has waited for its turn, 0.0 if none does."""
        if not self._waiting or self._loop is None or self._loop.is_closed():
            return 0.0
        return max(0.0, self._loop.time() - self._waiting[0][1])

    async def end(self) -> None:
        """End all tasks; nothing is written any more."""
        self._waiting.clear()
        await end_tasks(self._tasks)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start tasks, and look in the next tick whether they have written everything."""
        for _ in range(min(self._help, len(self._waiting))):
            task = loop.create_task(self._write(), name="fastapi_rooms outbox", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._help *= 2
        self._loop = loop
        loop.call_soon(self._look, context=self._context)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self._loop = None
        elif any(task.get_loop() is loop for task in self._pausing):  # those of another loop may never go on
            self._help = 1
            loop.call_soon(self._look, context=self._context)
        else:
            self._start(loop)

    async def _write(self) -> None:
        clock = asyncio.get_running_loop().time
        task = asyncio.current_task()
        assert task is not None, "this runs in a task"
        now = clock()
        end = now + SLICE_SECONDS
        while self._waiting:
            outbox, since = self._waiting.popleft()
            if now - since > LATE_SECONDS:
                self._report(now, now - since)
            await outbox.write_rest(task)
            now = clock()
            if self._waiting and now > end:
                self._pausing.add(task)
                try:
                    await asyncio.sleep(0)
                finally:
                    self._pausing.discard(task)
                now = clock()
                end = now + SLICE_SECONDS

    def _report(self, now: float, waited: float) -> None:
        if self._warnings.is_due(now):
            logger.warning(
                "this node is behind: what it sends has waited for %.1f s before its turn came. Nobody is taken for "
                "stalled for that. Look for middleware whose `send` takes long, and for code that blocks the loop "
                "(said once a minute)",
                waited,
            )
