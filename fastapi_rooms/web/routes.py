"""`ws_route`: a WebSocket route around a user's handler.

The handler is registered under a signature of our own: its parameters, less the `Incoming` one, plus what connecting
needs. So FastAPI solves everything as it does for any route (path parameters, `Depends`, overrides, router prefixes),
and it does so before accept, where an `HTTPException` can still reach the client.
"""

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from string import Formatter
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, params
from pydantic import BaseModel
from starlette.convertors import Convertor
from starlette.routing import compile_path
from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.engine.admission.questions import check_answers
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.dependencies import get_manager
from fastapi_rooms.web.gate import gate
from fastapi_rooms.web.handlers import Handler
from fastapi_rooms.web.identity import Identity
from fastapi_rooms.web.session import serve

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

Source = Callable[..., Any] | params.Depends
"""Where a value comes from: a dependency."""


class _IncomingMark:
    """Tells `Incoming` from other annotations."""


Incoming = Annotated[T, _IncomingMark()]
"""Marks the parameter of a handler that takes the client's messages: `message: Incoming[Say]`."""

# The parameters that connecting needs, in the order in which they are solved: who it is comes first.
_MANAGER, _USER, _ROOM, _METADATA = "rooms_manager", "rooms_user_id", "rooms_room", "rooms_metadata"
_WEBSOCKET, _JOIN = "rooms_websocket", "rooms_join"


