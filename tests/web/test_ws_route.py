"""`ws_route` up to accept: registration, dependencies, rooms, identities. And the first example, as it is written."""

import asyncio
import json
import sys
import types
from datetime import date
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, WebSocket
from fastapi.security import OAuth2PasswordBearer
from stage import EXAMPLE, FASTAPI, refused
from starlette.convertors import CONVERTOR_TYPES, Convertor
from support import DEADLINE, until

from fastapi_rooms import (
    ConfigurationError,
    Connection,
    ConnectionDep,
    ConnectionEnded,
    ConnectionManager,
    Incoming,
    ManagerDep,
    NotConnectedError,
    RoomsExtension,
    current_connection,
    get_manager,
    ws_route,
)


async def authenticated_user(websocket: WebSocket) -> str:
    user = websocket.headers.get("x-user")
    if user is None:
        raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Bearer"})
    return user


def as_user(name: str) -> dict[str, Any]:
    return {"additional_headers": {"x-user": name}}


async def test_the_example_works_exactly_as_it_is_written(stage, loop, tracebacks):
    module = types.ModuleType("example")
    module.authenticated_user = authenticated_user
    exec(EXAMPLE, module.__dict__)
    manager = module.rooms.manager
    async with stage.plays(module.app) as server, server.http() as http:
        assert (await refused(server, "/ws/kitchen")).status_code == 401
        async with (
            server.client("/ws/kitchen", **as_user("alice")) as alice,
            server.client("/ws/kitchen", **as_user("bob")) as bob,
            server.client("/ws/garden", **as_user("carol")) as carol,
        ):
            await until(lambda: manager.active_connections == 3)
            assert sorted(manager.active_rooms) == ["garden", "kitchen"]
            assert [c.user_id for c in manager.get_room_members("kitchen")] == ["alice", "bob"]
            await alice.send({"type": "say", "text": "hello"})
            assert await bob.receive() == '{"type":"say","text":"hello"}'
            assert (await http.post("/announce", params={"text": "closing soon"})).json() == 3
            for client in (alice, bob, carol):
                assert await client.receive() == "closing soon"
            await alice.send("nonsense")
            assert (await alice.receive_json())["code"] == "invalid_message"
        await until(lambda: manager.active_connections == 0)
        assert manager.active_rooms == []
    assert tracebacks() == []


# What is decided before accept


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, {"WWW-Authenticate": "Bearer"}),
        (403, {"X-Reason": "banned"}),
        (429, {"Retry-After": "7"}),
        (503, {"Retry-After": "30", "X-Shard": "3"}),
    ],
)
async def test_an_http_exception_before_accept_reaches_the_client(rooms, stage, loop, tracebacks, status, headers):
    def turn_away() -> None:
        raise HTTPException(status, {"why": "not now"}, headers)

    @rooms.ws_route("/user", user_id=turn_away)
    @rooms.ws_route("/room", room=turn_away)
    @rooms.ws_route("/metadata", metadata=turn_away)
    @rooms.ws_route("/route", dependencies=[Depends(turn_away)])
    async def never(message: Incoming[str]) -> None: ...

    @rooms.ws_route("/own")
    async def never_either(nothing: Annotated[None, Depends(turn_away)]) -> None: ...

    async with stage.plays(rooms) as server:
        for path in ("/user", "/room", "/metadata", "/route", "/own"):
            response = await refused(server, path)
            assert response.status_code == status
            assert {name: response.headers.get(name) for name in headers} == headers
            assert json.loads(response.body) == {"detail": {"why": "not now"}}
        assert rooms.manager.active_connections == 0
    assert tracebacks() == []


