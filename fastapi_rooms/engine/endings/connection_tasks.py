"""Tasks that end with a connection: what an app pushes to a client beside its handler."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

from starlette.websockets import WebSocketDisconnect

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConnectionEnded, is_nothing_but, tells_of_end
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

T = TypeVar("T")


class ConnectionTasks:
    """Owns them, and ends them.

    Args:
        grace: How long they have when their connection has ended, in seconds.
        close: Called to close the connection of one that has failed; returns whether it was here.
    """

    def __init__(self, grace: float, close: Callable[[Connection, Close], bool]) -> None:
        self._grace = grace
        self._close = close
        self._tasks: dict[Connection, set[asyncio.Task[Any]]] = {}
        self._timers: dict[Connection, asyncio.TimerHandle] = {}  # of connections that have ended: when tasks have to

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._tasks

    def start(self, connection: Connection, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start one, in the context of the caller: it is the app's own."""
        task = asyncio.get_running_loop().create_task(coroutine, name=f"fastapi_rooms task of {connection!r}")
        self._tasks.setdefault(connection, set()).add(task)
        task.add_done_callback(partial(self._on_done, connection))
        return task

    def end(self, connection: Connection) -> None:
        """Cancel those of a connection that has ended, when their grace is over. Idempotent."""
        if connection in self._tasks and connection not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[connection] = loop.call_later(self._grace, self._cancel, connection, context=Context())

    async def stop(self) -> None:
        """End all of them, but for that which calls: it may be one of them that stops the manager."""
        this = asyncio.current_task()
        await end_tasks([task for tasks in self._tasks.values() for task in tasks if task is not this])

    def _cancel(self, connection: Connection) -> None:
        for task in self._tasks.get(connection, ()):
            task.cancel()

    def _on_done(self, connection: Connection, task: asyncio.Task[Any]) -> None:
        tasks = self._tasks[connection]
        tasks.discard(task)
        if not tasks:
            del self._tasks[connection]
            timer = self._timers.pop(connection, None)
            if timer is not None:
                timer.cancel()
        if task.cancelled():
            return
        error = task.exception()
        if error is None or tells_of_end(error) or (not connection.is_open and says_that_it_is_over(error)):
            return
        is_closed = self._close(connection, Close(CloseCode.INTERNAL_ERROR))
        what = "failed: the client is closed with 1011" if is_closed else "failed when it had ended"
        logger.error("a task of %r %s", connection, what, exc_info=error)


def says_that_it_is_over(error: BaseException) -> bool:
    """Return whether an exception of what serves a connection that has ended, or all of a group, comes of that end."""
    return is_nothing_but(error, _comes_of_an_end)


def _comes_of_an_end(error: BaseException) -> bool:
    """Return whether an exception comes of an end: of a send, or of `anext(messages)`.

    Python makes a `RuntimeError` of the latter in what yields (PEP 479).
    """
    kinds = ConnectionEnded | WebSocketDisconnect | StopAsyncIteration
    return isinstance(error, kinds) or isinstance(error.__cause__, StopAsyncIteration)
