"""Draining when the server is told to stop.

uvicorn closes all WebSockets in one instant when it gets SIGTERM or SIGINT, before the app's lifespan ends. So while
the app runs, its handlers of these signals are replaced by ours, which drain first and call them afterwards. They are
installed by the time a lifespan begins.

A handler is called in the main thread between any two instructions of whatever runs there. So it only notes the signal
and asks the loop to go on from there: a task that began at once, as those of an eager task factory do, would change the
registry while somebody goes through it; and whoever was interrupted may hold the lock of a log handler, so that a line
logged at once would wait for it for ever.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from contextvars import Context
from types import FrameType
from typing import Any, TypeGuard

from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 1.0
"""For how long after the first signal others are taken for the same: the parent of `--workers` and `--reload` sends on
what the whole process group has got already."""

NOT_HEARD = (
    "this server hears of signals through its event loop, so that nobody is drained before it stops: await "
    "manager.drain() before the signal comes. Of these servers most do not notice either who vanished without a word: "
    "RoomsSettings(heartbeat_interval=...) does"
)
"""What is missing on granian, hypercorn and gunicorn's own worker, in one line."""

SECOND = "a second signal: the rest of the connections is left to the server"

Previous = Callable[[int, FrameType | None], Any]

_OF_LOOPS = frozenset({"asyncio.unix_events", "uvloop.loop"})
"""Where the handlers live that stand for `loop.add_signal_handler`. The loop hears of a signal whoever handles it, so
taking their place would keep no server waiting (granian, hypercorn)."""


def _is_a_servers(handler: object) -> TypeGuard[Previous]:
    """Return whether a handler does something when it is called, and something else than interrupting everything."""
    return callable(handler) and handler is not signal.default_int_handler and not _is_a_loops(handler)


def _is_a_loops(handler: object) -> bool:
    return getattr(handler, "__module__", None) in _OF_LOOPS


def drain_at_signal(manager: ConnectionManager) -> "SignalledDrain | None":
    """Drain a manager when the process is told to stop; None where nobody would hear that."""
    if threading.current_thread() is not threading.main_thread():
        return None  # signals are handled in the main thread alone
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        # That of another app of this process: in a chain of two, the second would begin when the first is over.
        found = getattr(signal.getsignal(number), "__self__", None)
        if isinstance(found, SignalledDrain) and found.loop is loop:
            break
    else:
        found = SignalledDrain(loop)
    found.add(manager)
    return found


class SignalledDrain:
    """Drains the managers of a loop at the first signal, all at the same time, then lets the server have it.

    Args:
        loop: Where they live. It runs in the main thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._managers: list[ConnectionManager] = []
        self._previous: dict[int, Previous] = {}
        self._first: int | None = None  # the first signal; None: none has come yet
        self._first_at = 0.0  # when it came, in seconds of the monotonic clock: uvloop's stands still within a step
        self._task: asyncio.Task[None] | None = None  # drains; made in the next step of the loop
        self._passed_on = False  # the server has been told, or our handlers are not in use any more

    def add(self, manager: ConnectionManager) -> None:
        """Drain a manager, too; take the place of the handlers that a server has installed, where there are any."""
        self._managers.append(manager)
        if not self._previous and any(_is_a_loops(signal.getsignal(number)) for number in SIGNALS):
            logger.info(NOT_HEARD)
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if number not in self._previous and _is_a_servers(previous):
                self._previous[number] = previous
                signal.signal(number, self._on_signal)

    async def remove(self, manager: ConnectionManager) -> None:
        """Forget a manager; with the last, put the server's handlers back where ours still are, and end what runs."""
        self._managers.remove(manager)
        if self._managers:
            return
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, previous)
        if self._task is not None:
            await end_tasks([self._task])
        self._pass_on()
        self._first = None  # what still calls us, since it has taken our place, is let through

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_echo = self._first is not None and time.monotonic() - self._first_at <= ECHO_SECONDS
        if is_echo:
            return
        if self._passed_on or self.loop.is_closed():
            self._previous[number](number, frame)
        elif self._first is None:
            self._first, self._first_at = number, time.monotonic()
            self.loop.call_soon_threadsafe(self._begin, context=Context())
        else:
            self.loop.call_soon_threadsafe(logger.warning, SECOND, context=Context())
            self._pass_on()

    def _begin(self) -> None:
        if not self._passed_on:
            self._task = self.loop.create_task(self._drain(), name="fastapi_rooms drain at a signal")

    async def _drain(self) -> None:
        try:
            await asyncio.gather(*(manager.drain() for manager in self._managers))
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """Let the server have the first signal, once; what comes later goes to it at once."""
        if not self._passed_on:
            self._passed_on = True
            if self._first is not None:
                self._previous[self._first](self._first, None)
