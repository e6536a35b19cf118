"""Which WebSocket routes can never be reached, since a route before them takes every path that they have.

The app's own routes are asked, with made-up paths, and nothing is called but their `matches`: what takes which path is
decided nowhere else.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from re import fullmatch
from typing import Any

from starlette.routing import BaseRoute, Host, Match, Mount, Router, WebSocketRoute, compile_path

from fastapi_rooms.doctor.handshake import scope_of
from fastapi_rooms.doctor.situation import Hidden
from fastapi_rooms.web import ws_route

VALUES = ("q7-z", "70517", "7.5", "0f8fad5b-d9cb-469f-a165-70867728950e", "q7/z")
"""What is tried for a parameter, where its type allows it: nothing that a route for one value would be made for."""
MAX_PATHS = 100
"""How many paths are tried for one route."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A WebSocket route of ours, as it stands in the app."""

    path: str
    endpoint: Any


def hidden_routes(routes: Iterable[BaseRoute]) -> Iterator[Hidden]:
    """Find the routes of `ws_route` that no path leads to, and what stands before each."""
    routes = list(routes)
    for one in dict.fromkeys(ws_routes(routes)):
        taker = _hider(routes, one)
        if taker is not None:
            yield Hidden(path=one.path, behind=taker.name, at=taker.path)


def _hider(routes: list[BaseRoute], one: Placed) -> "_Taker | None":
    """Return what takes every path of a route; None: one that was tried leads there, or none could be tried.

    What takes some of them, as `/ws/{number:int}` does of `/ws/{room}`, is there on purpose.
    """
    first = None
    for path in paths_of(one.path):
        taker = _taker(routes, scope_of(path))
        if taker is None or _leads_to(taker.route, one.endpoint):
            return None
        first = first or taker
    return first


def ws_routes(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[Placed]:
    """Find the routes of `ws_route`, also in what is mounted or included; not those of single hosts."""
    for route in routes:
        if isinstance(route, WebSocketRoute):
            if getattr(route.endpoint, "__module__", None) == ws_route.__name__:
                yield Placed(prefix + route.path, route.endpoint)
        elif not isinstance(route, Host):
            path = route.path if isinstance(route, Mount) else ""
            yield from ws_routes(_within(route), prefix + path)


def paths_of(template: str) -> Iterator[str]:
    """Make up paths that fit a template; none where a parameter has a type that none of our values fits."""
    _, form, convertors = compile_path(template)
    values = [[one for one in VALUES if fullmatch(kind.regex, one)] for kind in convertors.values()]
    for chosen in islice(product(*values), MAX_PATHS):
        path = form
        for name, value in zip(convertors, chosen, strict=True):
            path = path.replace(f"{{{name}}}", value)
        yield path


@dataclass(frozen=True, slots=True)
class _Taker:
    route: BaseRoute
    path: str
    name: str


def _taker(routes: Iterable[BaseRoute], scope: dict[str, Any], prefix: str = "") -> _Taker | None:
    """Return which route a handshake is given to, the innermost; None: it is not for these routes."""
    for route in routes:
        match, child = route.matches(scope)
        if match is not Match.FULL:
            continue
        path = prefix + getattr(route, "path", "")
        # What was mounted gets the rest of the path, and whatever it does with that: it does not go on here.
        return _taker(_within(route), {**scope, **child}, path) or _Taker(route, path or "/", _named(route))
    return None


def _within(route: BaseRoute) -> list[BaseRoute]:
    """Return the routes within one that has some, as they are asked, with the prefixes of routers that were included.

    FastAPI keeps such a router as it is, and asks what it makes of its routes; older versions copy them.
    """
    candidates = getattr(route, "effective_candidates", None)
    if candidates is not None:
        return [getattr(one, "starlette_route", None) or one for one in candidates()]
    return list(getattr(route, "routes", None) or ())


def _leads_to(route: BaseRoute, endpoint: Any) -> bool:
    """Return whether a route is the one that was looked for, or may be it inside."""
    if isinstance(route, WebSocketRoute):
        return bool(route.endpoint == endpoint)
    # Neither a mount nor a host: somebody's own class, of which nothing is known.
    return not isinstance(route, Mount | Host)


def _named(route: BaseRoute) -> str:
    """Return what a user calls it."""
    if isinstance(route, Mount):
        app = getattr(route, "_base_app", route.app)
        kind = "" if isinstance(app, Router) else f" of {type(app).__name__}"
        return f"the mount{kind}"
    if isinstance(route, WebSocketRoute):
        return f"the WebSocket route of {route.name}"
    return f"the {type(route).__name__}"
