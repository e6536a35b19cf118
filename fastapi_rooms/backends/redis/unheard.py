"""Channels of a cluster that are wanted and not heard where their slot is.

A slot that moves takes its channels along, and for a moment nobody hears them. This is where it is noted since when
each of them may miss something, and who waits until it is heard. Channels that are heard again within a moment are
reported together, since slots seldom move alone.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime

REPORT_SECONDS = 0.1
"""How long channels that are heard again are collected before their gap is reported."""


class UnheardChannels:
    """What is missed, and who waits.

    Args:
        timeout: How long anybody waits, in seconds.
        report: Called with channels that are heard again, and since when they may have missed something.
    """

    def __init__(self, timeout: float, report: Callable[[datetime, Collection[bytes]], object]) -> None:
        self._timeout = timeout
        self._report = report
        self._missing_since: dict[bytes, datetime] = {}  # of channels that are not heard
        self._heard_again: dict[bytes, datetime] = {}  # to be reported: since when they were missing something
        self._report_timer: asyncio.TimerHandle | None = None  # None: nothing is to be reported
        self._awaited: dict[bytes, asyncio.Future[None]] = {}  # somebody waits until these are heard

    def is_empty(self) -> bool:
        """Return whether no channel misses anything."""
        return not self._missing_since

    def awaited(self) -> list[bytes]:
        """Return the channels for which somebody waits."""
        return list(self._awaited)

    def miss(self, channel: bytes, since: datetime) -> None:
        """Take note that a channel may miss something since then. If it misses something already, nothing changes."""
        self._missing_since.setdefault(channel, since)

    def wait_for(self, channel: bytes) -> asyncio.Future[None]:
        """Return what is done when a channel is heard, or when there is no use in waiting for it."""
        future = self._awaited.get(channel)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._awaited[channel] = loop.create_future()
            timer = loop.call_later(self._timeout, self._wait_no_more, channel)
            future.add_done_callback(lambda _: timer.cancel())
        return future

    def let_go(self, channels: Iterable[bytes]) -> None:
        """Have nobody wait for channels any longer."""
        for channel in channels:
            future = self._awaited.pop(channel, None)
            if future is not None and not future.done():
                future.set_result(None)

    def hear(self, channel: bytes) -> None:
        """Take note that a channel is heard. If it missed something, that is reported soon."""
        self.let_go([channel])
        since = self._missing_since.pop(channel, None)
        if since is None:
            return
        self._heard_again[channel] = min(since, self._heard_again.get(channel, since))
        if self._report_timer is None:
            self._report_timer = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._on_report_timer)

    def forget(self, channel: bytes) -> None:
        """Take note that nobody wants a channel any more. What it missed is not reported."""
        self._missing_since.pop(channel, None)
        self._heard_again.pop(channel, None)
        self.let_go([channel])

    def stop(self) -> None:
        """Have nobody wait, and report nothing more."""
        self.let_go(self.awaited())
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None

    def _wait_no_more(self, channel: bytes) -> None:
        """Have nobody wait for a channel that Redis does not confirm. What it misses until then is reported."""
        if channel in self._awaited:  # pragma: no branch - else it is over since this very tick
            self.miss(channel, datetime.now(UTC))
            self.let_go([channel])

    def _on_report_timer(self) -> None:
        self._report_timer = None
        heard_again, self._heard_again = self._heard_again, {}
        if heard_again:
            self._report(min(heard_again.values()), heard_again.keys())