async def test_identity_is_asked_for_before_room_metadata_and_the_handlers_own_dependencies(rooms, stage):
    order = []

    def step(name: str, result: Any = None):
        def dependency() -> Any:
            order.append(name)
            return result

        return dependency

    @rooms.ws_route(
        "/ws",
        room=step("room", "r"),
        metadata=step("metadata", {}),
        user_id=step("user", "u"),
        dependencies=[Depends(step("route"))],
    )
    async def handler(own: Annotated[None, Depends(step("own"))], message: Incoming[str]) -> str:
        order.append(message)
        return message

    app = FastAPI()
    app.include_router(rooms.router, dependencies=[Depends(step("router"))])
    async with stage.plays(app) as server, server.client("/ws") as client:
        for text in ("one", "two"):
            await client.send(text)
            assert await client.receive() == text
    assert order[:3] == ["router", "route", "user"]
    assert set(order[3:6]) == {"room", "metadata", "own"}
    assert order[6:] == ["one", "two"], "dependencies are solved once per connection"


async def test_who_has_no_identity_learns_nothing_about_rooms(rooms, stage):
    def forbidden_room() -> str:
        raise HTTPException(404, "no such room")

    @rooms.ws_route("/ws", room=forbidden_room, user_id=authenticated_user)
    async def never(message: Incoming[str]) -> None: ...

    async with stage.plays(rooms) as server:
        assert (await refused(server, "/ws")).status_code == 401
        assert (await refused(server, "/ws", **as_user("alice"))).status_code == 404


@pytest.mark.skipif(FASTAPI < (0, 146), reason="the security classes of this FastAPI are for HTTP alone")
async def test_security_classes_and_parameters_of_fastapi_work(rooms, stage):
    bearer = OAuth2PasswordBearer("token")

    async def user(token: Annotated[str, Depends(bearer)]) -> str:
        return f"owner of {token}"

    @rooms.ws_route("/ws/{number}", user_id=user)
    async def handler(
        number: int,
        message: Incoming[str],
        limit: Annotated[int, Query(ge=1)],
        connection: ConnectionDep,
        x_colour: Annotated[str, Header()] = "grey",
    ) -> list[Any]:
        return [number, message, limit, connection.user_id, x_colour]

    async with stage.plays(rooms) as server:
        denied = await refused(server, "/ws/1?limit=1")
        assert (denied.status_code, denied.headers["WWW-Authenticate"]) == (401, "Bearer")
        headers = {"Authorization": "Bearer t0ken", "X-Colour": "red"}
        async with server.client("/ws/1?limit=2", additional_headers=headers) as client:
            await client.send("hi")
            assert await client.receive_json() == [1, "hi", 2, "owner of t0ken", "red"]
        for path in ("/ws/one?limit=2", "/ws/1?limit=0", "/ws/1"):
            assert (await refused(server, path, additional_headers=headers)).status_code == 403


async def test_a_client_that_goes_before_it_was_let_in_leaves_nothing_behind(rooms, stage, wire, loop, tracebacks):
    released, called = {}, []

    async def slow_identity() -> str:
        released["event"] = asyncio.Event()
        await released["event"].wait()
        return "late"

    @rooms.ws_route("/ws", room="hall", user_id=slow_identity)
    async def session(connection: ConnectionDep) -> None:
        called.append(connection)

    async with stage.plays(rooms) as server:
        knocking = asyncio.create_task(server.client("/ws").__aenter__())
        await until(lambda: released)
        knocking.cancel()
        await asyncio.wait([knocking])
        await until(lambda: not server.uvicorn.server_state.connections)
        await server.call(released["event"].set)
        await until(lambda: not server.uvicorn.server_state.tasks)
        assert rooms.manager.active_connections == 0
        assert rooms.manager.active_rooms == []
    assert called == []
    assert tracebacks() == []


async def test_a_dependency_may_accept_by_itself_and_ask_for_a_token_first(rooms, stage, wire):
    async def user(websocket: WebSocket) -> str:
        await websocket.accept()
        return await websocket.receive_text()

    @rooms.ws_route("/ws", room="hall", user_id=user)
    async def handler(message: Incoming[str], connection: ConnectionDep) -> str:
        return f"{connection.user_id}: {message}"

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("alice")
        await client.send("hello")
        assert await client.receive() == "alice: hello"


