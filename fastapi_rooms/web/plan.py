"""From a handler, a path and the options of a route to a plan: what FastAPI fills, what we fill, and which room.

Pure: nothing is registered, and nothing is asked of an app. The options are read first, since they may be wrong before
there is a handler.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, params
from starlette.websockets import WebSocket

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.limits import Limits, RouteLimits
from fastapi_rooms.engine.admission.questions import check_answers
from fastapi_rooms.web.answer import Answer, read_answer
from fastapi_rooms.web.dependencies import get_manager
from fastapi_rooms.web.gate import check_handshake
from fastapi_rooms.web.incoming_mark import message_type
from fastapi_rooms.web.mistakes import refuse_mistakes
from fastapi_rooms.web.room_template import RoomTemplate, read_template
from fastapi_rooms.web.sources import Source, dependencies_of, dependency_in, read_source
from fastapi_rooms.web.subprotocols import check_subprotocols

# The parameters that connecting needs, in the order in which they are solved: who it is comes before where it goes.
MANAGER, USER, METADATA, ROOM = "rooms_manager", "rooms_user_id", "rooms_metadata", "rooms_room"
JOIN, WEBSOCKET = "rooms_join", "rooms_websocket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the options of a route say, whatever its handler is."""

    path: str
    """With the prefix of its router."""
    template: str | None
    """Of the room, over what the path has; None: a dependency says which room, if there is one."""
    parameters: tuple[inspect.Parameter, ...]
    """What FastAPI has to fill for us, under the names above; all but the WebSocket."""
    dependencies: tuple[params.Depends, ...]
    """What it has to solve before everything else."""
    authorize_join: Callable[..., Any] | None
    """What is asked before a join, with connection, room, and what `JOIN` was filled with."""
    subprotocols: tuple[str, ...]
    """Which it speaks, the best first."""
    limits: RouteLimits | None
    """What counts in place of the manager's settings."""

    @property
    def sources(self) -> list[params.Depends]:
        """All dependencies that the options name."""
        return [*self.dependencies, *dependencies_of(self.parameters)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a route is served."""

    function: Callable[..., Any]
    """The handler as it was written."""
    message_parameter: str | None
    """Its `Incoming` parameter, which we fill; None: it owns the session."""
    message_type: Any
    """What `Incoming` stands for."""
    answer: Answer | None
    """What is sent of what it returns or yields; None: all of it."""
    parameters: tuple[inspect.Parameter, ...]
    """What FastAPI fills: first `ours`, then the other parameters of the handler."""
    ours: frozenset[str]
    """Names of what the handler does not get."""
    manager: str
    """The name of the parameter that holds the manager: the handler's own, if it has one."""
    websocket: str
    """The name of the one that holds the WebSocket: likewise."""
    template: RoomTemplate | None
    """Of the room, and what fills it."""
    options: Options

    @property
    def signature(self) -> inspect.Signature:
        """What FastAPI reads in place of the handler's signature."""
        return inspect.Signature(self.parameters)


def read_options(
    path: str,
    *,
    room: str | Source | None = None,
    user_id: Source | None = None,
    metadata: Source | None = None,
    authorize_join: Callable[..., Any] | None = None,
    dependencies: Sequence[Source] = (),
    subprotocols: Iterable[str] = (),
    limits: Limits | None = None,
) -> Options:
    """Read what `ws_route` was called with; `path` has the prefix of its router.

    Raises:
        ConfigurationError: Something of it cannot work.
    """
    sources = {
        MANAGER: get_manager,
        USER: user_id,
        METADATA: metadata,
        ROOM: None if isinstance(room, str) else room,
    }
    parameters = [
        _parameter(key, Annotated[Any, read_source(key.removeprefix("rooms_"), source)])
        for key, source in sources.items()
        if source is not None
    ]
    if authorize_join is not None and (further := _further_parameters(authorize_join)):
        parameters.append(_parameter(JOIN, Annotated[Any, Depends(_collector(further))]))
    return Options(
        path=path,
        template=room if isinstance(room, str) else None,
        parameters=tuple(parameters),
        dependencies=(Depends(check_handshake), *(read_source("dependencies", source) for source in dependencies)),
        authorize_join=authorize_join,
        subprotocols=check_subprotocols(subprotocols),
        limits=None if limits is None else RouteLimits(limits),
    )


def make_plan(function: Callable[..., Any], options: Options) -> Plan:
    """Return how a handler is served on a route of these options.

    Raises:
        ConfigurationError: It is no handler, or takes what nobody can fill.
    """
    if not inspect.isroutine(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{function!r} cannot be a handler: write a function, with `async def` if it yields")
    name = function.__name__
    taken, returned = _read(function)
    message_parameter, claimed_type = _incoming(name, taken)
    handed_on = [_solvable(name, parameter) for parameter in taken if parameter.name != message_parameter]
    # A handler that asks for the manager has it solved already; asking twice costs each connection its time.
    manager = next((parameter.name for parameter in handed_on if _is_manager(parameter)), None)
    websocket = next((parameter.name for parameter in handed_on if _is_websocket(parameter)), None)
    ours = [parameter for parameter in options.parameters if manager is None or parameter.name != MANAGER]
    if websocket is None:
        ours.append(_parameter(WEBSOCKET, WebSocket))
    template = None
    if options.template is not None:
        template = read_template(options.template, options.path, handed_on, options.sources)
        ours += template.parameters
    return Plan(
        function=function,
        message_parameter=message_parameter,
        message_type=claimed_type,
        answer=read_answer(function, returned),
        parameters=(*ours, *handed_on),
        ours=frozenset(parameter.name for parameter in ours),
        manager=manager or MANAGER,
        websocket=websocket or WEBSOCKET,
        template=template,
        options=options,
    )


def _incoming(name: str, taken: Sequence[inspect.Parameter]) -> tuple[str | None, Any]:
    """Return which parameter takes the messages, and of which type."""
    incoming = {
        parameter.name: claimed for parameter in taken if (claimed := message_type(parameter.annotation)) is not None
    }
    if len(incoming) > 1:
        raise ConfigurationError(
            f"{name}() has several Incoming parameters ({', '.join(incoming)}): take one, and use a union for several "
            "kinds of messages"
        )
    return next(iter(incoming.items()), (None, None))


def _further_parameters(authorize_join: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return what a function wants beside connection and room."""
    check_answers(authorize_join, "authorize_join")
    name = _name_of(authorize_join)
    try:
        asked_with = inspect.signature(authorize_join).bind_partial("connection", "room").arguments
    except TypeError as error:
        raise ConfigurationError(
            f"authorize_join is called with a connection and a room: let {name}() take both"
        ) from error
    return [_solvable(name, parameter) for parameter in _read(authorize_join)[0] if parameter.name not in asked_with]


def _collector(parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Return a dependency that returns what it was filled with."""

    async def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return collect


def _read(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], Any]:
    """Return the parameters of a function and what it returns, annotations that are texts read."""
    try:
        hints = get_type_hints(
            function if inspect.isroutine(function) else type(function).__call__, include_extras=True
        )
    except NameError as error:
        raise ConfigurationError(
            f"the annotations of {_name_of(function)}() cannot be read: {error}. Define what they name at module "
            "level, outside of `if TYPE_CHECKING:`"
        ) from error
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
        for parameter in signature.parameters.values()
    ]
    return parameters, hints.get("return", signature.return_annotation)


def _solvable(name: str, parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter of a function as FastAPI is to fill it."""
    refuse_mistakes(name, parameter)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _is_manager(parameter: inspect.Parameter) -> bool:
    """Return whether FastAPI fills a parameter with the manager."""
    depends = dependency_in(parameter.annotation, parameter.default)
    return depends is not None and depends.dependency is get_manager


def _is_websocket(parameter: inspect.Parameter) -> bool:
    return inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, WebSocket)


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
