"""The backend in memory: several nodes in one process. Each may have an event loop and a thread of its own.

It is for tests, and the simplest example of a backend. Envelopes cross the hub as bytes and without the publisher's
context variables, as they would on a network. What was published before a node was cut off still reaches the node, so
what it misses lies exactly within its gap.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi_rooms.backends.contract import Receiver
from fastapi_rooms.domain.backend_state import BackendStatus, Gap
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, Target, TargetKind, UndecodableError, decode, is_from
from fastapi_rooms.domain.errors import BackendUnavailable, ConfigurationError
from fastapi_rooms.domain.expiring import Expiring

logger = logging.getLogger("fastapi_rooms")


class LocalStore:
    """A `SupportsStore` in this process. Thread-safe; never waits and never fails.

    Args:
        max_values: How many values it may keep. One more, and the value that was put first is forgotten.
        clock: Tells the time in seconds, and never goes back.
    """

    def __init__(self, max_values: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._kept = Expiring(max_values)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<LocalStore values={len(self._kept)}>"

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """See `SupportsStore.put`."""
        with self._lock:
            self._kept.put(key, value, seconds, self._clock())

    async def take(self, key: str) -> bytes | None:
        """See `SupportsStore.take`."""
        with self._lock:
            return self._kept.take(key, self._clock())

    async def peek(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `SupportsStore.peek`."""
        with self._lock:
            return self._kept.peek(keys, self._clock())


