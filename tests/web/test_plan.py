"""The plan of a route, made without an app: what FastAPI fills, what we fill, and which room."""

import functools
import inspect
import sys
from typing import Annotated, Any

import pytest
from fastapi import Depends, Security, WebSocket
from pydantic import BaseModel, Field

from fastapi_rooms import ConfigurationError, Connection, ConnectionDep, Identity, Incoming, ManagerDep, get_manager
from fastapi_rooms.web.gate import check_handshake
from fastapi_rooms.web.mistakes import RULES
from fastapi_rooms.web.plan import Plan, make_plan, read_options

SHORT = Field(max_length=3)
ALWAYS = ["rooms_manager", "rooms_websocket"]


class Say(BaseModel):
    text: str


def who() -> Identity:
    raise NotImplementedError


def where() -> str:
    raise NotImplementedError


def details() -> dict[str, Any]:
    raise NotImplementedError


async def chat(room_id: str, message: Incoming[Say], connection: ConnectionDep, limit: int = 3) -> None: ...


async def session(connection: ConnectionDep) -> None: ...


def plan_of(function: Any = chat, path: str = "/ws/{room_id}", **options: Any) -> Plan:
    return make_plan(function, read_options(path, **options))


def dependency_of(parameter: inspect.Parameter) -> Any:
    """Return what FastAPI calls to fill a parameter of ours."""
    (depends,) = parameter.annotation.__metadata__
    return depends.dependency


# What FastAPI fills


def test_fastapi_fills_the_parameters_of_the_handler_but_the_one_for_messages():
    handed_on = [parameter for parameter in plan_of().parameters if not parameter.name.startswith("rooms_")]
    assert [parameter.name for parameter in handed_on] == ["room_id", "connection", "limit"]
    assert [parameter.annotation for parameter in handed_on] == [str, ConnectionDep, int]
    assert handed_on[-1].default == 3


def test_all_is_filled_by_name_and_ours_comes_before_what_is_the_handlers():
    plan = plan_of()
    assert list(plan.signature.parameters)[:2] == ALWAYS
    assert {parameter.kind for parameter in plan.parameters} == {inspect.Parameter.KEYWORD_ONLY}


def test_what_connecting_needs_is_asked_for_in_one_order_whatever_the_order_of_the_options():
    plan = plan_of(authorize_join=lambda connection, room, level=1: True, metadata=details, room=where, user_id=who)
    names = ["rooms_manager", "rooms_user_id", "rooms_metadata", "rooms_room", "rooms_join", "rooms_websocket"]
    assert list(plan.signature.parameters)[: len(names)] == names
    assert plan.ours == set(names)
    assert [dependency_of(parameter) for parameter in plan.parameters[:4]] == [get_manager, who, details, where]


def test_the_gate_comes_before_the_dependencies_of_the_route():
    first = read_options("/ws", dependencies=[who, Depends(where, use_cache=False)]).dependencies
    assert [(depends.dependency, depends.use_cache) for depends in first] == [
        (check_handshake, True),
        (who, True),
        (where, False),
    ]


def test_a_handler_that_asks_for_the_manager_or_the_websocket_shares_its_own_with_us():
    async def handler(line: WebSocket, of_the_app: ManagerDep, message: Incoming[str]) -> None: ...

    plan = plan_of(handler)
    assert (plan.manager, plan.websocket, plan.ours) == ("of_the_app", "line", set())
    plan = plan_of(session)
    assert (plan.manager, plan.websocket, plan.ours) == (*ALWAYS, set(ALWAYS))


def test_the_first_of_several_of_a_kind_is_shared():
    async def handler(one: WebSocket, other: WebSocket, first: ManagerDep, second: ManagerDep) -> None: ...

    assert (plan_of(handler).manager, plan_of(handler).websocket) == ("first", "one")


def test_annotations_that_are_texts_are_read():
    async def handler(room_id: "str", message: "Incoming[Say]", line: "WebSocket") -> "None": ...

    plan = plan_of(handler)
    assert (plan.message_parameter, plan.message_type, plan.websocket) == ("message", Say, "line")
    assert plan.signature.parameters["room_id"].annotation is str


# What we fill


@pytest.mark.parametrize(
    ("annotation", "claimed"),
    [
        (Incoming[Say], Say),
        (Incoming[str | bytes], str | bytes),
        (Incoming[None], type(None)),
        (Annotated[Incoming[str], SHORT], Annotated[str, SHORT]),
        (Incoming[Annotated[str, SHORT]], Annotated[str, SHORT]),
    ],
)
def test_we_fill_the_parameter_that_is_marked_with_messages_of_its_type(annotation, claimed):
    async def handler(message): ...

    handler.__annotations__ = {"message": annotation}
    plan = plan_of(handler)
    assert (plan.message_parameter, plan.message_type) == ("message", claimed)
    assert "message" not in plan.signature.parameters


def test_without_a_mark_the_handler_owns_the_session():
    assert (plan_of(session).message_parameter, plan_of(session).message_type) == (None, None)


# Which room


def test_a_text_is_a_template_and_nothing_that_fastapi_fills():
    plan = plan_of(room="chat:{room_id}")
    assert plan.template is not None
    assert (plan.template.text, plan.template.filled_by) == ("chat:{room_id}", {"room_id": "room_id"})
    assert plan.ours == set(ALWAYS)


def test_a_dependency_says_which_room_when_a_client_comes():
    plan = plan_of(room=where)
    assert plan.template is None
    assert dependency_of(plan.signature.parameters["rooms_room"]) is where


