"""What the readers of one node share."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Literal, Protocol

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.rate import Rate
from fastapi_rooms.domain.settings import RoomsSettings

AskLimiter = Callable[[Connection, Literal["message"]], Awaitable[bool]]


class TakesOver(Protocol):
    """A reader."""

    def start(self) -> None:
        """Read in a task from now on, unless that is of no use."""
        ...


class Readers:
    """What the readers of one node share; and those whose handlers got a message in this tick.

    Those that are still busy at its end get a task that reads on.

    Args:
        settings: Limits.
        counters: Where is counted what was received and what was dropped.
        limiter: Whether the app lets a connection send another message; None: it has no word in it.
    """

    def __init__(self, settings: RoomsSettings, counters: Counters, limiter: AskLimiter | None) -> None:
        self.settings = settings
        self.counters = counters
        self.limiter = limiter
        self.max_bytes: float = math.inf if settings.max_message_bytes is None else settings.max_message_bytes
        per_second = settings.messages_per_second
        self.rate = None if per_second is None else Rate(per_second, settings.messages_burst)
        self.expects_pongs = settings.heartbeat_interval is not None  # which are no business of the handlers
        self.tasks: set[asyncio.Task[None]] = set()
        # By the id of their settings, which they keep: to hash these takes longer than all the rest of a handshake.
        self._others: dict[int, Readers] = {}
        self._context = Context()  # of the call at the end of the tick; that of a reader is its connection's own
        # To be looked at at the end of this tick, each with the context in which it received: middleware around
        # `receive` expects to be in that of its connection, and its handler has not touched it for this message yet.
        self._due: list[tuple[TakesOver, Context]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # where the end-of-tick call is due; None: not due

    def like(self, settings: RoomsSettings) -> "Readers":
        """Return what readers with other limits share; made at the first call. The tasks are the same."""
        found = self._others.get(id(settings))
        if found is None:
            found = self._others[id(settings)] = Readers(settings, self.counters, self.limiter)
            found.tasks = self.tasks
        return found

    def add(self, reader: TakesOver) -> None:
        """Look at a reader at the end of this tick. Called in the context of its connection."""
        loop = asyncio.get_running_loop()
        due = (reader, copy_context())
        if self._loop is loop:
            self._due.append(due)
        else:
            self._due = [due]  # those of a loop that has ended are not read for any more
            self._loop = loop
            loop.call_soon(self._take_over, context=self._context)

    def _take_over(self) -> None:
        self._loop = None
        readers, self._due = self._due, []
        for reader, context in readers:
            context.run(reader.start)