class Hub:
    """The broker in memory: takes what one node publishes to the loops of the others. Thread-safe.

    Args:
        clock: Tells the time in seconds, and never goes back.

    Attributes:
        lock: Held while anything about the hub or one of its backends is read or changed.
        store: What all nodes share.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        self.store = LocalStore(clock=clock)
        self._nodes: dict[MemoryBackend, None] = {}  # started and not stopped, in the order of their starts

    def __repr__(self) -> str:
        return f"<Hub nodes={len(self._nodes)}>"

    def cut(self, backend: "MemoryBackend") -> None:
        """Cut a backend off, whether it runs or not. It hears and reaches nobody until it is restored. Idempotent.

        Raises:
            ConfigurationError: It belongs to another hub.
        """
        self._check(backend)
        with self.lock:
            backend.on_cut()

    def restore(self, backend: "MemoryBackend") -> None:
        """Let a backend hear and reach the others again. If it is running, it reports a gap. Idempotent.

        Raises:
            ConfigurationError: It belongs to another hub.
        """
        self._check(backend)
        with self.lock:
            backend.on_restored()

    def _check(self, backend: "MemoryBackend") -> None:
        if backend.hub is not self:
            raise ConfigurationError(f"{backend!r} belongs to another hub: use backend.hub")

    # What the backends tell, holding the lock

    def enter(self, backend: "MemoryBackend") -> None:
        """Take note that a node is there."""
        self._nodes[backend] = None

    def leave(self, backend: "MemoryBackend") -> None:
        """Take note that a node is gone."""
        self._nodes.pop(backend, None)

    def carry(self, target: Target, data: bytes) -> None:
        """Take an envelope to the nodes subscribed to a target."""
        for backend in tuple(self._nodes):
            backend.on_published(target, data)


@dataclass(slots=True, eq=False)
class _Life:
    """One life of a node, from its start to its stop."""

    node_id: bytes
    receiver: Receiver
    loop: asyncio.AbstractEventLoop
    was_connected: bool


class MemoryBackend:
    """Carries envelopes through a `Hub` in this process. See `Backend` and `SupportsStore`.

    May be started on any event loop, and after `stop()` on another one. A loop that was closed without `stop()` is a
    node that died: nobody else notices.

    Args:
        hub: The hub that it shares with the other nodes.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._life: _Life | None = None  # None: not started, or stopped, or found dead
        self._is_cut = False
        self._wanted: set[Target] = set()
        self._degraded_since: datetime | None = datetime.now(UTC)
        self._reconnects = 0
        self._gaps = 0
        self._undelivered = 0
        self._undecodable = 0

    def __repr__(self) -> str:
        return f"<MemoryBackend targets={len(self._wanted)}{'' if self.status.connected else ' (degraded)'}>"

    @property
    def status(self) -> BackendStatus:
        """The state as far as this node knows."""
        with self.hub.lock:
            return BackendStatus(
                connected=self._degraded_since is None,
                degraded_since=self._degraded_since,
                reconnects=self._reconnects,
                gaps=self._gaps,
                undelivered=self._undelivered,
                undecodable=self._undecodable,
            )

    async def start(self, node_id: str, receiver: Receiver, *, required: bool = False) -> None:
        """See `Backend.start`; never waits."""
        with self.hub.lock:
            if self._life is not None and not self._life.loop.is_closed():
                return
            self._die()
            if required and self._is_cut:
                raise BackendUnavailable(
                    "this node is cut off: restore it, or start with required=False, which connects when it is restored"
                )
            loop = asyncio.get_running_loop()
            self._life = _Life(bytes.fromhex(node_id), receiver, loop, was_connected=not self._is_cut)
            self.hub.enter(self)
            if not self._is_cut:
                self._degraded_since = None

    async def stop(self) -> None:
        """See `Backend.stop`; what was published has left at the call."""
        with self.hub.lock:
            self._die()

    def publish(self, envelope: Envelope) -> Awaitable[None]:
        """See `Backend.publish`. May be called from any thread."""
        data = envelope.encode()
        # Nobody knows where a connection is, so all who hear everybody are reached.
        target = EVERYBODY if envelope.target.kind is TargetKind.CONNECTION else envelope.target
        with self.hub.lock:
            if self._degraded_since is not None:
                self._undelivered += 1
                return _Ready(self._unavailable())
            self.hub.carry(target, data)
        return _Ready()

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        """See `Backend.subscribe`; takes effect at the call. May be called from any thread."""
        with self.hub.lock:
            self._wanted.update(targets)
        return _Ready()

    def unsubscribe(self, targets: Collection[Target]) -> None:
        """See `Backend.unsubscribe`; takes effect at the call. May be called from any thread."""
        with self.hub.lock:
            self._wanted.difference_update(targets)

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """See `SupportsStore.put`."""
        await self._reach_store().put(key, value, seconds)

    async def take(self, key: str) -> bytes | None:
        """See `SupportsStore.take`."""
        return await self._reach_store().take(key)

    async def peek(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `SupportsStore.peek`."""
        return await self._reach_store().peek(keys)

    # What the hub tells, holding the lock

    def on_cut(self) -> None:
        """Take note that this node is cut off."""
        self._is_cut = True
        self._degrade()

    def on_restored(self) -> None:
        """Take note that this node is not cut off any more."""
        was_cut, self._is_cut = self._is_cut, False
        life, since = self._life, self._degraded_since
        if not was_cut or life is None or since is None:
            return
        self._degraded_since = None
        self._reconnects += life.was_connected
        self._gaps += 1
        life.was_connected = True
        self._call(life, self._report, Gap(since, datetime.now(UTC), frozenset(self._wanted)))

    def on_published(self, target: Target, data: bytes) -> None:
        """Take an envelope to the loop of this node, if the node wants to hear it."""
        life = self._life
        if life is not None and not self._is_cut and target in self._wanted and not is_from(data, life.node_id):
            self._call(life, self._hear, target, data)

    def _call(self, life: _Life, function: Callable[..., None], *args: Any) -> None:
        try:
            life.loop.call_soon_threadsafe(function, life, *args, context=Context())
        except RuntimeError:  # the loop is closed
            self._die()

    def _reach_store(self) -> LocalStore:
        with self.hub.lock:
            if self._degraded_since is not None:
                raise self._unavailable()
        return self.hub.store

    def _unavailable(self) -> BackendUnavailable:
        return BackendUnavailable("the backend is not started" if self._life is None else "this node is cut off")

    def _die(self) -> None:
        self._life = None
        self.hub.leave(self)
        self._degrade()

    def _degrade(self) -> None:
        if self._degraded_since is None:
            self._degraded_since = datetime.now(UTC)

    # On the loop of the node

    def _hear(self, life: _Life, target: Target, data: bytes) -> None:
        with self.hub.lock:
            if life is not self._life or target not in self._wanted:
                return  # stopped or unsubscribed since then
        try:
            envelope = decode(data)
        except UndecodableError as error:
            with self.hub.lock:
                self._undecodable += 1
            logger.warning("dropped what is no envelope: %s", error)
            return
        try:
            life.receiver.receive(envelope)
        except Exception:
            logger.exception("an envelope could not be delivered")

    def _report(self, life: _Life, gap: Gap) -> None:
        with self.hub.lock:
            if life is not self._life:
                return  # stopped since then
        try:
            life.receiver.missed(gap)
        except Exception:
            logger.exception("a gap could not be reported")


class _Ready:
    """An awaitable that is ready at once. Unlike a coroutine, it may be left without being awaited."""

    __slots__ = ("_error",)

    def __init__(self, error: BackendUnavailable | None = None) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, None, None]:
        if self._error is not None:
            raise self._error
        yield from ()
