"""What FastAPI would have to fill and never can on a WebSocket, found in what it has read of a route.

It solves a WebSocket route as one for HTTP: what needs a request, a response or a body is found wanting with each
client, who is refused with 403 or 500. `mistakes.py` knows what is wrong with the signature of a handler; this looks at
all that hangs on it, as FastAPI has understood it.
"""

from collections.abc import Iterator
from typing import Any

from fastapi.dependencies.models import Dependant

from fastapi_rooms.domain.errors import ConfigurationError

_ATTRIBUTES = (
    ("request_param_name", "a Request", "take WebSocket, or starlette.requests.HTTPConnection, which both are"),
    ("response_param_name", "a Response", "headers of the answer go into `connect(websocket, headers=...)`"),
    ("background_tasks_param_name", "BackgroundTasks", "write connection.start_task(...), which ends with the client"),
)


def refuse_unfillable(dependant: Dependant) -> None:
    """Refuse a route that no client could ever open.

    Raises:
        ConfigurationError: It says which parameter of which function is to blame.
    """
    for name, parameter, fix in _unfillable(dependant):
        raise ConfigurationError(f"{name}() cannot be given its parameter {parameter} on a WebSocket: {fix}")


def _unfillable(dependant: Dependant) -> Iterator[tuple[str, str, str]]:
    """Yield the function, the parameter and what to do, for all that hangs on a route."""
    name = getattr(dependant.call, "__qualname__", repr(dependant.call))
    for attribute, what, fix in _ATTRIBUTES:
        parameter: Any = getattr(dependant, attribute)
        if parameter is not None:
            yield name, f"{parameter!r}, {what},", fix
    for body in dependant.body_params:
        fix = "a handshake has none: write Incoming[...] in a handler to take messages, or Query(), Header(), Cookie()"
        yield name, f"{body.name!r}, a body,", fix
    if any(query.name == "self" for query in dependant.query_params):
        yield name, "'self'", "pass the method of an object, as in ws_route(...)(site.chat)"
    for inner in dependant.dependencies:
        yield from _unfillable(inner)
