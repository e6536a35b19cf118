"""What FastAPI would have to fill and never can on a WebSocket, found in what it has read of a route.

It solves a WebSocket route as one for HTTP: what needs a request, a response or a body is found wanting with each
client, who is refused with 403 or 500. `mistakes.py` knows what is wrong with the signature of a handler; this looks at
all that hangs on it, as FastAPI has understood it. What the app and `include_router` add is known when the app starts.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIWebSocketRoute
from starlette.routing import BaseRoute, Host, Mount

from fastapi_rooms.domain.errors import ConfigurationError

_REQUEST = "take WebSocket, or starlette.requests.HTTPConnection, which both are"
_RESPONSE = "headers of the answer go into `connect(websocket, headers=...)`"
_TASKS = "write connection.start_task(...), which ends with the client"
_BODY = "a handshake has none: write Incoming[...] in a handler to take messages, or Query(), Header(), Cookie()"


def refuse_unfillable(dependant: Dependant) -> None:
    """Refuse a route that no client could ever open, or that takes what leads nowhere.

    Raises:
        ConfigurationError: It says which parameter of which function is to blame.
    """
    for said in [*_unopenable(dependant), *_useless(dependant)]:
        raise ConfigurationError(said)


def refuse_unopenable(routes: Iterable[BaseRoute], module: str, prefix: str = "") -> None:
    """Refuse an app with a route that no client could ever open, for a dependency of the app or of `include_router`.

    What leads nowhere is let be: such a dependency is there for the routes for HTTP, too.

    Args:
        routes: Those of the app; nothing is said of what cannot be looked into.
        module: Where the endpoints come from that are ours.
        prefix: Where they are mounted.

    Raises:
        ConfigurationError: It says which route, and which parameter of which function is to blame.
    """
    for route in routes:
        if isinstance(route, APIWebSocketRoute):
            if getattr(route.endpoint, "__module__", None) == module:
                for said in _unopenable(route.dependant):
                    raise ConfigurationError(f"nobody could open the WebSocket route {prefix + route.path!r}: {said}")
        elif not isinstance(route, Host):
            refuse_unopenable(routes_within(route), module, prefix + (route.path if isinstance(route, Mount) else ""))


def routes_within(route: BaseRoute) -> list[BaseRoute]:
    """Return the routes within one that has some, as they are asked, with the prefixes of routers that were included.

    FastAPI keeps such a router as it is, and asks what it makes of its routes; older versions copy them.
    """
    candidates = getattr(route, "effective_candidates", None)
    if candidates is not None:
        return [getattr(one, "starlette_route", None) or one for one in candidates()]
    return list(getattr(route, "routes", None) or ())


def _unopenable(dependant: Dependant) -> Iterator[str]:
    """Yield what is wrong with each parameter, of all that hangs on a route, without which nothing is called."""
    for one in _all(dependant):
        request = one.request_param_name
        if request is not None and not _has_default(one.call, request):
            yield _said(one, f"{request!r}, a Request,", _REQUEST)
        for body in one.body_params:
            if body.field_info.is_required():
                yield _said(one, f"{body.name!r}, a body,", _BODY)
        if any(query.name == "self" for query in one.query_params):
            yield _said(one, "'self'", "pass the method of an object, as in ws_route(...)(site.chat)")


def _useless(dependant: Dependant) -> Iterator[str]:
    """Yield what is wrong with each parameter that is given what leads nowhere."""
    for one in _all(dependant):
        if one.response_param_name is not None:
            yield _said(one, f"{one.response_param_name!r}, a Response,", _RESPONSE)
        if one.background_tasks_param_name is not None:
            yield _said(one, f"{one.background_tasks_param_name!r}, BackgroundTasks,", _TASKS)
        for body in one.body_params:
            yield _said(one, f"{body.name!r}, a body,", _BODY)


def _all(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _all(inner)


def _said(dependant: Dependant, parameter: str, fix: str) -> str:
    name = getattr(dependant.call, "__qualname__", repr(dependant.call))
    return f"{name}() cannot be given its parameter {parameter} on a WebSocket: {fix}"


def _has_default(call: Callable[..., Any] | None, name: str) -> bool:
    """Return whether a dependency does without it, as one for both kinds of routes: `request: Request = None`."""
    assert call is not None, "FastAPI has read the parameter from it"
    return inspect.signature(call).parameters[name].default is not inspect.Parameter.empty
