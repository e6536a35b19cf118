"""Emptying a node that is to be stopped, so that its clients do not all come back in one instant."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from contextvars import Context
from itertools import islice

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Outbox
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission import Admission
from fastapi_rooms.engine.flusher import Flusher
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
RESTARTING = Close(CloseCode.SERVICE_RESTART, "restarting")


class Drain:
    """Owns the task that drains.

    Args:
        settings: How long it takes.
        admission: Who is let in: nobody, once a drain has begun.
        registry: Who is here.
        flusher: Who knows when everything is written, and aborts the rest.
        close: Called to close some.
    """

    def __init__(
        self,
        settings: RoomsSettings,
        admission: Admission,
        registry: Registry,
        flusher: Flusher,
        close: Callable[[Collection[Outbox], Close], object],
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._registry = registry
        self._flusher = flusher
        self._close = close
        self._task: asyncio.Task[None] | None = None  # None: none has begun since the last `stop`

    async def run(self, seconds: float | None = None) -> None:
        """Drain, or wait for the drain that has begun; cancelling this does not cancel that.

        Raises:
            ConfigurationError: It cannot take that long.
        """
        if seconds is None:
            seconds = self._settings.drain_timeout or DEFAULT_SECONDS
        if not 0 < seconds < math.inf:
            raise ConfigurationError(f"drain takes a number of seconds above 0, not {seconds!r}")
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._drain(seconds), name="fastapi_rooms drain", context=Context()
            )
        if not self._task.done():
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """End a drain, and let connections in again: the manager may be used again."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])
        self._admission.closes_at = None

    async def _drain(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        self._admission.closes_at = began + seconds  # from now on nobody comes
        there_were = len(self._registry)
        logger.info("draining: %d connections, within %g s", there_were, seconds)
        size = max(MIN_BATCH, math.ceil(there_were / max(1, int(seconds * SPREAD / BATCH_SECONDS))))
        while len(self._registry):
            is_late = clock() - began >= seconds * SPREAD
            everybody = self._registry.outboxes(EVERYBODY)
            self._close(list(everybody if is_late else islice(everybody, size)), RESTARTING)
            if len(self._registry):
                await asyncio.sleep(BATCH_SECONDS)
        deadline = max(began + seconds, clock() + min(GRACE_SECONDS, seconds * (1 - SPREAD)))
        if await self._flusher.wait_until_written(deadline - clock()):
            await self._flusher.wait_until_left(min(ANSWER_SECONDS, deadline - clock()))
        aborted = self._flusher.abort_rest()
        logger.info("drained: %d connections closed, %d aborted, in %.1f s", there_were, aborted, clock() - began)