def test_without_a_room_nobody_is_asked_for_one():
    plan = plan_of()
    assert plan.template is None
    assert "rooms_room" not in plan.signature.parameters


# Who is asked before a join


async def test_what_is_asked_before_a_join_is_filled_beside_the_handler():
    async def authorize(connection: Connection, room: str, user: Annotated[str, Depends(who)], level: int = 1) -> bool:
        raise NotImplementedError

    plan = plan_of(authorize_join=authorize)
    assert plan.options.authorize_join is authorize
    collect = dependency_of(plan.signature.parameters["rooms_join"])
    assert list(inspect.signature(collect).parameters) == ["user", "level"]
    assert await collect(user="ann", level=2) == {"user": "ann", "level": 2}


@pytest.mark.parametrize("authorize_join", [None, lambda connection, room: True, lambda *connection_and_room: True])
def test_what_takes_no_more_than_a_connection_and_a_room_is_filled_with_nothing(authorize_join):
    plan = plan_of(authorize_join=authorize_join)
    assert plan.options.authorize_join is authorize_join
    assert "rooms_join" not in plan.signature.parameters


# Mistakes; those of parameters are in test_mistakes.py


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"room": 5}, "room takes a dependency, not 5"),
        ({"user_id": "ann"}, "user_id takes a dependency"),
        ({"metadata": {}}, "metadata takes a dependency"),
        ({"dependencies": [5]}, "dependencies takes a dependency"),
        ({"authorize_join": 7}, "authorize_join takes a function"),
        ({"authorize_join": lambda connection: True}, "take both"),
    ],
)
def test_options_that_cannot_work_are_found_before_there_is_a_handler(options, fix):
    with pytest.raises(ConfigurationError, match=fix):
        read_options("/ws/{room_id}", **options)


def test_of_several_mistakes_the_rules_name_one():
    async def handler(say: Say, /) -> None: ...

    (parameter,) = inspect.signature(handler).parameters.values()
    assert len([fix for rule in RULES if (fix := rule(parameter)) is not None]) == 2
    with pytest.raises(ConfigurationError, match=r"handler\(\) cannot be given its parameter say: .*: name each"):
        plan_of(handler)


def test_a_plan_registers_nothing_and_calls_nothing():
    plan = plan_of(user_id=who, room=where)
    assert plan.function is chat
    assert not hasattr(chat, "__signature__")


# Sources: what is passed in as a dependency


def current_user() -> str:
    return "ann"


class Callers:
    def __call__(self, token: str) -> str:
        return token


User = Annotated[str, Depends(current_user)]
WITH_ALIASES = ["user_id", "room", "metadata"]


@pytest.mark.parametrize("option", WITH_ALIASES)
@pytest.mark.parametrize(
    "source",
    [
        User,
        Annotated[str, "a note", Depends(current_user), "another"],
        Annotated[User, "nested"],
        Annotated[str, Depends(int), Depends(current_user)],
        Annotated[str, Security(current_user, scopes=["all"])],
        Depends(User),
        Depends(current_user),
        current_user,
    ],
)
def test_an_alias_stands_for_the_dependency_in_it(option, source):
    options = read_options("/ws", **{option: source})
    parameter = next(p for p in options.parameters if p.name == f"rooms_{option}")
    assert parameter.annotation.__metadata__[-1].dependency is current_user


def test_what_is_solved_first_may_be_an_alias_too():
    [_, first, second] = read_options("/ws", dependencies=[User, Annotated[Callers, Depends()]]).dependencies
    assert (first.dependency, second.dependency) == (current_user, Callers)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 brings the statement")
def test_a_type_statement_is_an_alias_too():
    space = {"Annotated": Annotated, "Depends": Depends, "current_user": current_user}
    exec("type Name = Annotated[str, Depends(current_user)]", space)
    parameter = read_options("/ws", user_id=space["Name"]).parameters[-1]
    assert parameter.annotation.__metadata__[-1].dependency is current_user


def unwrapped(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Annotated[str, "no dependency"], r"holds none: write user_id=Depends\(function\)"),
        (list[str], "takes a dependency, and .* holds none"),
        (Depends(list[str]), "takes a dependency, not"),
        (Depends(), r"takes a dependency, not Depends.*: Depends\(\) names nothing"),
        (Annotated[list[str], Depends()], "takes a dependency, not"),
        ("ann", "takes a dependency, not 'ann'"),
        (unwrapped(current_user), r"FastAPI would fill \*args from the query.*functools\.wraps"),
        (lambda **values: "ann", r"FastAPI would fill \*\*values from the query"),
    ],
)
def test_what_holds_no_dependency_is_refused(source, said):
    with pytest.raises(ConfigurationError, match=said):
        read_options("/ws", user_id=source)


@pytest.mark.parametrize("source", [Callers(), Callers, functools.wraps(current_user)(unwrapped(current_user))])
def test_what_fastapi_can_call_is_taken(source):
    assert read_options("/ws", user_id=source).parameters[-1].annotation.__metadata__[-1].dependency is source


def test_an_alias_cannot_be_asked_about_joins():
    with pytest.raises(ConfigurationError, match="authorize_join takes a function"):
        read_options("/ws", authorize_join=User)


# Rooms of a template


def test_a_room_is_called_by_what_the_handler_is_given():
    async def handler(number: int, other: str) -> None: ...

    options = read_options("/{number}/{name}", room="room:{number}:{name}")
    template = make_plan(handler, options).template
    assert template is not None
    assert template.filled_by == {"number": "number"}
    assert template.fill({"number": 7, "other": "x"}, {"number": "007", "name": "ann"}) == "room:7:ann"
    assert make_plan(handler, read_options("/{number}")).template is None
