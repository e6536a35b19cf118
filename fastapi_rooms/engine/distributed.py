"""The manager of many nodes: the manager of one, which tells the others and hears them through a backend."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context
from typing import Any
from uuid import uuid4

from fastapi_rooms.backends.contract import Backend, SupportsStore
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.backends.redis.places import Source
from fastapi_rooms.domain.backend_state import BackendStatus, Gap
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.envelope import (
    EVERYBODY,
    Envelope,
    Target,
    TargetKind,
    check_size,
    room_target,
    user_target,
)
from fastapi_rooms.domain.errors import BackendUnavailable, ManagerNotStarted
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.registry import Left
from fastapi_rooms.domain.revocation import Revocation
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.admission import AuthorizeJoin, Limiter
from fastapi_rooms.engine.hooks import Hooks, check_hook
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.many_nodes import ManyNodes
from fastapi_rooms.engine.references import NOBODY, LeftOut
from fastapi_rooms.tasks import wait_for

logger = logging.getLogger("fastapi_rooms")


BackendSource = Source | Backend
"""How other nodes are reached: a Redis URL, a client of `redis.asyncio`, or any other backend."""

OnGap = Callable[[Gap], Awaitable[object] | object]
"""What an app wants to be told when this node may have missed something; `async` or not."""


class DistributedWebSocketManager(ConnectionManager):
    """A `ConnectionManager` whose calls reach the connections of all nodes, through Redis or another backend.

    Every node runs one, with the same backend and the same `key_prefix`. Needs `await start()` before and `await
    stop()` after; `RoomsExtension` calls both.

    **Delivery** is at most once, to connections of this node first, which never wait for Redis. The numbers that
    methods return count connections of this node; nobody knows how many there are elsewhere. Queries, too, are about
    this node.

    **Order**: what one node sends to one room (or user, or everybody) arrives in that order on every node.

    **Errors**: `BackendUnavailable` says that other nodes could not be told, or that nobody knows whether they were;
    connections of this node have been served. Nothing is sent again by itself. `RoomsSettings(publish_failure="log")`
    has nobody wait for Redis: failures are counted in `status.undelivered` and logged.

    **Cancellation** of a call that waits for Redis takes nothing back.

    Args:
        redis_url: A URL (`redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://`), a ready client
            of `redis.asyncio`, or any other `Backend`.
        settings: Limits and policies.
        on_gap: Called with a `Gap` when this node hears the others again after it did not; as `Hooks.gap`. A function
            that is given as both is called once. One that raises is called again for half a minute, in growing pauses:
            what it asks may only be coming back.
        authorize_join: Asked before a connection joins a room.
        limiter: Asked whether a connection may do something.
        hooks: What the app wants to be told.

    Raises:
        ConfigurationError: The URL leads nowhere.
    """

    def __init__(
        self,
        redis_url: BackendSource,
        *,
        settings: RoomsSettings | None = None,
        on_gap: OnGap | None = None,
        authorize_join: AuthorizeJoin | None = None,
        limiter: Limiter | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        super().__init__(settings, authorize_join=authorize_join, limiter=limiter, hooks=hooks)
        self._backend = redis_url if isinstance(redis_url, Backend) else RedisBackend(redis_url, self.settings)
        self._parts.revoked.store = self.store
        if on_gap is not None:
            check_hook("on_gap", on_gap, 1)
        self._on_gap = on_gap
        self._node_id = ""  # made by each start; empty before the first
        self._runs_on: asyncio.AbstractEventLoop | None = None  # from start to stop
        self._was_started = False
        self._failures_said = Seldom()
        self._unanswered: set[asyncio.Future[Any]] = set()  # publishes that no sender waits for

    def __repr__(self) -> str:
        state = "connected" if self.status.connected else "degraded"
        return f"{super().__repr__()[:-1]} {state} node={self._node_id[:8]}>"

    # Queries

    @property
    def node_id(self) -> str:
        """The identity of this node among the others: another one after each start, empty before the first."""
        return self._node_id

    @property
    def store(self) -> SupportsStore | None:
        """Where small values are kept for all nodes, for a time; None: the backend has no such place."""
        return self._backend if isinstance(self._backend, SupportsStore) else None

    @property
    def status(self) -> BackendStatus:
        """Whether this node hears the others and is heard, and since when not."""
        return self._backend.status

    # Lifecycle

    async def start(self, *, required: bool = False) -> None:
        """Connect to the other nodes, or begin degraded and connect when Redis comes. Idempotent.

        Args:
            required: Fail if Redis is not there within `publish_timeout`.

        Raises:
            BackendUnavailable: It is required, and was not there. Nothing is left running.
        """
        async with self._home.settle():
            self._home.settle()  # a stop that this has waited for has left it
            await self._parts.drain.resume()  # after a stop which was cancelled
            loop = asyncio.get_running_loop()
            if self._runs_on is not loop:
                self._node_id = uuid4().hex  # not before: processes that are forked would share it
            self._backend.subscribe((EVERYBODY,))
            await self._backend.start(self._node_id, _Ear(self._hear, self._missed), required=required)
            self._runs_on = loop
            self._parts.delivery.start_telemetry(self.stats)
            self._was_started = True

    async def stop(self) -> None:
        """Close what is left with 1012, wait for what is on its way to other nodes, end everything that runs.

        Can be started again afterwards. Returns after at most `send_timeout`, what `async` hooks take (at most
        `disconnect_grace`) and `publish_timeout`. Cancelled, it is half done: call it again.
        """
        async with self._home.settle():
            await self._parts.end_everybody()
            await self._backend.stop()
            self._runs_on = None
            loop = asyncio.get_running_loop()
            if unanswered := [told for told in self._unanswered if told.get_loop() is loop]:
                await asyncio.wait(unanswered)
            await self._parts.end_what_runs()
            self._parts.drain.shut()  # who came now would hear nobody
            self._home.leave()

    # What it does beside the manager of one node

    async def _send(self, target: Target, content: Message | Close, out: LeftOut = NOBODY) -> int:
        self._check_started()
        if target.kind is TargetKind.CONNECTION and (here := self._registry.outboxes(target)):
            return await self._parts.delivery.send_here(here, content)  # by id, nobody is left out
        telemetry = self._parts.delivery.telemetry
        trace = None if telemetry is None else telemetry.trace()
        envelope = Envelope(self._node_id, target, content, out.ids, trace, out.user_id)
        check_size(envelope, self.settings.max_envelope_bytes)
        # Neither waits, so that the order of the calls is the order here and everywhere.
        reached = self._reach(target, content, out)
        told = self._backend.publish(envelope)
        try:
            await self._answer(told)
        finally:
            if reached and isinstance(content, Close):
                await asyncio.sleep(0)  # the close frames of those who are not behind go out now
        return reached

    async def _answer(self, told: Awaitable[object]) -> None:
        if self.settings.publish_failure == "log":
            self._log_if_it_fails(told)
            return
        try:
            await told
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"other nodes were not told, or not for certain: {error}. Connections of this node were served. Send "
                "again later if it matters, or have failures logged with RoomsSettings(publish_failure='log')"
            ) from error

    def _many_nodes(self) -> ManyNodes:
        return ManyNodes(self._follow, self._want, self._unfollow, self._tell, self._recheck, lambda: self.status)

    async def _follow(self, targets: Collection[Target]) -> None:
        self._check_started()
        await self._backend.subscribe(targets)

    def _want(self, target: Target) -> Awaitable[object]:
        return self._backend.subscribe((target,))

    def _tell(self, target: Target, move: Move) -> Awaitable[None]:
        self._check_started()
        envelope = Envelope(self._node_id, target, move)
        check_size(envelope, self.settings.max_envelope_bytes)
        return self._answer(self._backend.publish(envelope))

    def _unfollow(self, left: Left | None) -> None:
        if left is None:
            return
        closed = [room_target(room) for room in left.rooms]
        if left.user is not None:
            closed.append(user_target(left.user))
        if closed:
            self._backend.unsubscribe(closed)

    def _check_started(self) -> None:
        self._home.check()
        if not self._was_started:
            raise ManagerNotStarted(
                "this manager was not started, so it neither hears nor reaches other nodes: `await manager.start()` "
                "when the app starts and `await manager.stop()` when it stops, or use RoomsExtension, which does both"
            )

    def _log_if_it_fails(self, told: Awaitable[object]) -> None:
        if not isinstance(told, asyncio.Future):
            told = asyncio.get_running_loop().create_task(
                wait_for(told), name="fastapi_rooms publishing", context=Context()
            )
        self._unanswered.add(told)
        told.add_done_callback(self._log_failure)

    def _log_failure(self, told: asyncio.Future[Any]) -> None:
        self._unanswered.discard(told)
        if told.cancelled() or told.exception() is None:
            return
        if self._failures_said.is_due(told.get_loop().time()):
            logger.warning(
                "other nodes were not told: %s (%d so far, said once a minute)",
                told.exception(),
                self.status.undelivered,
            )

    # What the backend tells

    def _hear(self, envelope: Envelope) -> None:
        target, content = envelope.target, envelope.content
        if isinstance(content, Move):
            self._parts.membership.move(target.name, content)
            return
        if target.kind is TargetKind.USER and isinstance(content, Close):
            self._parts.revoked.note(target.name, content, envelope.excluded)
        self._parts.delivery.hear(envelope)

    def _missed(self, gap: Gap) -> None:
        logger.warning(
            "may have missed messages between %s and %s for %d rooms, %d users%s",
            gap.since.isoformat(timespec="milliseconds"),
            gap.until.isoformat(timespec="milliseconds"),
            len(gap.rooms),
            len(gap.users),
            " and everybody" if gap.everybody else "",
        )
        self._parts.revoked.apply_soon(gap.users)
        self._parts.announcer.insist(self._on_gap, gap)
        if self._parts.hooks.gap != self._on_gap:  # not `is`: a method is another object each time it is looked up
            self._parts.announcer.insist(self._parts.hooks.gap, gap)

    async def _close_user(self, target: Target, close: Close, revocation: Revocation) -> int:
        self._check_started()
        # Kept first: who is too late to hear finds it. In a cluster the two go to different servers, and for as long as
        # one of these is the slower, a node that begins to listen in between can miss both.
        kept = self._parts.revoked.keep_soon(target.name, revocation)
        reached = await self._send(target, close, LeftOut(revocation.excluded))
        if kept is not None and self.settings.publish_failure == "raise":
            await asyncio.wait([kept])
            error = BackendUnavailable("the manager was stopped") if kept.cancelled() else kept.exception()
            if error is not None:
                raise BackendUnavailable(
                    f"the user was closed on all nodes that hear, but that is not kept for others: {error}. Close the "
                    "user again later"
                ) from error
        return reached

    async def _recheck(self, connection: Connection) -> None:
        assert connection.user_id is not None, "whoever is the first of a user has one"
        await self._parts.revoked.look_up(connection.user_id)
        self._parts.entrance.check_not_revoked(connection)


class _Ear:
    """What the backend knows of the manager."""

    def __init__(self, receive: Callable[[Envelope], None], missed: Callable[[Gap], None]) -> None:
        self.receive = receive
        self.missed = missed