# Rooms, users and metadata


@pytest.mark.parametrize(
    ("prefix", "path", "template", "url", "room"),
    [
        ("", "/ws/{room_id}", "{room_id}", "/ws/kitchen", "kitchen"),
        ("", "/ws/{room_id}", "chat:{room_id}:{room_id}", "/ws/k%20%C3%BC", "chat:k ü:k ü"),
        ("", "/ws/{room_id:int}", "room-{room_id}", "/ws/007", "room-7"),
        ("", "/ws/{room_id:uuid}", "{room_id}", f"/ws/{'AB' * 16}", "abababab-abab-abab-abab-abababababab"),
        ("", "/ws/{place:path}", "{place}", "/ws/a/b", "a/b"),
        ("/t/{tenant}", "/ws/{room_id}", "{tenant}/{room_id}", "/t/acme/ws/1", "acme/1"),
        ("", "/ws", "lobby", "/ws", "lobby"),
        ("", "/ws/{room_id}", "{{{room_id}}}", "/ws/x", "{x}"),
        ("", "/ws/{room_id:int}", "{room_id:04d}", "/ws/7", "0007"),
    ],
)
async def test_a_room_template_is_filled_from_the_path(stage, prefix, path, template, url, room):
    rooms = RoomsExtension()
    router = APIRouter(prefix=prefix)

    @ws_route(router, path, room=template)
    async def session(connection: ConnectionDep) -> None:
        await connection.send(sorted(connection.rooms))

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(router)
    async with stage.plays(app) as server, server.client(url) as client:
        assert await client.receive_json() == [room]


async def test_a_path_that_its_converter_does_not_take_is_refused(rooms, stage):
    @rooms.ws_route("/ws/{room_id:int}", room="{room_id}")
    async def never(room_id: int, message: Incoming[str]) -> None: ...

    async with stage.plays(rooms) as server:
        assert (await refused(server, "/ws/kitchen")).status_code == 403


@pytest.mark.parametrize(
    "template",
    [
        "{nope}",
        "{room_id}/{nope}",
        "{}",
        "{0}",
        "{room_id.__class__}",
        "{room_id[0]}",
        "{room_id:{nope}}",
        "{room_id!z}",
        "{room_id",
        "room_id}",
    ],
)
def test_a_room_template_that_cannot_work_is_an_error_at_decoration(template):
    with pytest.raises(ConfigurationError, match="room template"):

        @ws_route(APIRouter(), "/ws/{room_id}", room=template)
        async def handler(room_id: str, message: Incoming[str]) -> None: ...


async def async_room(room_id: str) -> str:
    return f"async {room_id}"


def sync_room(room_id: str) -> str:
    return f"sync {room_id}"


def no_room() -> None:
    return None


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (async_room, ["async 1"]),
        (sync_room, ["sync 1"]),
        (Depends(async_room), ["async 1"]),
        (no_room, []),
        (None, []),
    ],
)
async def test_a_room_may_be_a_dependency(rooms, stage, room, expected):
    @rooms.ws_route("/ws/{room_id}", room=room)
    async def session(connection: ConnectionDep) -> None:
        await connection.send(sorted(connection.rooms))

    async with stage.plays(rooms) as server, server.client("/ws/1") as client:
        assert await client.receive_json() == expected


def sync_user() -> str:
    return "alice"


async def async_user() -> str:
    return "alice"


def sync_metadata() -> dict[str, Any]:
    return {"colour": "red"}


async def async_metadata() -> types.MappingProxyType[str, Any]:
    return types.MappingProxyType({"colour": "red"})


@pytest.mark.parametrize("user_id", [sync_user, async_user, Depends(sync_user), Depends(async_user, use_cache=False)])
@pytest.mark.parametrize("metadata", [sync_metadata, async_metadata, Depends(sync_metadata)])
async def test_user_and_metadata_are_dependencies(rooms, stage, user_id, metadata):
    @rooms.ws_route("/ws", user_id=user_id, metadata=metadata)
    async def session(connection: ConnectionDep) -> None:
        connection.metadata["mine"] = True
        await connection.send([connection.user_id, connection.metadata])

    async with stage.plays(rooms) as server:
        for _ in range(2):
            async with server.client("/ws") as client:
                assert await client.receive_json() == ["alice", {"colour": "red", "mine": True}]
    assert sync_metadata() == {"colour": "red"}


