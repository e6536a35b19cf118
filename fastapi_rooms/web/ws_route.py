"""`ws_route`: a WebSocket route around a user's handler.

The handler is registered under the signature of its plan: its parameters, less the `Incoming` one, plus what connecting
needs. So FastAPI solves everything as it does for any route (path parameters, `Depends`, overrides, router prefixes),
and it does so before accept, where an `HTTPException` can still reach the client.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIWebSocketRoute
from starlette.websockets import WebSocket

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.limits import Limits, RouteLimits
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.handlers import Handler
from fastapi_rooms.web.identity import Identity
from fastapi_rooms.web.plain_http import answer_plain_http
from fastapi_rooms.web.plan import JOIN, METADATA, ROOM, USER, Plan, make_plan, read_options
from fastapi_rooms.web.session import serve
from fastapi_rooms.web.solved_route import refuse_unfillable
from fastapi_rooms.web.sources import Source
from fastapi_rooms.web.subprotocols import choose_subprotocol

F = TypeVar("F", bound=Callable[..., Any])

_LIMITS = "_rooms_limits"
"""Where an endpoint keeps the limits of its route, for those who look at an app from outside."""


def ws_route(  # noqa: PLR0913 - by name, and each may be left out
    router: APIRouter | FastAPI,
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
    """Register a WebSocket route. The decorated function stays callable as it was written.

    A client of a foreign HTTP origin is refused with 403 before the dependencies of this route. All of them are solved
    before accept, so an `HTTPException` reaches the client as that HTTP status.

    With an `Incoming[T]` parameter the handler is called once per message, one after the other; what it returns, or
    yields as an async generator, is sent to the client. Without one it is called once and owns the session
    (`async for message in connection.messages(T)`); when it returns, the client is closed with 1000. A handler that
    raises closes its client with 1011.

    Args:
        router: Where to register.
        path: The path, with parameters as in any FastAPI route.
        room: The room to join: a template over the path parameters (`"chat:{room_id}"`), filled with the values that
            the handler is given; or a dependency that returns a str or None.
        user_id: A dependency that returns the identity: a str, an `Identity` (which expires), or None.
        metadata: A dependency that returns a dict for `Connection.metadata`.
        authorize_join: Asked before the connection joins `room` or any other: `(connection, room, ...)`, `async`, or a
            function that runs in a thread. Further parameters are solved as those of the handler, once and before
            accept. What is false, and any exception, means no. In place of the extension's.
        dependencies: Further dependencies, solved first.
        subprotocols: Which the route speaks, the best first: the first that the client offers is accepted, and is
            `connection.subprotocol`. A client that offers none of them is let in without one.
        limits: What counts for its connections in place of the limits in `RoomsSettings`. Whose dependency connects by
            itself has those of the manager.
        name: The name of the route; the handler's by default.

    Raises:
        ConfigurationError: The handler, the template or a limit cannot work.
    """
    if not isinstance(path, str):
        raise ConfigurationError('ws_route takes a path: write @rooms.ws_route("/ws") or @ws_route(router, "/ws")')
    if not isinstance(router, APIRouter | FastAPI):
        raise ConfigurationError(
            f"ws_route takes an APIRouter or a FastAPI app, not {type(router).__name__}: write ws_route(app, ...), or "
            "ws_route(rooms.router, ...) where `rooms = RoomsExtension()`"
        )
    options = read_options(
        router.prefix + path if isinstance(router, APIRouter) else path,
        room=room,
        user_id=user_id,
        metadata=metadata,
        authorize_join=authorize_join,
        dependencies=dependencies,
        subprotocols=subprotocols,
        limits=limits,
    )

    def register(function: F) -> F:
        endpoint = _endpoint(make_plan(function, options))
        named = name or endpoint.__name__
        router.add_api_websocket_route(path, endpoint, named, dependencies=options.dependencies)
        _check_last(router)
        answer_plain_http(router, path, named)
        return function

    return register


def limits_of(endpoint: Callable[..., Any]) -> RouteLimits | None:
    """Return what counts on a route in place of the limits of its node, by the endpoint that `ws_route` registered."""
    return getattr(endpoint, _LIMITS, None)


def _check_last(router: APIRouter | FastAPI) -> None:
    """Refuse the route that was registered last if no client could open it: then it is not registered.

    Raises:
        ConfigurationError: No client could.
    """
    routes = router.routes
    try:
        refuse_unfillable(cast(APIWebSocketRoute, routes[-1]).dependant)
    except ConfigurationError:
        del routes[-1]
        raise


def _endpoint(plan: Plan) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return what FastAPI calls with all that it has filled."""
    handler = Handler(plan.function, plan.message_parameter, plan.message_type, plan.answer)
    template, authorize_join, spoken = plan.template, plan.options.authorize_join, plan.options.subprotocols
    limits = plan.options.limits

    def endpoint(**values: Any) -> Coroutine[Any, Any, None]:
        manager: ConnectionManager = values[plan.manager]
        websocket: WebSocket = values[plan.websocket]
        room = template.fill(values, websocket.path_params) if template is not None else values.get(ROOM)
        ours = {name: values.pop(name) for name in plan.ours}
        who = ours.get(USER)
        if limits is not None:
            sessions_of(manager).limit(websocket, limits)
        if spoken:
            choose_subprotocol(websocket, spoken)
        identity = who if isinstance(who, Identity) else Identity(_checked("user_id", str, who))
        metadata = _checked("metadata", Mapping, ours.get(METADATA))
        ask = authorize_join
        if ask is not None and JOIN in ours:
            ask = partial(ask, **ours[JOIN])
        return serve(websocket, manager, _checked("room", str, room), identity, metadata, ask, handler, values)

    endpoint.__signature__ = plan.signature  # type: ignore[attr-defined]
    endpoint.__name__, endpoint.__qualname__ = plan.function.__name__, plan.function.__qualname__
    endpoint.__doc__ = plan.function.__doc__
    setattr(endpoint, _LIMITS, limits)
    return endpoint


_RETURNED = {"user_id": "a str, an Identity", "room": "a str", "metadata": "a dict"}


def _checked(label: str, kind: type, value: Any) -> Any:
    if value is None or isinstance(value, kind):
        return value
    raise ConfigurationError(
        f"the {label} dependency returned {type(value).__name__}: return {_RETURNED[label]} or None"
    )
