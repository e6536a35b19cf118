"""What may stand for a dependency in the options of a route, and what may not, since it can be called by accident."""

import functools
from collections.abc import Hashable
from typing import Annotated, Any, NewType
from unittest.mock import Mock
from uuid import UUID

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Security
from fastapi.security import SecurityScopes
from stage import refused
from typing_extensions import TypeAliasType

from fastapi_rooms import (
    ConfigurationError,
    Connection,
    ConnectionDep,
    ConnectionManager,
    Incoming,
    ManagerDep,
    RoomsExtension,
    get_manager,
    ws_route,
)
from fastapi_rooms.web.plan import make_plan, read_options
from fastapi_rooms.web.sources import dependency_in, fault, read_source


def user(token: str | None = None) -> str:
    if token is None:
        raise HTTPException(401)
    return f"owner of {token}"


def other() -> str:
    raise NotImplementedError


class Limits:
    def __init__(self, limit: int = 3) -> None:
        self.limit = limit


class Checker:
    def __call__(self, limit: int = 3) -> None: ...


User = Annotated[str, Depends(user)]
Text = Annotated[str, "a text"]
UserId = NewType("UserId", str)


def any_two(function: Any) -> Any:
    def inner(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    return inner


def any_two_that_says_so(function: Any) -> Any:
    return functools.wraps(function)(any_two(function))


def positional(token: str, /) -> None: ...


@pytest.mark.parametrize(
    ("source", "dependency"),
    [
        (user, user),
        (Depends(user), user),
        (User, user),
        (Annotated[str, "first", Depends(user), "last"], user),
        (Annotated[User, "around it"], user),
        (Annotated[str, Depends(other), Depends(user)], user),
        (Annotated[str, Depends(user), Query()], user),
        (TypeAliasType("User", User), user),
        (Annotated[TypeAliasType("User", User), "around it"], user),
        (Annotated[Limits, Depends()], Limits),
        (Annotated[Limits, Depends(Limits)], Limits),
        (Limits, Limits),
        (any_two_that_says_so(user), any_two_that_says_so),
    ],
)
def test_a_dependency_is_found_in_what_names_it(source, dependency):
    found = read_source("user_id", source).dependency
    assert found is dependency or found.__wrapped__ is user


def test_an_object_that_is_written_to_be_called_is_a_dependency():
    for called in (Checker(), functools.partial(user, token="t0ken"), Checker().__call__):
        assert read_source("user_id", called).dependency is called


def test_what_else_the_mark_of_an_alias_says_is_kept():
    found = read_source("user_id", Annotated[Limits, Security(use_cache=False, scopes=["write"])])
    assert (found.dependency, found.use_cache, found.scopes) == (Limits, False, ["write"])
    assert Depends().dependency is None


@pytest.mark.parametrize(
    "source",
    [
        Text,
        list[int],
        UserId,
        Any,
        dict[str, User],
        *([User | None, Annotated[User | None, "around it"]] if isinstance(Depends(), Hashable) else []),
    ],
)
@pytest.mark.parametrize("option", ["user_id", "room", "metadata", "dependencies"])
def test_an_annotation_without_a_dependency_is_refused_with_the_line_to_write(source, option):
    line = r"dependencies=\[Depends\(function\)\]" if option == "dependencies" else rf"{option}=Depends\(function\)"
    with pytest.raises(ConfigurationError, match=rf"{option} takes a dependency, and .* holds none: write {line}"):
        ws_route(APIRouter(), "/ws", **{option: [source] if option == "dependencies" else source})


@pytest.mark.parametrize(
    ("dependency", "wrong"),
    [
        (None, "names nothing"),
        (Text, "neither a function nor a class"),
        (UserId, "neither a function nor a class"),
        (Any, "neither a function nor a class"),
        (list[int], "neither a function nor a class"),
        (functools.partial(Text, "a"), "neither a function nor a class"),
        ("user", "neither a function nor a class"),
        (any_two(user), r"functools\.wraps"),
        (positional, "name each parameter"),
        (Mock(), "name each parameter"),
        (dict, "nobody can read"),
    ],
)
def test_nothing_becomes_a_dependency_by_being_callable(dependency, wrong):
    assert fault(Depends(user)) is None
    with pytest.raises(ConfigurationError, match=wrong):
        read_source("user_id", Depends(dependency))
    with pytest.raises(ConfigurationError, match=wrong):
        read_options("/ws", dependencies=[Annotated[str, Depends(dependency)] if dependency else Depends()])

    async def by_annotation(
        who: Annotated[dependency or None, Depends(dependency)], message: Incoming[str]
    ) -> None: ...

    async def by_default(message: Incoming[str], who=Depends(dependency)) -> None: ...  # noqa: B008

    async def allow(connection: Connection, room: str, who=Depends(dependency)) -> bool: ...  # noqa: B008

    for handler in (by_default, *([by_annotation] if dependency is not None else [])):
        with pytest.raises(ConfigurationError, match=rf"its parameter who.*{wrong}.*write Depends\(function\)"):
            make_plan(handler, read_options("/ws"))
    with pytest.raises(ConfigurationError, match=wrong):
        read_options("/ws", authorize_join=allow)


@pytest.mark.parametrize("mark", [Security(User, scopes=["write"]), Depends(User, use_cache=False), Depends(Text)])
def test_what_else_a_mark_around_an_alias_says_does_not_get_lost(mark):
    for source in (mark, Annotated[str, mark]):
        with pytest.raises(ConfigurationError, match=r"user_id takes a dependency.*without Depends\(\) around it"):
            read_options("/ws", user_id=source)


def test_a_mark_around_an_alias_is_refused_in_the_parameters_of_who_is_asked():
    async def allow(connection: Connection, room: str, who: Annotated[str, Depends(User)]) -> bool: ...

    with pytest.raises(ConfigurationError, match=r"its parameter who.*without Depends\(\) around it"):
        read_options("/ws", authorize_join=allow)


@pytest.mark.parametrize("function", [User, Depends(user), UserId, list[int]])
@pytest.mark.parametrize(
    "refuse",
    [lambda function: read_options("/ws", authorize_join=function), lambda f: RoomsExtension(authorize_join=f)],
)
def test_who_is_asked_before_a_join_is_a_function_and_no_dependency(refuse, function):
    with pytest.raises(ConfigurationError, match="authorize_join takes a function, not"):
        refuse(function)


def test_a_parameter_without_a_dependency_has_none():
    assert dependency_in(int) is None
    assert dependency_in(Text, 3) is None
    assert dependency_in(str, Depends(user)).dependency is user


def test_the_last_of_several_marks_says_whether_a_parameter_is_the_manager():
    async def handler(first: Annotated[ConnectionManager, Depends(other), Depends(get_manager)]) -> None: ...

    assert make_plan(handler, read_options("/ws")).manager == "first"


async def test_an_alias_is_asked_and_nobody_gets_in_past_it(rooms, stage):
    def details(who: User) -> dict[str, Any]:
        return {"who": who}

    metadata = Annotated[dict[str, Any], Depends(details)]

    @rooms.ws_route("/ws", dependencies=[User], room=User, user_id=User, metadata=metadata)
    async def session(connection: ConnectionDep) -> None:
        await connection.send([connection.user_id, *connection.rooms, connection.metadata])

    async with stage.plays(rooms) as server:
        for query in ("", "?args=1&kwargs=1"):
            assert (await refused(server, f"/ws{query}")).status_code == 401
        async with server.client("/ws?token=me") as client:
            assert await client.receive_json() == ["owner of me", "owner of me", {"who": "owner of me"}]


async def test_the_scopes_of_an_alias_reach_its_dependency(stage):
    rooms = RoomsExtension()

    def scoped(scopes: SecurityScopes) -> str:
        return scopes.scope_str

    @rooms.ws_route("/ws", user_id=Annotated[str, Security(scoped, scopes=["read", "write"])])
    async def session(connection: ConnectionDep) -> None:
        await connection.send(connection.user_id)

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    async with stage.plays(app) as server, server.client("/ws") as client:
        assert await client.receive() == "read write"


def current_user(token: str = "") -> str:
    if token != "good":
        raise HTTPException(401, "no")
    return "ann"


CurrentUser = Annotated[str, Depends(current_user)]


async def test_an_alias_asks_the_dependency_in_it_whatever_is_in_the_query(stage):
    rooms = RoomsExtension()
    asked = []

    def note(token: str = "") -> None:
        asked.append(token)

    @rooms.ws_route("/user", user_id=CurrentUser, dependencies=[Annotated[None, Depends(note)]])
    async def route(connection: ConnectionDep) -> None:
        await connection.send(connection.user_id)

    async with stage.plays(rooms) as server:
        async with server.client("/user?token=good") as client:
            assert await client.receive() == "ann"
        assert asked == ["good"]
        for query in ("", "?args=1&kwargs=1", "?token=bad&args=1&kwargs=1"):
            assert (await refused(server, f"/user{query}")).status_code == 401


async def test_a_room_is_the_one_that_the_handler_names_however_the_path_is_spelt(stage):
    rooms = RoomsExtension()

    @rooms.ws_route("/number/{number}", room="number:{number}")
    async def by_number(number: int, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(f"number:{number}", message)

    @rooms.ws_route("/id/{key}", room="id:{key}")
    async def by_id(key: UUID, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(f"id:{key}", message)

    @rooms.ws_route("/plain/{name}/{number:int}", room="{name}:{number}")
    async def not_taken(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.send(sorted(connection.rooms))

    key = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
    async with stage.plays(rooms) as server:
        async with server.client("/number/007") as one, server.client("/number/7") as two:
            await one.send("hello")
            assert [await one.receive(), await two.receive()] == ["hello", "hello"]
        async with server.client(f"/id/{key}") as one, server.client(f"/id/{key.lower()}") as two:
            await one.send("hello")
            assert [await one.receive(), await two.receive()] == ["hello", "hello"]
        async with server.client("/plain/a/007") as client:
            await client.send("where?")
            assert await client.receive_json() == ["a:7"]