async def test_without_user_and_metadata_there_is_none(rooms, stage):
    @rooms.ws_route("/ws", user_id=no_room, metadata=no_room)
    @rooms.ws_route("/bare")
    async def session(connection: ConnectionDep) -> None:
        await connection.send([connection.user_id, connection.metadata])

    async with stage.plays(rooms) as server:
        for path in ("/ws", "/bare"):
            async with server.client(path) as client:
                assert await client.receive_json() == [None, {}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"user_id": lambda: 7}, "the user_id dependency returned int: return a str, an Identity or None"),
        ({"room": lambda: 7}, "the room dependency returned int: return a str or None"),
        ({"metadata": lambda: "red"}, "the metadata dependency returned str: return a dict or None"),
    ],
)
async def test_a_dependency_that_returns_the_wrong_type_says_so(rooms, stage, tracebacks, arguments, words):
    @rooms.ws_route("/ws", **arguments)
    async def never(message: Incoming[str]) -> None: ...

    async with stage.plays(rooms) as server:
        assert (await refused(server, "/ws")).status_code == 500
        assert rooms.manager.active_connections == 0
    (traceback,) = tracebacks()
    assert words in traceback


# Registration


@pytest.mark.parametrize("argument", ["user_id", "metadata"])
def test_a_text_where_a_dependency_belongs_is_an_error_at_decoration(argument):
    with pytest.raises(ConfigurationError, match=f"{argument} takes a dependency"):
        ws_route(APIRouter(), "/ws", **{argument: "alice"})


def test_two_incoming_parameters_are_an_error_at_decoration():
    with pytest.raises(ConfigurationError, match="several Incoming parameters"):

        @ws_route(APIRouter(), "/ws")
        async def handler(first: Incoming[str], second: Incoming[bytes]) -> None: ...


def test_annotations_that_cannot_be_read_are_an_error_at_decoration():
    async def handler(message: "Incoming[Nowhere]") -> None: ...  # noqa: F821

    with pytest.raises(ConfigurationError, match="the annotations of handler"):
        ws_route(APIRouter(), "/ws")(handler)


async def test_the_decorated_function_stays_as_it_was_written():
    async def handler(room_id: str, message: Incoming[str], connection: ConnectionDep) -> str:
        return f"{room_id}: {message}"

    decorated = ws_route(APIRouter(), "/ws/{room_id}", room="{room_id}")(handler)
    assert decorated is handler
    assert await decorated("kitchen", "hello", None) == "kitchen: hello"


FUTURE = """
from __future__ import annotations
from typing import Annotated, Literal
from fastapi import Depends, WebSocket
from pydantic import BaseModel
from fastapi_rooms import Connection, ConnectionDep, Incoming, RoomsExtension, current_connection

rooms = RoomsExtension()

class Say(BaseModel):
    type: Literal["say"]
    text: str

def shout(loud: bool = False) -> bool:
    return loud

@rooms.ws_route("/ws/{room_id}", room="{room_id}")
async def handler(
    room_id: str,
    socket: WebSocket,
    message: Incoming[Say],
    loud: Annotated[bool, Depends(shout)],
    connection: Annotated[Connection, Depends(current_connection)],
) -> list[object]:
    return [room_id, socket.url.path, message.text.upper() if loud else message.text, connection.websocket is socket]
"""


async def test_a_module_with_postponed_annotations_works(stage, monkeypatch):
    module = types.ModuleType("postponed")
    monkeypatch.setitem(sys.modules, "postponed", module)  # where pydantic looks for the names
    exec(FUTURE, module.__dict__)
    async with stage.plays(module.rooms) as server, server.client("/ws/k?loud=1") as client:
        await client.send({"type": "say", "text": "hi"})
        assert await client.receive_json() == ["k", "/ws/k", "HI", True]


