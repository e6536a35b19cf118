"""Which WebSocket routes can never be reached, since a route before them takes every path that they have.

The app's routes are asked, with made-up paths, and nothing is called but the `matches` of Starlette and FastAPI: what
takes which path is decided nowhere else. What somebody else decides, by a class of routes or a type of parameters, may
be anything: nothing is said of a route, or of what stands behind one, that depends on it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice, product
from re import fullmatch
from typing import Any

from starlette.convertors import Convertor
from starlette.routing import PARAM_REGEX, BaseRoute, Host, Match, Mount, Route, Router, WebSocketRoute, compile_path

from fastapi_rooms.doctor.handshake import scope_of
from fastapi_rooms.doctor.situation import Hidden
from fastapi_rooms.web import ws_route
from fastapi_rooms.web.solved_route import routes_within

VALUES = ("q7-z", "70517", "7.5", "0f8fad5b-d9cb-469f-a165-70867728950e", "q7/z")
"""What is tried for a parameter, where its type allows it: nothing that a route for one value would be made for."""
MAX_PATHS = 100
"""How many paths are tried for one route."""

Convertors = dict[str, Convertor[Any]]
"""What reads the parameters of a path, by their names."""


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
    if not _are_starlettes(_compiled(one.path)[1]):
        return None  # our values say little of its own
    for path in paths_of(one.path):
        taker = _taker(routes, scope_of(path))
        if taker is None or not taker.is_certain or _leads_to(taker.route, one.endpoint):
            return None
        first = first or taker
    return first


def ws_routes(routes: Iterable[BaseRoute], prefix: str = "", *, of_hosts: bool = False) -> Iterator[Placed]:
    """Find the routes of `ws_route`, also in what is mounted or included; those of single hosts if it is asked for."""
    for route in routes:
        if isinstance(route, WebSocketRoute):
            if getattr(route.endpoint, "__module__", None) == ws_route.__name__:
                yield Placed(prefix + route.path, route.endpoint)
        elif of_hosts or not isinstance(route, Host):
            path = route.path if isinstance(route, Mount) else ""
            yield from ws_routes(routes_within(route), prefix + path, of_hosts=of_hosts)


def paths_of(template: str) -> Iterator[str]:
    """Make up paths that fit a template; none where a parameter has a type that none of our values fits."""
    form, convertors = _compiled(template)
    values = [[one for one in VALUES if fullmatch(kind.regex, one)] for kind in convertors.values()]
    for chosen in islice(product(*values), MAX_PATHS):
        path = form
        for name, value in zip(convertors, chosen, strict=True):
            path = path.replace(f"{{{name}}}", value)
        yield path


def _compiled(template: str) -> tuple[str, Convertors]:
    """Return a form to be filled, and what fits into it; names are made up: what is mounted may have one once more."""
    number = count()
    _, form, convertors = compile_path(PARAM_REGEX.sub(lambda one: f"{{p{next(number)}{one[2] or ''}}}", template))
    return form, convertors


@dataclass(frozen=True, slots=True)
class _Taker:
    route: BaseRoute
    path: str
    name: str
    is_certain: bool
    """Starlette and FastAPI alone have decided that it takes the path."""


def _taker(routes: Iterable[BaseRoute], scope: dict[str, Any], prefix: str = "") -> _Taker | None:
    """Return which route a handshake is given to, the innermost; None: it is not for these routes."""
    for route in routes:
        match, child = _asked(route, scope)
        if match is Match.NONE:
            continue
        path = prefix + getattr(route, "path", "")
        here = _Taker(route, path or "/", _named(route), is_certain=match is Match.FULL)
        # What was mounted gets the rest of the path, and whatever it does with that: it does not go on here.
        return (here.is_certain and _taker(routes_within(route), {**scope, **child}, path)) or here
    return None


def _asked(route: BaseRoute, scope: dict[str, Any]) -> tuple[Match, Any]:
    """Return whether a route takes a handshake; `PARTIAL`: it may. Code of the app's own is not asked: it may block."""
    if isinstance(route, Route):
        return Match.NONE, {}  # it is for HTTP alone, whatever decides there
    if not _is_of(("starlette", "fastapi"), type(route).matches):
        return Match.PARTIAL, {}
    try:
        match, child = route.matches(scope)
    except Exception:  # noqa: BLE001 - a convertor of the app's own may do so
        return Match.PARTIAL, {}
    if match is Match.FULL and not _are_starlettes(getattr(route, "param_convertors", {})):
        return Match.PARTIAL, {}
    return match, child


def _are_starlettes(convertors: Convertors) -> bool:
    return all(_is_of(("starlette",), type(one)) for one in convertors.values())


def _is_of(packages: Iterable[str], code: Any) -> bool:
    """Return whether a class or function is written in one of these packages."""
    return code.__module__.partition(".")[0] in packages


def _leads_to(route: BaseRoute, endpoint: Any) -> bool:
    """Return whether a route is the one that was looked for."""
    return isinstance(route, WebSocketRoute) and bool(route.endpoint == endpoint)


def _named(route: BaseRoute) -> str:
    """Return what a user calls it."""
    if isinstance(route, Mount):
        app = getattr(route, "_base_app", route.app)
        kind = "" if isinstance(app, Router) else f" of {type(app).__name__}"
        return f"the mount{kind}"
    if isinstance(route, WebSocketRoute):
        return f"the WebSocket route of {route.name}"
    return f"the {type(route).__name__}"
