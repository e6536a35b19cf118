"""asyncio tasks. Every task has an owner; this is how owners end them, and what some of them do."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

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


class LoopLock:
    """A lock for owners that outlive a loop: each loop has another, and nobody waits on one that has ended."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # whose lock that is; None: nobody has asked yet

    def here(self) -> asyncio.Lock:
        """Return the lock of this loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        return self._lock
