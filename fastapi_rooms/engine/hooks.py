"""What an app can be told about: its own functions, called apart from what moves messages."""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass
from random import uniform
from typing import Any

from starlette.websockets import WebSocket

from fastapi_rooms.domain.backend_state import Gap
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.functions import check_takes, yields
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

Hook = Callable[..., object]

_hook_task: ContextVar[asyncio.Task[Any] | None] = ContextVar("fastapi_rooms_hook")
"""The task of the hook in which something is done, also by tasks that the hook has made."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The end of a connection."""

    connection: Connection
    """Which; its `rooms` are those it was in."""
    code: int | None
    """The close code: ours, the server's or the client's; 1006 if there was no close frame, None if nobody knows."""
    reason: str
    """The reason beside the code."""
    seconds: float
    """How long it was connected."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A handshake or a join that was refused."""

    reason: Refusal
    """Why."""
    websocket: WebSocket
    """Whose."""
    user_id: str | None = None
    """The identity, where it was known."""
    room: str | None = None
    """The room, of a join."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions that are called when something has happened on this node; `async` or not.

    They run after the event, in the order of the events, apart from what moves messages: one that raises is logged,
    and nothing else comes of it. A plain function must not block, as everything on the loop. An `async` one gets a task
    of its own. What is still running when the manager stops has `disconnect_grace` to finish, and is cancelled then.
    """

    connected: Callable[[Connection], object] | None = None
    """A connection is open."""
    disconnected: Callable[[Disconnected], object] | None = None
    """A connection has ended, by whomever."""
    joined: Callable[[Connection, str], object] | None = None
    """A connection has become a member of a room."""
    left: Callable[[Connection, str], object] | None = None
    """A connection is no member of a room any more; also when it has ended."""
    overflow: Callable[[Connection], object] | None = None
    """A connection is closed as a slow consumer: its outbox was full."""
    refused: Callable[[Refused], object] | None = None
    """A handshake or a join was refused. As often as clients like: an `async` one should be short."""
    draining: Callable[[float], object] | None = None
    """This node is being stopped: nobody new is let in, and those who are here are closed, over so many seconds."""
    gap: Callable[[Gap], object] | None = None
    """This node hears the others again after it did not, and may have missed something."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            hook = getattr(self, name)
            if hook is not None:
                check_hook(f"the hook {name!r}", hook, _ARGUMENTS.get(name, 1))


_ARGUMENTS = {"joined": 2, "left": 2}


def check_hook(name: str, hook: object, count: int) -> None:
    """Check that a hook does something when it is called as it will be.

    Raises:
        ConfigurationError: It is no function, does not take so many arguments, or yields.
    """
    if not callable(hook):
        raise ConfigurationError(f"{name} takes a function, not {hook!r}")
    if yields(hook):
        raise ConfigurationError(f"{name} would do nothing, since {hook!r} yields: write it without `yield`")
    check_takes(hook, (None,) * count, f"{name} is called with {count} argument{'s' if count > 1 else ''}")


AGAIN_AFTER = (0.5, 1, 2, 4, 8, 16)
"""After how many seconds a hook that has to be told is called again, at most; half of it at least."""


class Announcer:
    """Calls hooks at the end of the tick, in order. Owns the tasks of those that are `async`."""

    def __init__(self) -> None:
        self._due: deque[tuple[Hook, tuple[Any, ...]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # where the end-of-tick call is due; None: not due
        self._tasks: set[asyncio.Task[object]] = set()
        self._pausing: set[asyncio.Task[object]] = set()  # those that wait until they call a hook again
        self._failures_said: dict[int, Seldom] = {}  # by the id of each that has failed: it may not be hashable

    def tell(self, hook: Hook | None, *arguments: Any) -> None:
        """Call a hook at the end of this tick, if there is one."""
        if hook is None:
            return
        self._due.append((hook, arguments))
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._call_all, context=Context())  # an empty one: it outlives what it tells about

    def insist(self, hook: Hook | None, *arguments: Any) -> None:
        """Call a hook as `tell` does, and again while it raises, with a growing pause: `AGAIN_AFTER`."""
        if hook is not None:
            self.tell(_Insistent(hook, self._pausing), *arguments)

    async def finish(self, seconds: float) -> None:
        """Call what is due, and let what runs come to its end, within `seconds` at most. Nothing is called again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._call_all()
        await asyncio.sleep(0)  # those that have just begun get to their first await
        await end_tasks(self._pausing)
        while (running := self._others()) and (left := deadline - loop.time()) > 0:  # others begin meanwhile
            await asyncio.wait(running, timeout=left)

    async def stop(self) -> None:
        """Call what is due, and end what runs."""
        await self.finish(0)
        while others := self._others():
            await end_tasks(others)
            self._call_all()

    def _others(self) -> list[asyncio.Task[object]]:
        """Return the tasks of hooks, but for that which calls: a hook may be the one that stops the manager."""
        this, loop = _hook_task.get(None), asyncio.get_running_loop()
        return [task for task in self._tasks if task is not this and task.get_loop() is loop]

    def _call_all(self) -> None:
        self._loop = None
        while self._due:
            hook, arguments = self._due.popleft()
            try:
                result = hook(*arguments)
            except Exception as error:  # noqa: BLE001 - whatever an app's function raises
                self._log_failure(hook, error)
            else:
                if inspect.isawaitable(result):
                    task = asyncio.get_running_loop().create_task(self._finish(hook, result), name="fastapi_rooms hook")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _finish(self, hook: Hook, result: Awaitable[object]) -> None:
        _hook_task.set(asyncio.current_task())
        try:
            await result
        except Exception as error:  # noqa: BLE001 - whatever an app's function raises
            self._log_failure(hook, error)

    def _log_failure(self, hook: Hook, error: Exception) -> None:
        """Log what a hook raised, of each once a minute: clients decide how often one is called."""
        said = self._failures_said.setdefault(id(hook), Seldom())
        if said.is_due(asyncio.get_running_loop().time()):
            name = getattr(hook, "__qualname__", repr(hook))
            logger.error("the hook %s failed (said once a minute)", name, exc_info=error)