async def test_a_handler_may_ask_for_the_websocket_under_any_name(rooms, stage):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str], ws: WebSocket, connection: ConnectionDep) -> list[Any]:
        return [ws.headers["x-user"], connection.websocket is ws]

    async with stage.plays(rooms) as server, server.client("/ws", **as_user("alice")) as client:
        await client.send("hi")
        assert await client.receive_json() == ["alice", True]


async def test_routes_have_names_and_urls(rooms, stage):
    @rooms.ws_route("/ws/{room_id}", room="{room_id}", name="chat")
    async def handler(room_id: str, message: Incoming[str]) -> None: ...

    @rooms.ws_route("/other/{room_id}")
    async def other(websocket: WebSocket) -> None:
        await websocket.send_json([str(websocket.url_for("chat", room_id="x")), websocket.scope["route"].name])

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router, prefix="/v1")
    assert app.url_path_for("chat", room_id="kitchen") == "/v1/ws/kitchen"
    assert app.url_path_for("other", room_id="kitchen") == "/v1/other/kitchen"
    async with stage.plays(app) as server, server.client("/v1/other/1") as client:
        url, name = await client.receive_json()
        assert url == server.url("/v1/ws/x")
        assert name == "other"


async def test_a_route_goes_on_an_app_a_router_and_a_router_in_a_router(stage, wire):
    rooms = RoomsExtension()
    app = FastAPI(lifespan=rooms.lifespan)
    inner, outer = APIRouter(prefix="/inner/{a}"), APIRouter(prefix="/outer/{b}")
    seen = []

    def guard(name: str):
        async def check(manager: ManagerDep, connection: ConnectionDep) -> None:
            seen.append((name, manager is rooms.manager))

        return Depends(check)

    async def handler(websocket: WebSocket, message: Incoming[str]) -> dict[str, Any]:
        return {**websocket.path_params, "message": message}

    ws_route(app, "/ws/{c}", room="{c}", dependencies=[guard("route")])(handler)
    ws_route(inner, "/ws/{c}", room="{a}{c}", dependencies=[guard("route")])(handler)
    outer.include_router(inner, prefix="/between", dependencies=[guard("include")])
    app.include_router(outer, prefix="/v1", dependencies=[guard("app include")])
    async with stage.plays(app) as server:
        async with server.client("/ws/3") as client:
            await client.send("hi")
            assert await client.receive_json() == {"c": "3", "message": "hi"}
        assert seen == [("route", True)]
        seen.clear()
        async with server.client("/v1/outer/2/between/inner/1/ws/3") as client:
            await client.send("hi")
            assert await client.receive_json() == {"a": "1", "b": "2", "c": "3", "message": "hi"}
            assert rooms.manager.active_rooms == ["13"]
        assert seen == [("app include", True), ("include", True), ("route", True)]


async def test_dependency_overrides_reach_everything(rooms, stage):
    def colour() -> str:
        return "red"

    @rooms.ws_route("/ws", room=no_room, user_id=authenticated_user, metadata=sync_metadata)
    async def session(connection: ConnectionDep, manager: ManagerDep, tint: Annotated[str, Depends(colour)]) -> None:
        await connection.send([connection.user_id, sorted(connection.rooms), connection.metadata, tint])
        await connection.send(manager is override)

    override = ConnectionManager()
    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    app.dependency_overrides = {
        authenticated_user: lambda: "mallory",
        no_room: lambda: "somewhere",
        sync_metadata: lambda: {"colour": "blue"},
        colour: lambda: "green",
        get_manager: lambda: override,
    }
    async with stage.plays(app) as server, server.client("/ws") as client:
        assert await client.receive_json() == ["mallory", ["somewhere"], {"colour": "blue"}, "green"]
        assert await client.receive_json() is True
        assert (await client.closed())[0] == 1000
    assert override.active_connections == 0


