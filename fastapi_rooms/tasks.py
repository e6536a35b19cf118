"""asyncio tasks and loops. Every task has an owner, and every owner one loop at a time."""

import asyncio
from collections.abc import Awaitable, Iterable
from threading import get_ident
from typing import Any

from fastapi_rooms.domain.errors import ConfigurationError

AGAIN_SECONDS = 1.0
"""After how long who has swallowed its cancellation is cancelled again."""


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end, again and again if they do not obey; tasks of other loops are left alone."""
    loop = asyncio.get_running_loop()
    while here := [task for task in tasks if task.get_loop() is loop and not task.done()]:
        for task in here:
            task.cancel()
        await asyncio.wait(here, timeout=AGAIN_SECONDS)


async def wait_for(told: Awaitable[object]) -> None:
    """Wait for whatever can be waited for: a task takes nothing but a coroutine. Raises what that raises."""
    await told


class HomeLoop:
    """The event loop of an owner. When it has ended or was left, another one may be; two that run never are.

    Args:
        remedy: What the error says that whoever calls from elsewhere is to do.
    """

    def __init__(self, remedy: str) -> None:
        self._remedy = remedy
        self._loop: asyncio.AbstractEventLoop | None = None  # None: nobody has settled yet
        self._lock = asyncio.Lock()  # of that loop
        self._thread = 0  # in which it was settled on; 0 is none
        self._was_left = False

    def settle(self) -> asyncio.Lock:
        """Make this loop the home; return its lock. Raises as `check` does."""
        self.check()
        if not self.is_here():
            self._loop, self._lock = asyncio.get_running_loop(), asyncio.Lock()  # nobody waits on a loop that has ended
        self._thread = get_ident()
        self._was_left = False
        return self._lock

    def leave(self) -> None:
        """Let another loop be the home."""
        self._was_left = True

    def is_here(self) -> bool:
        """Return whether this loop is the home, or was it last."""
        return self._loop is asyncio.get_running_loop()

    def check(self) -> None:
        """Check that no other loop that runs is the home. Cheap enough to be done at every call.

        Raises:
            ConfigurationError: One is: what is touched from here would break there, and whoever waits here would wait
                for ever.
        """
        # A thread runs one loop at a time. To ask for that loop is a system call before Python 3.12, `getpid`.
        if get_ident() != self._thread and self._is_running_elsewhere():
            raise ConfigurationError(f"this is not the event loop that it lives on, which is running: {self._remedy}")

    def _is_running_elsewhere(self) -> bool:
        if self._loop is None or self._was_left or not self._loop.is_running():
            return False
        try:
            return not self.is_here()
        except RuntimeError:  # this thread has no loop
            return True
