"""Telling how a node is doing to whoever asks, on whatever thread. Knows no OpenTelemetry."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from weakref import WeakMethod

from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.stats import Stats

logger = logging.getLogger("fastapi_rooms")

SNAPSHOT_SECONDS = 1.0
"""How long somebody on another thread waits for the loop. One that is blocked for longer has nothing to say."""


class _Snapshot:
    def __init__(self, stats: Stats | None) -> None:
        self.stats = stats  # None: nobody could tell
        self.read_by: set[str] = set()


class Reporter:
    """Takes snapshots of a manager while it is running. Does not keep it alive.

    Exporters collect on threads of their own, where a manager may not be touched. So a snapshot is taken on the
    manager's loop; only who collects on the loop's thread takes it there and then.

    Made on the loop of the manager.

    Args:
        stats: The manager's own method.
    """

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._stats = WeakMethod(stats)
        self._last: _Snapshot | None = None  # the last one; None before the first
        self._has_ended = False  # set by `end`
        self._keeping = threading.Lock()  # held for an instant by who changes the two
        self._failures_said = Seldom()

    @property
    def is_over(self) -> bool:
        """Whether there will be no other snapshot."""
        return self._has_ended or self._stats() is None

    def read(self, reader: str) -> Stats | None:
        """Return how the manager is doing; None if nobody can tell, or it has ended and the reader knows the last.

        Many readers are asked in one collection. They share a snapshot, until one of them reads a second time.
        """
        last = self._last
        if last is None or reader in last.read_by:
            stats = self._stats()
            if self._has_ended or stats is None:
                return None
            last = self._keep(_Snapshot(self._try_to_take(stats)))
        last.read_by.add(reader)
        return last.stats

    def end(self, stats: Stats) -> None:
        """Take no more snapshots. The next collection has this last one, and those after that nothing."""
        with self._keeping:
            self._last = _Snapshot(stats)
            self._has_ended = True

    def _keep(self, taken: _Snapshot) -> _Snapshot:
        """Keep a snapshot, unless the last one was kept while it was taken; return the one that counts."""
        with self._keeping:
            if not self._has_ended or self._last is None:
                self._last = taken
            return self._last

    def _try_to_take(self, stats: Callable[[], Stats]) -> Stats | None:
        try:
            return self._take(stats)
        except Exception:
            if self._failures_said.is_due(time.monotonic()):
                logger.exception("a manager failed to tell how it is doing (said once a minute)")
            return None

    def _take(self, stats: Callable[[], Stats]) -> Stats | None:
        if threading.get_ident() == self._thread:
            return stats()
        answer: Future[Stats] = Future()
        try:
            self.loop.call_soon_threadsafe(_answer, answer, stats, context=Context())
        except RuntimeError:  # the loop is closed
            return None
        try:
            return answer.result(SNAPSHOT_SECONDS)
        except TimeoutError:
            return None


def _answer(answer: Future[Stats], stats: Callable[[], Stats]) -> None:
    try:
        answer.set_result(stats())
    except Exception as error:  # noqa: BLE001 - raised at who asks
        answer.set_exception(error)
