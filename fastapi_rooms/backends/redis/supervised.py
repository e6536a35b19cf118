"""One connection to Redis that is made again whenever it is lost."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextvars import Context
from random import uniform
from typing import Any

from redis.asyncio.connection import AbstractConnection

from fastapi_rooms.backends.redis.dialing import Lost, close, hang_up, read
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

FIRST_PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 1.0
MAX_BUSY_SECONDS = 0.005
AT_ONCE_SECONDS = 0.005

Dial = Callable[[], Awaitable[AbstractConnection]]


def pause_before(attempt: int) -> float:
    """Return how long to wait before the n-th attempt in a row, from 0, in seconds.

    Full jitter, so that nodes that lost the same Redis do not come back at once (Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015).
    """
    if attempt == 0:
        return 0.0
    return uniform(0, min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 10)))  # noqa: S311 - no secret


class SupervisedConnection(ABC):
    """Base of the publishing and the listening side: one connection at a time, read by one task, written by another.

    Args:
        name: What the task is called.
        dial: Makes a fresh connection; raises BackendUnavailable.
        on_change: Called when a connection was made or lost.
    """

    def __init__(self, name: str, dial: Dial, on_change: Callable[[], object]) -> None:
        self.name = name
        self.connections_made = 0
        self.last_error: BackendUnavailable | None = (
            None  # the last failure; None: none since the last proof that it works
        )
        self._dial = dial
        self._on_change = on_change
        self._connection: AbstractConnection | None = None  # None: there is none at the moment
        self._reading_since: float | None = (
            None  # when it began to wait for what comes next; None: it handles something
        )
        self._attempts = 0  # in a row, none of which was proved good
        self._task: asyncio.Task[None] | None = None  # None: not started, or stopped
        self._wake = asyncio.Event()  # there is something to write

    @property
    def is_up(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    @property
    def is_behind(self) -> bool:
        """Whether it is still reading what has arrived before: it handles something, or was given the next at once."""
        since = self._reading_since
        return self.is_up and (since is None or asyncio.get_running_loop().time() - since < AT_ONCE_SECONDS)

    @property
    def address(self) -> tuple[Any, Any]:
        """Host and port of the server, as they were dialled; None for what is not known."""
        return getattr(self._connection, "host", None), getattr(self._connection, "port", None)

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name, context=Context())

    async def stop(self) -> None:
        """Hang up for good. Leaves no task."""
        if self._task is not None:
            await end_tasks([self._task])
            self._task = None

    def prove(self) -> None:
        """Take note that the connection works: if it is lost, the next attempt comes at once."""
        self._attempts = 0
        self.last_error = None

    def drop(self, reason: str) -> None:
        """Hang up and connect anew."""
        if self._connection is not None:
            logger.debug("%s: hung up: %s", self.name, reason)
            hang_up(self._connection)
            self._lose(BackendUnavailable(reason))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(pause_before(self._attempts))
            self._attempts += 1
            try:
                connection = await self._dial()
            except BackendUnavailable as error:
                self._fail_to_connect(error)
                continue
            except Exception as bug:
                logger.exception("%s failed; connecting anew", self.name)
                self._fail_to_connect(BackendUnavailable(f"connecting failed: {bug!r}"))
                continue
            self._connection = connection
            self.connections_made += 1
            await self._serve(connection)

    def _fail_to_connect(self, error: BackendUnavailable) -> None:
        self.last_error = error
        self._on_change()

    async def _serve(self, connection: AbstractConnection) -> None:
        """Read and write until the connection is lost. Whatever happens to it ends here; nothing ends the task."""
        writing = asyncio.get_running_loop().create_task(self._write_all(connection), name=f"{self.name} writing")
        error = BackendUnavailable("the backend was stopped")
        try:
            self._begin()
            self._on_change()
            await self._read_all(connection)
        except Lost as lost:
            error = BackendUnavailable(f"the connection to Redis was lost: {lost}")
        except Exception as bug:
            error = BackendUnavailable(f"what Redis said could not be handled: {bug!r}")
            logger.exception("%s failed; connecting anew", self.name)
        finally:
            if self._connection is connection:
                self._lose(error)
            await close(connection)
            await end_tasks([writing])

    async def _read_all(self, connection: AbstractConnection) -> None:
        clock = asyncio.get_running_loop().time
        busy = 0.0
        while True:
            self._reading_since = clock()
            reply = await read(connection)
            self._reading_since = None
            if self._connection is not connection:
                return  # dropped meanwhile: a late reply would tell of what is not true any more
            begin = clock()
            self._take(reply)
            busy += clock() - begin
            if busy > MAX_BUSY_SECONDS:
                # What is buffered is read without a pause; the rest of the node must have its turn.
                await asyncio.sleep(0)
                busy = 0.0

    def _lose(self, error: BackendUnavailable) -> None:
        self._connection = None
        self.last_error = error
        self._end(error)
        self._on_change()

    async def _write_all(self, connection: AbstractConnection) -> None:
        """Write what there is whenever there is something: all that came within one tick in one piece."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if connection is self._connection:
                    await self._write(connection)
        except Lost as lost:
            logger.debug("%s: could not write: %s", self.name, lost)
            hang_up(connection)  # its reader sees the end

    # What the two sides do differently

    @abstractmethod
    def _begin(self) -> None:
        """Take a fresh connection into use."""

    @abstractmethod
    def _end(self, error: BackendUnavailable) -> None:
        """Give up what depended on the connection that was lost."""

    @abstractmethod
    def _take(self, reply: object) -> None:
        """Act on what Redis said; an error that answers a command is among it."""

    @abstractmethod
    async def _write(self, connection: AbstractConnection) -> None:
        """Write what there is to write now."""