# The connection before and after accept


async def test_the_connection_is_known_to_dependencies_before_it_is_accepted(rooms, stage, wire, tracebacks):
    early: list[Connection] = []
    facts: list[Any] = []

    async def look(connection: Annotated[Connection, Depends(current_connection)]) -> str:
        early.append(connection)
        facts.extend([connection.user_id, sorted(connection.rooms), connection.is_open, connection.connection_id])
        for use in (connection.send("too early"), connection.close()):
            with pytest.raises(NotConnectedError, match="not accepted yet"):
                await use
        with pytest.raises(NotConnectedError, match="not accepted yet"):
            connection.messages(str)
        return "alice"

    @rooms.ws_route("/ws", room="hall", user_id=look)
    async def session(connection: ConnectionDep, manager: ManagerDep) -> None:
        early.append(connection)
        facts.extend([connection.user_id, sorted(connection.rooms), connection.is_open, connection.connection_id])
        assert manager.get_room_members("hall") == [connection]
        await connection.send("now")

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "now"
        assert await client.closed() == (1000, "")
    assert early[0] is early[1]
    assert facts[:3] == [None, [], False]
    assert facts[4:7] == ["alice", ["hall"], True]
    assert facts[3] == facts[7]
    assert tracebacks() == []


async def test_code_after_a_yield_runs_once_and_after_the_close(rooms, stage, wire, loop):
    after: list[Any] = []
    closed = {}

    async def resource(connection: ConnectionDep):
        closed["event"] = asyncio.Event()
        yield
        await closed["event"].wait()  # set once the client has seen the close frame
        after.append((connection.is_open, connection.user_id, sorted(connection.rooms)))
        with pytest.raises(ConnectionEnded):
            await connection.send("too late")
        after.append("refused")

    @rooms.ws_route("/ws", room="hall", user_id=sync_user)
    async def session(nothing: Annotated[None, Depends(resource)], connection: ConnectionDep) -> None:
        await connection.send("served")

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "served"
        assert await client.closed() == (1000, "")
        assert after == []
        assert rooms.manager.active_connections == 0
        await server.call(closed["event"].set)
        await until(lambda: len(after) == 2)
        assert after == [(False, "alice", ["hall"]), "refused"]


async def test_who_says_something_to_a_client_that_has_gone_in_a_cleanup_is_not_heard(rooms, stage, tracebacks):
    async def resource(connection: ConnectionDep):
        yield
        await connection.send("too late")

    @rooms.ws_route("/ws")
    async def session(nothing: Annotated[None, Depends(resource)]) -> None: ...

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.closed() == (1000, "")
    assert tracebacks() == []


async def test_in_an_http_route_current_connection_says_what_is_wrong(rooms, stage, tracebacks):
    @rooms.router.get("/http")
    async def route(connection: ConnectionDep) -> None: ...

    async with stage.plays(rooms) as server, server.http() as http:
        assert (await http.get("/http", timeout=DEADLINE)).status_code == 500
    (traceback,) = tracebacks()
    assert "current_connection was used in an HTTP route" in traceback
    assert "use get_manager there" in traceback


async def test_a_room_template_takes_convertors_of_the_app(rooms, stage, monkeypatch):
    class DayConvertor(Convertor[date]):
        regex = "[0-9]{4}-[0-9]{2}-[0-9]{2}"

        def convert(self, value: str) -> date:
            return date.fromisoformat(value)

        def to_string(self, value: date) -> str:
            return value.isoformat()

    monkeypatch.setitem(CONVERTOR_TYPES, "day", DayConvertor())

    @rooms.ws_route("/ws/{day:day}", room="diary:{day}")
    async def handler(message: Incoming[str], connection: ConnectionDep) -> list[str]:
        return list(connection.rooms)

    async with stage.plays(rooms) as server, server.client("/ws/2026-11-22") as client:
        await client.send("where am I?")
        assert await client.receive_json() == ["diary:2026-11-22"]
