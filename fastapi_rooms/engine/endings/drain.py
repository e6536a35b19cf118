"""Emptying a node that is to be stopped, so that its clients do not all come back in one instant, and shutting it."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable
from contextvars import Context

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Outbox
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.settings import RoomsSettings, are_seconds
from fastapi_rooms.engine.outbound.flusher import Flusher
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

DEFAULT_SECONDS = 10.0
BATCH_SECONDS = 0.1
"""Between two batches."""
MIN_BATCH = 10
"""How many connections are closed at once at least: a few are no crowd."""
SPREAD = 0.8
"""Over what part of the time connections are closed; the rest is for those that take their time to read."""
GRACE_SECONDS = 0.25
"""What the last to be closed have to read, also where the loop was blocked for the whole time; a drain of less than
1.25 s gives them what SPREAD leaves."""
ANSWER_SECONDS = 0.5
"""How long clients that have everything may take to answer the close frame. Most do at once; to hang up on one that is
sending would cost it the close frame that it has not read (it would see a reset, that is 1006)."""
RETRY_SECONDS = 5.0
"""When to come again where the app has ended: somebody has to restart the process first."""
RESTARTING = Close(CloseCode.SERVICE_RESTART, "restarting")


class Drain:
    """Owns the task that drains, and the fact that nobody is let in: meanwhile, and after the app has ended.

    Args:
        settings: How long it takes.
        counters: Where is counted who is closed.
        registry: Who is here.
        flusher: Who knows when everything is written, and aborts the rest.
        close: Called to close some; returns how many.
        has_tasks: Returns whether a connection has tasks of its own, which may still send.
        tell: Called when a drain begins, with how many seconds it takes.
    """

    def __init__(
        self,
        settings: RoomsSettings,
        counters: Counters,
        registry: Registry,
        flusher: Flusher,
        close: Callable[[Collection[Outbox], Close], int],
        has_tasks: Callable[[Connection], bool],
        tell: Callable[[float], object],
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._registry = registry
        self._flusher = flusher
        self._close = close
        self._has_tasks = has_tasks
        self._tell = tell
        self._task: asyncio.Task[None] | None = None  # None: none has begun since the last `stop`
        self._closes_at = 0.0  # time of the loop below at which it ends
        self._loop: asyncio.AbstractEventLoop | None = None  # where nobody is let in; None: everybody is
        self._is_interrupted = False  # from `interrupt` to `stop`
        self._shut_on: asyncio.AbstractEventLoop | None = None  # from `shut` to `resume`: where; None: it is open
        self._shut_said = Seldom()

    @property
    def is_on(self) -> bool:
        """Whether new connections are refused. What began on a loop that is closed counts no more."""
        return self._loop is not None and not self._loop.is_closed()

    @property
    def is_shut(self) -> bool:
        """Whether the app has ended. What was shut on a loop that is closed is open."""
        return self._shut_on is not None and not self._shut_on.is_closed()

    def seconds_left(self) -> float | None:
        """Return after how long somebody else may let in who comes now; None: this node does."""
        if self._loop is not None and self.is_on:
            return self._closes_at - self._loop.time()
        return RETRY_SECONDS if self.is_shut else None

    def shut(self) -> None:
        """Let nobody in until `resume`, since the app has ended. Its server should have, too."""
        self._shut_on = asyncio.get_running_loop()

    def report_shut(self) -> None:
        """Tell the operator, where somebody has come although the app has ended: the server goes on."""
        if self.is_shut and not self.is_on and self._shut_said.is_due(asyncio.get_running_loop().time()):
            logger.error(
                "the manager was stopped, but its server goes on: clients are refused with 503, and /live of "
                "health_router fails. Did an exception end the lifespan of the app, as in a task of a task group "
                "around its `yield`? Handle it in the task (BackendUnavailable, while Redis is away), and restart this "
                "process (said once a minute)"
            )

    async def run(self, seconds: float | None = None) -> None:
        """Drain, or wait for the drain that has begun; cancelling this does not cancel that.

        Raises:
            ConfigurationError: It cannot take that long.
        """
        if seconds is None:
            seconds = self._settings.drain_timeout or DEFAULT_SECONDS
        if not are_seconds(seconds):
            raise ConfigurationError(f"drain takes a number of seconds above 0, not {seconds!r}")
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._drain(seconds), name="fastapi_rooms drain", context=Context())
        if not self._task.done():
            await asyncio.wait([self._task])

    async def interrupt(self, seconds: float) -> None:
        """Refuse new connections until `stop`, which is expected within `seconds`, and end the drain that has begun."""
        self._refuse(seconds)
        self._is_interrupted = True
        if self._task is not None:
            await end_tasks([self._task])

    async def resume(self) -> None:
        """Let connections in again after `shut`, or an `interrupt` that no `stop` has followed; a drain goes on."""
        self._shut_on = None
        if self._is_interrupted:
            await self.stop()

    async def stop(self) -> None:
        """End a drain, and let connections in again: the manager may be used again."""
        if self._task is not None:
            await end_tasks([self._task])
        self._task = self._loop = None
        self._is_interrupted = False

    def _refuse(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._closes_at = self._loop.time() + seconds

    async def _drain(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        self._refuse(seconds)  # from now on nobody comes
        self._tell(seconds)
        there_were = len(self._registry)
        closing = max(0, self._flusher.sockets - there_were)
        more = f" and {closing} sockets that were closed before" if closing else ""
        logger.info("draining: %d connections%s, within %g s", there_were, more, seconds)
        size = max(MIN_BATCH, math.ceil(there_were / max(1, int(seconds * SPREAD / BATCH_SECONDS))))
        is_late = False
        while len(self._registry) and not is_late:  # who is left after the last batch could not be closed
            is_late = clock() - began >= seconds * SPREAD
            everybody = self._registry.outboxes(EVERYBODY)
            some = list(everybody) if is_late else self._first(everybody, size)
            self._counters.restarted += count_open(some)
            self._close(some, RESTARTING)
            if len(self._registry):
                await asyncio.sleep(BATCH_SECONDS)
        deadline = max(began + seconds, clock() + min(GRACE_SECONDS, seconds * (1 - SPREAD)))
        if await self._flusher.wait_until_written(deadline - clock()):
            await self._flusher.wait_until_left(min(ANSWER_SECONDS, deadline - clock()))
        aborted = self._flusher.abort_rest()
        took = clock() - began
        logger.info("drained: %d connections closed, %d of them aborted, in %.1f s", there_were, aborted, took)
        if stuck := self._flusher.count_unwritten():
            logger.warning("%d connections take nothing and cannot be aborted: the server may wait for them", stuck)

    def _first(self, everybody: Iterable[Outbox], size: int) -> list[Outbox]:
        """Return whom to close next; those who are at work come last, so that their answers may still get out.

        At the same pace as all others, though: they may be at work for as long as they are connected.
        """
        some: list[Outbox] = []
        at_work: list[Outbox] = []
        for outbox in everybody:
            reader = outbox.connection._reader
            if (reader is not None and reader.is_at_work) or self._has_tasks(outbox.connection):
                at_work.append(outbox)
            else:
                some.append(outbox)
                if len(some) == size:
                    return some
        return some + at_work[: size - len(some)]


def count_open(outboxes: Iterable[Outbox]) -> int:
    """Return how many count as restarted now. Who is being connected does when it was let in, or is refused."""
    return sum(outbox.connection.is_open for outbox in outboxes)
