"""One object that adds rooms to an app."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.routing import BaseRoute, Mount

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.limits import Limits
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.admission import AuthorizeJoin, Limiter
from fastapi_rooms.engine.distributed import BackendSource, DistributedWebSocketManager, OnGap
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.dependencies import STATE_KEY
from fastapi_rooms.web.signals import SignalledDrain, drain_at_signal
from fastapi_rooms.web.solved_route import refuse_unopenable
from fastapi_rooms.web.sources import Source
from fastapi_rooms.web.ws_route import ws_route

_LENT_BY = "rooms_lent_by"
"""Beside the manager in the state of a mounted app: the same, if it is that of the app around; None: it is its own."""

F = TypeVar("F", bound=Callable[..., Any])


class RoomsExtension:
    """Puts a manager on `app.state.rooms` and in the lifespan state, starts it, and ends it with the app.

    Attach it in one of three ways; attached more than once it starts once:

    - `FastAPI(lifespan=rooms.lifespan)`
    - `app.include_router(rooms.router)`
    - `async with rooms.lifespan(app): yield` inside a lifespan of your own

    When a server such as uvicorn is told to stop (SIGTERM, SIGINT), the node drains first, over `drain_timeout`: see
    `ConnectionManager.drain`. When the app stops, connections that are left are closed with 1012 and no task stays
    behind. If its lifespan ends while the server goes on, as after an exception in a task group around the `yield`,
    handshakes are refused with 503, `/live` of `health_router` fails, and an ERROR says so.

    Args:
        redis_url: Where Redis is, for many nodes; see `DistributedWebSocketManager`. None: this process is all.
        settings: Limits and policies.
        required: Do not start the app without Redis. Otherwise it starts degraded and connects when Redis comes.
        on_gap: Called with a `Gap` when this node hears the others again after it did not.
        authorize_join: Asked before a connection joins a room: `(connection, room)`. See `ConnectionManager`, and
            `ws_route` for one of a route, with dependencies.
        limiter: Asked whether a connection may do something, for limits that count on all nodes.
        hooks: What the app wants to be told.

    Attributes:
        manager: The manager, for code outside requests.
        router: An APIRouter that carries the lifespan, for `ws_route` handlers and whatever you put on it.
    """

    def __init__(
        self,
        redis_url: BackendSource | None = None,
        *,
        settings: RoomsSettings | None = None,
        required: bool = False,
        on_gap: OnGap | None = None,
        authorize_join: AuthorizeJoin | None = None,
        limiter: Limiter | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        if isinstance(redis_url, RoomsSettings):
            raise ConfigurationError("settings go by name: write RoomsExtension(settings=RoomsSettings(...))")
        self.manager = (
            ConnectionManager(settings, authorize_join=authorize_join, limiter=limiter, hooks=hooks)
            if redis_url is None
            else DistributedWebSocketManager(
                redis_url,
                settings=settings,
                on_gap=on_gap,
                authorize_join=authorize_join,
                limiter=limiter,
                hooks=hooks,
            )
        )
        self._required = required
        self.router = APIRouter(lifespan=self.lifespan)
        self._attached = 0  # how many lifespans are running
        self._signalled: SignalledDrain | None = None  # while one does; None: it hears no signals

    def __repr__(self) -> str:
        return f"<RoomsExtension {self.manager!r}>"

    @property
    def is_attached(self) -> bool:
        """Whether its lifespan has begun and not ended: before that, and after it, nobody can connect."""
        return self._attached > 0

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        """Start the manager, yield the lifespan state, and stop the manager at the end.

        Raises:
            ConfigurationError: The app has a manager already, or a `ws_route` that nobody could open.
        """
        refuse_unopenable(app.routes, ws_route.__module__)
        states = _put_manager(app, self.manager)
        self._attached += 1
        ends_early = False
        try:
            await self.manager.start(required=self._required)
            if self._signalled is None and self.manager.settings.drain_timeout is not None:
                self._signalled = drain_at_signal(self.manager)
            ends_early = True
            yield {STATE_KEY: self.manager}
            ends_early = False
        finally:
            self._attached -= 1
            try:
                if not self._attached:
                    await self._stop()
            finally:
                if not ends_early:  # else the server may go on: whoever comes is refused by the manager
                    for state in states:
                        _take_manager(state, self.manager)

    def ws_route(  # noqa: PLR0913 - as that has
        self,
        path: str,
        *,
        room: str | Source | None = None,
        user_id: Source | None = None,
        metadata: Source | None = None,
        authorize_join: Callable[..., Any] | None = None,
        dependencies: Sequence[Source] = (),
        subprotocols: Sequence[str] = (),
        limits: Limits | None = None,
        name: str | None = None,
    ) -> Callable[[F], F]:
        """Register a WebSocket route on `router`. See `fastapi_rooms.ws_route`."""
        return ws_route(
            self.router,
            path,
            room=room,
            user_id=user_id,
            metadata=metadata,
            authorize_join=authorize_join,
            dependencies=dependencies,
            subprotocols=subprotocols,
            limits=limits,
            name=name,
        )

    async def _stop(self) -> None:
        signalled, self._signalled = self._signalled, None
        try:
            if signalled is not None:
                await signalled.remove(self.manager)
        finally:
            try:
                await self.manager.stop()
            finally:
                sessions_of(self.manager).shut()


def _put_manager(app: Starlette, manager: ConnectionManager) -> list[State]:
    """Put the manager on the app and on apps mounted in it, whose own lifespans never run; return where it was put.

    An app that is mounted may have an extension of its own, whose manager stays there, or takes the place of this one.
    """
    present = _present(app)
    is_lent = present is not None and getattr(app.state, _LENT_BY, None) is present
    if present is not None and present is not manager and not is_lent:
        raise ConfigurationError(
            f"app.state.{STATE_KEY} is taken by {type(present).__name__}: attach one RoomsExtension to an app, and "
            "keep other things under other names"
        )
    states = []
    if present is None or is_lent:
        setattr(app.state, STATE_KEY, manager)
        setattr(app.state, _LENT_BY, None)
        states.append(app.state)
    for mounted in _mounted_apps(app.routes):
        states += _lend_manager(mounted, manager, present if is_lent else None)
    return states


def _present(app: Starlette) -> object:
    """Return what lies where the manager of an app belongs; None if nothing does, or its lifespan has ended early."""
    present: object = getattr(app.state, STATE_KEY, None)
    return None if isinstance(present, ConnectionManager) and sessions_of(present).has_ended else present


def _lend_manager(app: Starlette, manager: ConnectionManager, replaced: object) -> list[State]:
    """Put the manager on a mounted app, and those in it, that have none, or one that is replaced; return where."""
    present = _present(app)
    if present is not None and (present is not replaced or getattr(app.state, _LENT_BY, None) is not present):
        return []
    setattr(app.state, STATE_KEY, manager)
    setattr(app.state, _LENT_BY, manager)
    states = [app.state]
    for mounted in _mounted_apps(app.routes):
        states += _lend_manager(mounted, manager, replaced)
    return states


def _take_manager(state: State, manager: ConnectionManager) -> None:
    """Take a manager from where it was put, if it is still there."""
    if getattr(state, STATE_KEY, None) is manager:
        delattr(state, STATE_KEY)
        delattr(state, _LENT_BY)


def _mounted_apps(routes: Iterable[BaseRoute]) -> Iterator[Starlette]:
    for route in routes:
        if isinstance(route, Mount) and isinstance(route.app, Starlette):
            yield route.app
        else:
            # A group of routes, or a router that was included: FastAPI keeps it as it is, and adds what comes later.
            inner = getattr(route, "original_router", route)
            yield from _mounted_apps(getattr(inner, "routes", None) or ())
