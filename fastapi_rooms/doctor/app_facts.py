"""Looks at an app object: who starts its manager, what is mounted in it, what stands between it and the server.

Nothing is started. Only what stands between the server and the routes is called, with a made-up handshake: see
`handshake`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import CodeType
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount

from fastapi_rooms.backends.contract import Backend
from fastapi_rooms.backends.memory import MemoryBackend
from fastapi_rooms.doctor.handshake import arrival_of, wrappers_of_send
from fastapi_rooms.doctor.hidden_routes import hidden_routes, paths_of, ws_routes
from fastapi_rooms.doctor.loading import Loaded
from fastapi_rooms.doctor.situation import App, Mounted, Rooms, Start
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.extension import RoomsExtension
from fastapi_rooms.web.plain_http import never_called
from fastapi_rooms.web.ws_route import limits_of

Lifespan = Callable[..., Any]

_MERGED = "_merge_lifespan_context.<locals>.merged_lifespan"
"""What FastAPI makes of the lifespans of an app and of a router that is included."""


def look_at_app(loaded: Loaded) -> tuple[App, Rooms | None]:
    """Return what there is to know about an app and its manager."""
    app = loaded.app
    lifespans = lifespans_of(app)
    extensions = _extensions_of(lifespans)
    facts = App(
        target=loaded.target,
        start=_start(lifespans),
        extensions=len(extensions),
        managers=len(loaded.managers),
        ignored_hooks=_ignored_hooks(app, lifespans),
        lost_routes=tuple(_lost_routes(loaded)),
        hidden_routes=tuple(hidden_routes(app.routes)),
        mounted=tuple(_mounted(app.routes)),
        outer_layers=loaded.outer_layers,
    )
    rooms = _rooms(loaded, manager_of(loaded))
    return _with_what_arrives(facts, loaded), rooms


def _with_what_arrives(facts: App, loaded: Loaded) -> App:
    """Send a handshake through the app. That comes last, since it may leave the app without its routes."""
    app = loaded.app
    path = next((path for one in ws_routes(app.routes) for path in paths_of(one.path)), "/")
    arrived = arrival_of(loaded.outermost, app, path)
    is_clear = arrived is not None and arrived.send is None
    return replace(
        facts,
        came_through=arrived is not None,
        arriving_send=None if arrived is None else arrived.send,
        arriving_receive_is_lost=arrived is not None and not arrived.leads_back,
        # Who it was is asked where there is something to be explained.
        send_wrappers=() if is_clear else tuple(map(name, wrappers_of_send(app, path))),
    )


def manager_of(loaded: Loaded) -> ConnectionManager | None:
    """Return the manager that the app uses; if several were made, the one that starts with it, or the first."""
    attached = [extension.manager for extension in _extensions_of(lifespans_of(loaded.app))]
    return next(iter([*attached, *loaded.managers]), None)


def backend_of(manager: ConnectionManager | None) -> Backend | None:
    """Return what joins a manager with those of other nodes; None if nothing does."""
    if isinstance(manager, DistributedWebSocketManager):
        return manager._backend  # noqa: SLF001 - nobody else needs to know it
    return None


def _rooms(loaded: Loaded, manager: ConnectionManager | None) -> Rooms | None:
    if manager is None:
        return None
    backend = backend_of(manager)
    return Rooms(
        settings=manager.settings,
        message_bytes_of_routes=tuple(_message_bytes(loaded.app, manager.settings)),
        backend=None if backend is None else type(backend).__name__,
        joins_processes=backend is not None and not isinstance(backend, MemoryBackend),
        needs_start=backend is not None or any(one.manager is manager for one in loaded.extensions),
    )


def _message_bytes(app: Starlette, settings: RoomsSettings) -> Iterator[tuple[str, int | None]]:
    for one in ws_routes(app.routes, of_hosts=True):
        limits = limits_of(one.endpoint)
        if limits is not None:
            yield one.path, limits.over(settings).max_message_bytes


# Lifespans


def lifespans_of(app: Starlette) -> list[Lifespan]:
    """Return what runs when an app starts: its own lifespan, and those of the routers that it includes."""
    found = []
    waiting: list[Lifespan] = [app.router.lifespan_context]
    while waiting:
        lifespan = waiting.pop(0)
        function = inspect.unwrap(lifespan)
        if getattr(function, "__qualname__", "") == _MERGED:
            merged = inspect.getclosurevars(function).nonlocals
            waiting[:0] = [merged["original_context"], merged["nested_context"]]
        else:
            found.append(lifespan)
    return found


def _extensions_of(lifespans: Iterable[Lifespan]) -> list[RoomsExtension]:
    owners = [getattr(lifespan, "__self__", None) for lifespan in lifespans]
    # One that is attached twice starts once.
    return list(dict.fromkeys(owner for owner in owners if isinstance(owner, RoomsExtension)))


def _is_default(lifespan: Lifespan) -> bool:
    """Return whether it is what runs the `on_event` hooks of an app or router that has no lifespan."""
    return type(lifespan).__name__ == "_DefaultLifespan"


def _hooks(router: Any) -> list[Callable[..., Any]]:
    return [*getattr(router, "on_startup", ()), *getattr(router, "on_shutdown", ())]


def _called_hooks(lifespans: Iterable[Lifespan]) -> list[Callable[..., Any]]:
    routers = [getattr(lifespan, "_router", None) for lifespan in lifespans if _is_default(lifespan)]
    return [hook for router in routers for hook in _hooks(router)]


def _ignored_hooks(app: Starlette, lifespans: Iterable[Lifespan]) -> tuple[str, ...]:
    called = _called_hooks(lifespans)
    return tuple(dict.fromkeys(name(hook) for hook in _hooks(app.router) if hook not in called))


def _start(lifespans: list[Lifespan]) -> Start:
    if _extensions_of(lifespans):
        return Start.EXTENSION
    own = [lifespan for lifespan in lifespans if not _is_default(lifespan)]
    if any(_enters_a_lifespan(lifespan) for lifespan in own):
        return Start.OWN_LIFESPAN
    return Start.UNSEEN if own or _called_hooks(lifespans) else Start.NOBODY


def _enters_a_lifespan(lifespan: Lifespan) -> bool:
    """Return whether its code speaks of something named `lifespan`, as in `async with rooms.lifespan(app)`."""
    code = getattr(inspect.unwrap(lifespan), "__code__", None)
    return code is not None and "lifespan" in _names(code)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


# Routes, and mounted apps


def _lost_routes(loaded: Loaded) -> Iterator[str]:
    served = {endpoint for _, endpoint in _endpoints(loaded.app.routes)}
    for extension in loaded.extensions:
        for path, endpoint in _endpoints(extension.router.routes):
            if endpoint not in served and endpoint is not never_called:
                yield path


def _endpoints(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, Any]]:
    """Return paths and endpoints: older versions of FastAPI make a new route of one that is included."""
    for route in routes:
        if hasattr(route, "endpoint"):
            yield getattr(route, "path", ""), route.endpoint
        yield from _endpoints(_inner(route))


def _inner(route: BaseRoute) -> Iterable[BaseRoute]:
    """Return the routes within one that is a mount, a group, or a router that was included and kept as it is."""
    return getattr(getattr(route, "original_router", route), "routes", None) or ()


def _mounted(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[Mounted]:
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if isinstance(route, Mount) and isinstance(route.app, Starlette):
            lifespans = lifespans_of(route.app)
            if _hooks(route.app.router) or not all(map(_is_default, lifespans)):
                yield Mounted(path=path, has_rooms=bool(_extensions_of(lifespans)))
        yield from _mounted(_inner(route), path)


def name(one: Any) -> str:
    """Return what a user calls a middleware, a function or a class."""
    shown: str = getattr(getattr(one, "cls", one), "__qualname__", type(one).__name__)
    return shown.rpartition("<locals>.")[2]
