"""Keeping the table of a cluster's slots up to date.

Redis tells nobody that a slot has moved. A node finds out when a server sends it elsewhere, and then asks for the whole
table. Nobody is sent elsewhere by a server that is gone, so while a shard is away the table is asked for again and
again: its replica may have taken over.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from random import uniform

from fastapi_rooms.backends.redis.asking import first_answer
from fastapi_rooms.backends.redis.dialing import Server
from fastapi_rooms.backends.redis.slots import SlotTable
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

MIN_REFRESH_SECONDS = 0.1
"""Between two questions for the table, however often somebody is sent elsewhere."""
UNHEALTHY_REFRESH_SECONDS = 0.5
"""Between two questions while a shard is away."""


class TableKeeper:
    """Asks for the table: at the start, when it is out of date, and again and again while the cluster is not healthy.

    Args:
        whom_to_ask: Returns the servers that may know the table, those to ask first in front.
        is_healthy: Returns whether every slot has a server that works.
        on_table: Called with every table that a server has told.
        on_asked: Called after every question, whether it was answered or not.
    """

    def __init__(
        self,
        whom_to_ask: Callable[[], Iterable[Server]],
        is_healthy: Callable[[], bool],
        on_table: Callable[[SlotTable], object],
        on_asked: Callable[[], object],
    ) -> None:
        self.last_error: BackendUnavailable | None = None  # why nobody told the table; None: somebody did
        self._whom_to_ask = whom_to_ask
        self._is_healthy = is_healthy
        self._on_table = on_table
        self._on_asked = on_asked
        self._is_stale = asyncio.Event()  # the table may be out of date
        self._has_asked = asyncio.Event()  # the first question was answered, or nobody had an answer
        self._failures_said = Seldom()
        self._task: asyncio.Task[None] | None = None  # None: not started, or stopped

    @property
    def has_asked(self) -> bool:
        """Whether the first question was answered, or nobody had an answer."""
        return self._has_asked.is_set()

    def start(self) -> None:
        """Ask for the table."""
        self._task = asyncio.get_running_loop().create_task(
            self._keep(), name="fastapi_rooms cluster table", context=Context()
        )

    async def stop(self) -> None:
        """Ask no more. Leaves no task."""
        if self._task is not None:
            await end_tasks([self._task])
            self._task = None

    async def asked(self) -> None:
        """Wait until the first question was answered, or nobody had an answer."""
        await self._has_asked.wait()

    def expire(self) -> None:
        """Take note that the table may be out of date; it is asked for soon."""
        self._is_stale.set()

    async def _keep(self) -> None:
        while True:
            self._is_stale.clear()
            with self._going_on():
                await self._ask()
            self._has_asked.set()
            with self._going_on():
                self._on_asked()
            await asyncio.sleep(MIN_REFRESH_SECONDS)
            if self.last_error is None and self._is_healthy():
                await self._is_stale.wait()
            else:
                await asyncio.sleep(uniform(0, UNHEALTHY_REFRESH_SECONDS - MIN_REFRESH_SECONDS))  # noqa: S311 - no secret

    async def _ask(self) -> None:
        try:
            table = await first_answer(map(ask_for_table, self._whom_to_ask()))
        except BackendUnavailable as error:
            logger.debug("the cluster's table could not be had: %s", error)
            self.last_error = error
        else:
            self.last_error = None
            self._on_table(table)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Let no failure end the task, whatever a server has said: no table would ever be asked for again."""
        try:
            yield
        except Exception as bug:
            self.last_error = BackendUnavailable(f"the cluster's table could not be had: {bug!r}")
            if self._failures_said.is_due(asyncio.get_running_loop().time()):
                logger.exception("the cluster's table could not be had; asking again (said once a minute)")


async def ask_for_table(server: Server) -> SlotTable:
    """Ask a server who has which slot.

    Raises:
        BackendUnavailable: It has no answer, or knows nobody who has a slot.
    """
    answer = await server.ask("CLUSTER", "SLOTS")
    table = SlotTable()
    try:
        table.replace(answer, server.address)
    except ValueError as error:
        raise BackendUnavailable(f"Redis at {server}: {error}") from error
    if not table.owners():
        raise BackendUnavailable(f"Redis at {server} is in no cluster, or knows nobody who has a slot")
    return table