def ws_route(
    router: APIRouter | FastAPI,
    path: str,
    *,
    room: str | Source | None = None,
    user_id: Source | None = None,
    metadata: Source | None = None,
    authorize_join: Callable[..., Any] | None = None,
    dependencies: Sequence[Source] = (),
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
        room: The room to join: a template over the path parameters (`"chat:{room_id}"`), or a dependency that returns
            a str or None.
        user_id: A dependency that returns the identity: a str, an `Identity` (which expires), or None.
        metadata: A dependency that returns a dict for `Connection.metadata`.
        authorize_join: Asked before the connection joins `room` or any other: `(connection, room, ...)`, `async`, or a
            function that runs in a thread. Further parameters are solved as those of the handler, once and before
            accept. What is false, and any exception, means no. In place of the extension's.
        dependencies: Further dependencies, solved first.
        name: The name of the route; the handler's by default.

    Raises:
        ConfigurationError: The handler or the template cannot work.
    """
    if not isinstance(path, str):
        raise ConfigurationError('ws_route takes a path: write @rooms.ws_route("/ws") or @ws_route(router, "/ws")')
    if not isinstance(router, APIRouter | FastAPI):
        raise ConfigurationError(
            f"ws_route takes an APIRouter or a FastAPI app, not {type(router).__name__}: write ws_route(app, ...), or "
            "ws_route(rooms.router, ...) where `rooms = RoomsExtension()`"
        )
    template = _checked_template(room, _path_parameters(router, path)) if isinstance(room, str) else None
    sources = {_MANAGER: get_manager, _USER: user_id, _METADATA: metadata}
    if not isinstance(room, str):
        sources[_ROOM] = room

    sourced = [
        _parameter(key, Annotated[Any, _depends(key.removeprefix("rooms_"), source)])
        for key, source in sources.items()
        if source is not None
    ]
    solved_first = [Depends(gate), *(_depends("dependencies", source) for source in dependencies)]
    join_values = None if authorize_join is None else _join_values(authorize_join)
    if join_values is not None:
        sourced.append(_parameter(_JOIN, Annotated[Any, join_values]))

    def register(function: F) -> F:
        parameters, handler = _read_handler(function)
        socket = next(
            (p.name for p in parameters if inspect.isclass(p.annotation) and issubclass(p.annotation, WebSocket)), None
        )
        # A handler that asks for the manager has it solved already; asking twice costs each connection its time.
        manager_key = next((p.name for p in parameters if _is_manager(p)), None)
        connecting = sourced if manager_key is None else [p for p in sourced if p.name != _MANAGER]
        if socket is None:
            connecting = [*connecting, _parameter(_WEBSOCKET, WebSocket)]

        def endpoint(**values: Any) -> Coroutine[Any, Any, None]:
            manager: ConnectionManager = values.pop(_MANAGER) if manager_key is None else values[manager_key]
            websocket: WebSocket = values.pop(_WEBSOCKET) if socket is None else values[socket]
            room_name = template.format_map(websocket.path_params) if template is not None else values.pop(_ROOM, None)
            who = values.pop(_USER, None)
            identity = who if isinstance(who, Identity) else Identity(_checked("user_id", str, who))
            metadata = _checked("metadata", Mapping, values.pop(_METADATA, None))
            ask = authorize_join
            if ask is not None and join_values is not None:
                ask = partial(ask, **values.pop(_JOIN))
            return serve(websocket, manager, _checked("room", str, room_name), identity, metadata, ask, handler, values)

        endpoint.__signature__ = inspect.Signature([*connecting, *parameters])  # type: ignore[attr-defined]
        endpoint.__name__ = getattr(function, "__name__", "handler")
        endpoint.__doc__ = function.__doc__
        router.add_api_websocket_route(path, endpoint, name or endpoint.__name__, dependencies=solved_first)
        return function

    return register


def _join_values(authorize_join: Callable[..., Any]) -> params.Depends | None:
    """Return a dependency that solves what a function wants beside connection and room; None if that is all."""
    check_answers(authorize_join, "authorize_join")
    name = getattr(authorize_join, "__name__", repr(authorize_join))
    signature = inspect.signature(authorize_join)
    try:
        taken = signature.bind_partial("connection", "room").arguments
    except TypeError as error:
        raise ConfigurationError(
            f"authorize_join is called with a connection and a room: let {name}() take both"
        ) from error
    hints = _hints(authorize_join)
    further = []
    for parameter in signature.parameters.values():
        if parameter.name in taken:
            continue
        annotation = hints.get(parameter.name, parameter.annotation)
        _refuse_mistakes(name, parameter, annotation)
        further.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation))
    if not further:
        return None

    async def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(further)  # type: ignore[attr-defined]
    return _depends("authorize_join", collect)


def _is_manager(parameter: inspect.Parameter) -> bool:
    """Return whether FastAPI fills a parameter with the manager."""
    marks = [*get_args(parameter.annotation)[1:], parameter.default]
    return any(isinstance(mark, params.Depends) and mark.dependency is get_manager for mark in marks)


def _depends(label: str, source: Source) -> params.Depends:
    if isinstance(source, params.Depends):
        return source
    if callable(source):
        dependency: params.Depends = Depends(source)
        return dependency
    raise ConfigurationError(f"{label} takes a dependency, not {source!r}: pass a function that FastAPI can call")


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _read_handler(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], Handler]:
    """Return the parameters that FastAPI has to fill, and the handler with the one that we fill."""
    if not inspect.isroutine(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{function!r} cannot be a handler: write a function, with `async def` if it yields")
    hints = _hints(function)
    parameters: list[inspect.Parameter] = []
    incoming: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints.get(parameter.name, parameter.annotation)
        message_type = _message_type(annotation)
        if message_type is None:
            _refuse_mistakes(function.__name__, parameter, annotation)
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation))
        else:
            incoming[parameter.name] = message_type
    if len(incoming) > 1:
        raise ConfigurationError(
            f"{function.__name__}() has several Incoming parameters ({', '.join(incoming)}): take one, and use a union "
            "for several kinds of messages"
        )
    name, message_type = next(iter(incoming.items()), (None, None))
    return parameters, Handler(function, name, message_type)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function if inspect.isroutine(function) else type(function).__call__, include_extras=True)
    except NameError as error:
        name = getattr(function, "__name__", repr(function))
        raise ConfigurationError(
            f"the annotations of {name}() cannot be read: {error}. Define what they name at module level, outside of "
            "`if TYPE_CHECKING:`"
        ) from error


def _refuse_mistakes(function: str, parameter: inspect.Parameter, annotation: Any) -> None:
    """Refuse what FastAPI would take for a query parameter or a body, and then answer every client with 403."""
    fix = ""
    if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        fix = "name each parameter so that it can be passed by name"
    elif _is_marked(annotation):
        fix = "write Incoming around the whole type, such as Incoming[A | B]"
    elif inspect.isclass(annotation) and not isinstance(parameter.default, params.Depends):
        if issubclass(annotation, BaseModel):
            fix = f"write Incoming[{annotation.__name__}] to take the client's messages, or Depends() for anything else"
        elif issubclass(annotation, Connection):
            fix = "write ConnectionDep, or Annotated[Connection, Depends(current_connection)]"
        elif issubclass(annotation, ConnectionManager):
            fix = "write ManagerDep, or Annotated[ConnectionManager, Depends(get_manager)]"
    if fix:
        raise ConfigurationError(f"{function}() cannot be given its parameter {parameter}: {fix}")


def _is_marked(annotation: Any) -> bool:
    return isinstance(annotation, _IncomingMark) or any(_is_marked(part) for part in get_args(annotation))


def _message_type(annotation: Any) -> Any:
    """Return what `Incoming` stands for in an annotation; None if it is not one."""
    if get_origin(annotation) is not Annotated:
        return None
    inner, *marks = get_args(annotation)
    others = [mark for mark in marks if not isinstance(mark, _IncomingMark)]
    if len(others) == len(marks):
        return None
    if isinstance(inner, TypeVar):
        raise ConfigurationError("Incoming needs the type of the messages: write Incoming[str], Incoming[Say] …")
    return Annotated[(inner, *others)] if others else inner


def _path_parameters(router: APIRouter | FastAPI, path: str) -> dict[str, Any]:
    """Return the parameters of a path, each with a sample of what it will be."""
    prefix = router.prefix if isinstance(router, APIRouter) else ""
    return {name: _sample(convertor) for name, convertor in compile_path(prefix + path)[2].items()}


def _sample(convertor: Convertor[Any]) -> Any:
    for text in ("1", str(UUID(int=1))):
        try:
            return convertor.convert(text)
        except ValueError:
            continue
    return ""


def _checked_template(template: str, samples: Mapping[str, Any]) -> str:
    """Return a room template that can be filled in with what the path has, and names nothing else."""
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        unknown = fields - samples.keys()
        if not unknown:
            template.format_map(samples)
    except (ValueError, LookupError) as error:
        raise ConfigurationError(f"the room template {template!r} cannot be filled in: {error!r}") from error
    if unknown:
        raise ConfigurationError(
            f"the room template {template!r} names {', '.join(map(repr, sorted(unknown)))}, but the path has "
            f"{', '.join(map(repr, samples)) or 'no parameters'}: use these, or a dependency that returns a room"
        )
    return template


_RETURNED = {"user_id": "a str, an Identity", "room": "a str", "metadata": "a dict"}


def _checked(label: str, kind: type, value: Any) -> Any:
    if value is None or isinstance(value, kind):
        return value
    raise ConfigurationError(
        f"the {label} dependency returned {type(value).__name__}: return {_RETURNED[label]} or None"
    )