class _Insistent:
    """A hook that is called until it does not raise, or has done so too often."""

    def __init__(self, hook: Hook, pausing: "set[asyncio.Task[object]]") -> None:
        self._hook = hook
        self._pausing = pausing
        self.__qualname__ = getattr(hook, "__qualname__", repr(hook))

    def __call__(self, *arguments: Any) -> Awaitable[object] | None:
        try:
            result = self._hook(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever an app's function raises
            return self._call_again(arguments, error)
        return self._finish(arguments, result) if inspect.isawaitable(result) else None

    async def _finish(self, arguments: tuple[Any, ...], result: Awaitable[object]) -> None:
        try:
            await result
        except Exception as error:  # noqa: BLE001 - whatever an app's function raises
            await self._call_again(arguments, error)

    async def _call_again(self, arguments: tuple[Any, ...], error: Exception) -> None:
        for seconds in AGAIN_AFTER:
            pause = seconds * uniform(0.5, 1)  # noqa: S311 - so that not all nodes come back at once
            logger.warning("%s failed, and is called again in %.1f s", self.__qualname__, pause, exc_info=error)
            await self._pause(pause)
            try:
                result = self._hook(*arguments)
                if inspect.isawaitable(result):
                    await result
            except Exception as again:  # noqa: BLE001 - whatever an app's function raises
                error = again
            else:
                return
        logger.error(
            "%s failed %d times, and is not called again", self.__qualname__, 1 + len(AGAIN_AFTER), exc_info=error
        )

    async def _pause(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None, "hooks that return something to wait for run in a task"
        self._pausing.add(task)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._pausing.discard(task)
