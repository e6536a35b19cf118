"""A backend that does what a test tells it, and keeps what it was told."""

import asyncio
from collections.abc import Awaitable, Collection
from datetime import UTC, datetime

from fastapi_rooms.backends.contract import Receiver
from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, Target
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.messages import Message

OTHER_NODE = "0123456789abcdef0123456789abcdef"


def text(payload: str, target: Target = EVERYBODY, excluded: Collection[str] = ()) -> Envelope:
    """What another node says."""
    return Envelope(OTHER_NODE, target, Message(payload.encode(), is_text=True), frozenset(excluded))


class ScriptedBackend:
    """Reaches nobody. Every call can be held up or fail."""

    def __init__(self) -> None:
        self.wanted: set[Target] = set()
        self.published: list[Envelope] = []
        self.told: list[str] = []  # lifecycle calls, when they began and when they were over
        self.faults: list[str] = []  # mistakes of the manager
        self.receiver: Receiver | None = None  # None: it does not run
        self.starts = asyncio.Event()  # cleared: a start hangs
        self.starts.set()
        self.stops = asyncio.Event()  # cleared: a stop hangs
        self.stops.set()
        self.start_error: BackendUnavailable | None = None
        self.confirms = True  # False: subscriptions wait for `confirm`
        self.answers = True  # False: publishes wait for `answer`
        self.undelivered = 0
        self.waiting: dict[Target, asyncio.Future[None]] = {}
        self.unanswered: list[asyncio.Future[None]] = []
        self._is_changing = False

    @property
    def status(self) -> BackendStatus:
        since = None if self.receiver is not None else datetime.now(UTC)
        return BackendStatus(since is None, since, undelivered=self.undelivered)

    async def start(self, node_id: str, receiver: Receiver, *, required: bool = False) -> None:
        await self._change("start", self.starts)
        if self.start_error is not None:
            raise self.start_error
        if self.receiver is None:
            self.receiver = receiver

    async def stop(self) -> None:
        await self._change("stop", self.stops)
        self.receiver = None

    async def _change(self, name: str, gate: asyncio.Event) -> None:
        if self._is_changing:
            self.faults.append(f"{name} while it starts or stops")
        self._is_changing = True
        self.told.append(name)
        try:
            await gate.wait()
            self.told.append(f"{name} is over")
        finally:
            self._is_changing = False

    def publish(self, envelope: Envelope) -> Awaitable[None]:
        self.published.append(envelope)
        future = asyncio.get_running_loop().create_future()
        self.unanswered.append(future)
        if self.answers:
            self.answer()
        return future

    def answer(self, error: str | None = None) -> None:
        """Say that what was published has arrived, or why not."""
        for future in self.unanswered:
            if error is not None:
                self.undelivered += 1
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(BackendUnavailable(error))
        self.unanswered.clear()

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        self.wanted.update(targets)
        if self.confirms:
            return asyncio.gather()
        loop = asyncio.get_running_loop()
        return asyncio.gather(*(asyncio.shield(self.waiting.setdefault(t, loop.create_future())) for t in targets))

    def confirm(self, *targets: Target) -> None:
        """Confirm subscriptions; all that somebody waits for, if none is named."""
        for target in targets or list(self.waiting):
            future = self.waiting.pop(target, None)
            if future is not None:
                future.set_result(None)

    def unsubscribe(self, targets: Collection[Target]) -> None:
        self.wanted.difference_update(targets)
