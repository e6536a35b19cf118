"""`RoomsExtension`: the ways to attach it, where the manager is found, and how it ends."""

import asyncio
import contextlib
import traceback
import types
from typing import Any
from uuid import uuid4

import pytest
from brokers.ports import free_port
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from stage import FASTAPI, refused, smallest_app
from starlette.applications import Starlette
from starlette.routing import Mount
from support import live, until

from fastapi_rooms import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionDep,
    ConnectionManager,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
    ws_route,
)


def with_lifespan(rooms: RoomsExtension) -> FastAPI:
    return FastAPI(lifespan=rooms.lifespan)


def with_router(rooms: RoomsExtension) -> FastAPI:
    app = FastAPI()
    app.include_router(rooms.router)
    return app


def with_a_lifespan_of_its_own(rooms: RoomsExtension) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        async with rooms.lifespan(app):
            yield

    return FastAPI(lifespan=lifespan)


def with_a_lifespan_and_state_of_its_own(rooms: RoomsExtension) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        async with rooms.lifespan(app) as state:
            yield {**state, "mine": True}

    return FastAPI(lifespan=lifespan)


def with_all(rooms: RoomsExtension) -> FastAPI:
    app = with_a_lifespan_of_its_own(rooms)
    outer = APIRouter()
    outer.include_router(rooms.router)
    app.include_router(outer)
    app.include_router(APIRouter(lifespan=rooms.lifespan))
    return app


WAYS = pytest.mark.parametrize(
    "attach",
    [with_lifespan, with_router, with_a_lifespan_of_its_own, with_a_lifespan_and_state_of_its_own, with_all],
)


def add_probes(router: APIRouter | FastAPI, manager: ConnectionManager) -> None:
    """Add an HTTP route at /http and a WebSocket route at /ws that say whether they got the manager."""

    @router.get("/http")
    async def http(found: ManagerDep) -> bool:
        return found is manager

    @ws_route(router, "/ws")
    async def ws(message: Incoming[str], found: ManagerDep) -> bool:
        return found is manager


async def probe(server, prefix: str = "") -> None:
    async with server.http() as http:
        assert (await http.get(f"{prefix}/http")).json() is True
    async with server.client(f"{prefix}/ws") as client:
        await client.send("hi")
        assert await client.receive_json() is True


# Attaching


@WAYS
async def test_every_way_to_attach_starts_one_manager(rooms, stage, loop, attach, tracebacks):
    app = attach(rooms)
    add_probes(app, rooms.manager)
    async with stage.plays(app) as server:
        assert app.state.rooms is rooms.manager
        await probe(server)
    assert tracebacks() == []


@WAYS
async def test_every_way_to_attach_stops_the_manager_once(rooms, stage, monkeypatch, attach):
    stopped = []
    stop = rooms.manager.stop

    async def count() -> None:
        stopped.append(asyncio.get_running_loop())
        await stop()

    monkeypatch.setattr(rooms.manager, "stop", count)
    async with stage.plays(attach(rooms)) as server:
        assert stopped == []
    assert stopped == [server.loop]


@pytest.mark.parametrize("attach", [with_lifespan, with_router, with_a_lifespan_and_state_of_its_own])
async def test_the_manager_lies_in_the_lifespan_state(rooms, attach):
    app = attach(rooms)

    @app.get("/state")
    async def state(request: Request) -> bool:
        return request.state.rooms is rooms.manager

    with live(app) as server:
        async with server.http() as http:
            assert (await http.get("/state")).json() is True


async def test_the_users_own_lifespan_may_use_the_manager_and_keeps_its_state(rooms, stage):
    heard = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        async with rooms.lifespan(app):
            assert app.state.rooms is rooms.manager
            heard.append(await rooms.manager.broadcast("before anybody came"))
            yield {"mine": 7}
            heard.append(await rooms.manager.broadcast("after everybody went"))

    app = FastAPI(lifespan=lifespan)

    @app.get("/state")
    async def state(request: Request) -> int:
        return request.state.mine

    async with stage.plays(app) as server, server.http() as http:
        assert (await http.get("/state")).json() == 7
    assert heard == [0, 0]


async def test_a_lifespan_that_fails_stops_the_manager_too(rooms, monkeypatch):
    stopped = []

    async def stop() -> None:
        stopped.append(True)

    monkeypatch.setattr(rooms.manager, "stop", stop)
    with pytest.raises(ZeroDivisionError):
        async with rooms.lifespan(FastAPI()):
            raise ZeroDivisionError
    assert stopped == [True]


async def test_two_extensions_on_one_app_are_told_apart_from_one_attached_twice(rooms):
    app = with_lifespan(rooms)
    app.include_router(RoomsExtension().router)
    with pytest.raises(ConfigurationError, match="attach one RoomsExtension to an app"):
        async with app.router.lifespan_context(app):
            pass
    async with rooms.lifespan(app):  # nothing of the failed start is left
        assert app.state.rooms is rooms.manager


SMALLEST = """\
from fastapi import FastAPI
from fastapi_rooms import Incoming, RoomsExtension

rooms = RoomsExtension()

@rooms.ws_route("/ws/{room_id}", room="{room_id}")
async def chat(room_id: str, message: Incoming[str]) -> None:
    await rooms.manager.broadcast_to_room(room_id, message)

app = FastAPI()
app.include_router(rooms.router)
"""


async def test_the_smallest_app_is_an_extension_a_handler_and_one_include_router(loop, tracebacks):
    module = types.ModuleType("smallest")
    exec(SMALLEST, module.__dict__)
    with live(module.app, loop) as server:
        async with server.client("/ws/hall") as alice, server.client("/ws/hall") as bob:
            await until(lambda: len(module.rooms.manager.get_room_members("hall")) == 2)
            await alice.send("hello")
            assert await alice.receive() == "hello"
            assert await bob.receive() == "hello"
    assert tracebacks() == []


async def test_the_decorator_of_the_extension_is_ws_route_on_its_router(rooms, stage):
    async def user() -> str:
        return "alice"

    async def metadata() -> dict[str, int]:
        return {"age": 7}

    visited = []

    @rooms.ws_route("/ws", room="hall", user_id=user, metadata=metadata, name="chat")
    async def session(connection: ConnectionDep) -> None:
        visited.append((connection.user_id, set(connection.rooms), connection.metadata))

    app = FastAPI()
    app.include_router(rooms.router, prefix="/v1")
    assert app.url_path_for("chat") == "/v1/ws"
    async with stage.plays(app) as server, server.client("/v1/ws") as client:
        assert await client.closed() == (1000, "")
    assert visited == [("alice", {"hall"}, {"age": 7})]


async def test_settings_reach_the_manager():
    settings = RoomsSettings(outbox_messages=7)
    assert RoomsExtension(settings=settings).manager.settings is settings
    assert RoomsExtension().manager.settings == RoomsSettings()


def test_an_extension_shows_counts_and_no_secrets(rooms):
    assert repr(rooms) == "<RoomsExtension <ConnectionManager connections=0 rooms=0>>"


# Attaching to Redis


@pytest.fixture
def prefix():
    return f"t{uuid4().hex}"


@WAYS
async def test_every_way_to_attach_connects_to_redis_and_hangs_up_at_the_end(
    stage, loop, shared_broker, prefix, attach, tracebacks
):
    rooms = RoomsExtension(shared_broker.url, settings=RoomsSettings(key_prefix=prefix), required=True)
    app = attach(rooms)
    add_probes(app, rooms.manager)
    for _ in range(2):
        async with stage.plays(app) as server:
            assert rooms.manager.status.connected
            assert shared_broker.channels(f"{prefix}:*") == {
                f"{prefix}:all",
                f"{prefix}:node:{rooms.manager.node_id}:0",
            }
            await probe(server)
        assert not rooms.manager.status.connected
        await until(lambda: shared_broker.channels(f"{prefix}:*") == set())
    assert tracebacks() == []


async def test_two_apps_on_one_redis_reach_each_others_clients(loop, shared_broker, prefix):
    extensions = [RoomsExtension(shared_broker.url, settings=RoomsSettings(key_prefix=prefix)) for _ in range(2)]
    for rooms in extensions:

        @rooms.ws_route("/ws", room="hall")
        async def chat(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> None:
            await manager.broadcast_to_room("hall", message, exclude=connection)

    with live(smallest_app(extensions[0]), loop) as one, live(smallest_app(extensions[1]), loop) as two:
        async with one.client("/ws") as ann, two.client("/ws") as bob:
            for word in ("hello", "again"):
                await ann.send(word)
                assert await bob.receive() == word
                await bob.send(word)
                assert await ann.receive() == word


async def test_an_app_that_requires_redis_does_not_start_without_it(tracebacks):
    rooms = RoomsExtension(f"redis://:s3cret@127.0.0.1:{free_port()}", required=True)
    app = with_lifespan(rooms)
    with pytest.raises(BackendUnavailable, match=r"cannot be reached.* or start with required=False") as refusal:
        async with app.router.lifespan_context(app):
            pass
    assert "s3cret" not in "".join(traceback.format_exception(refusal.value))
    assert not hasattr(app.state, "rooms")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_app_that_does_not_require_redis_starts_without_it_and_says_so(stage, prefix, caplog):
    rooms = RoomsExtension(f"redis://:s3cret@127.0.0.1:{free_port()}", settings=RoomsSettings(key_prefix=prefix))
    app = with_router(rooms)
    add_probes(app, rooms.manager)
    async with stage.plays(app) as server:
        assert not rooms.manager.status.connected
        await probe(server)
    (record,) = [record for record in caplog.records if "degraded" in record.getMessage()]
    assert record.getMessage().startswith("starting degraded, 127.0.0.1:")
    assert "s3cret" not in caplog.text


# Finding the manager


@WAYS
async def test_mounted_apps_find_the_manager(rooms, stage, attach, tracebacks):
    app, sub_app, nested = attach(rooms), FastAPI(), FastAPI()
    for each in (sub_app, nested):
        add_probes(each, rooms.manager)
    sub_app.mount("/nested", nested)
    app.mount("/sub", sub_app)
    app.mount("/starlette", Starlette(routes=[Mount("/inner", nested)]))
    async with stage.plays(app) as server:
        for prefix in ("/sub", "/sub/nested", "/starlette/inner"):
            await probe(server, prefix)
    assert tracebacks() == []


@pytest.mark.skipif(FASTAPI < (0, 137), reason="this FastAPI leaves mounts out when it includes a router")
@WAYS
async def test_an_app_mounted_on_a_router_finds_the_manager(rooms, stage, attach):
    app, sub_app, router = attach(rooms), FastAPI(), APIRouter()
    add_probes(sub_app, rooms.manager)
    router.mount("/sub", sub_app)
    app.include_router(router)
    app.include_router(router, prefix="/v1")
    async with stage.plays(app) as server:
        await probe(server, "/sub")
        await probe(server, "/v1/sub")


@pytest.mark.parametrize("attach", [with_lifespan, with_router])
async def test_an_app_that_was_mounted_while_the_server_runs_finds_the_manager(rooms, stage, attach):
    app, late = attach(rooms), FastAPI()
    add_probes(late, rooms.manager)
    async with stage.plays(app) as server:
        app.mount("/late", late)
        await probe(server, "/late")


@WAYS
async def test_mounted_apps_join_the_same_rooms(rooms, stage, wire, attach):
    app, sub_app = attach(rooms), FastAPI()

    async def talk(room_id: str, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(room_id, message)

    ws_route(app, "/ws/{room_id}", room="{room_id}")(talk)
    ws_route(sub_app, "/ws/{room_id}", room="{room_id}")(talk)
    app.mount("/sub", sub_app)
    async with (
        stage.plays(app) as server,
        server.client("/ws/hall") as outer,
        server.client("/sub/ws/hall") as inner,
    ):
        await until(lambda: len(rooms.manager.get_room_members("hall")) == 2)
        await inner.send("hello")
        assert await outer.receive() == "hello"
        assert await inner.receive() == "hello"


@pytest.mark.parametrize("inner_first", [False, True])
async def test_a_mounted_app_may_have_an_extension_of_its_own(stage, inner_first, tracebacks):
    """What is mounted in either, and has none, has that of the app around."""
    outer, inner = RoomsExtension(), RoomsExtension()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        pairs = [(outer, app), (inner, sub_app)]
        async with contextlib.AsyncExitStack() as stack:
            for rooms, attached in reversed(pairs) if inner_first else pairs:
                await stack.enter_async_context(rooms.lifespan(attached))
            yield

    app, sub_app, nested, other = FastAPI(lifespan=lifespan), FastAPI(), FastAPI(), FastAPI()
    for each, rooms in ((app, outer), (sub_app, inner), (nested, inner), (other, outer)):
        add_probes(each, rooms.manager)
    sub_app.mount("/nested", nested)
    app.mount("/sub", sub_app)
    app.mount("/other", other)
    async with stage.plays(app) as server:
        for prefix in ("", "/other", "/sub", "/sub/nested"):
            await probe(server, prefix)
    assert tracebacks() == []
    assert not any(hasattr(one.state, "rooms") for one in (app, sub_app, nested, other))


async def test_one_app_has_one_extension(rooms):
    app = FastAPI()
    async with rooms.lifespan(app):
        with pytest.raises(ConfigurationError, match=r"app\.state\.rooms is taken"):
            async with RoomsExtension().lifespan(app):
                pass
        assert app.state.rooms is rooms.manager


async def test_without_an_extension_get_manager_says_how_to_attach_one(stage, tracebacks):
    app = FastAPI()
    add_probes(app, ConnectionManager())
    async with stage.plays(app) as server, server.http() as http:
        assert (await http.get("/http")).status_code == 500
        assert (await refused(server, "/ws")).status_code == 500
    assert len(tracebacks()) == 2
    for said in tracebacks():
        assert "\n    rooms = RoomsExtension()\n    app = FastAPI(lifespan=rooms.lifespan)\n" in said
        for way in ("app.include_router(rooms.router)", "async with rooms.lifespan(app): yield"):
            assert way in said


async def test_something_else_under_the_same_name_is_not_taken_for_a_manager(stage, tracebacks):
    app = FastAPI()
    add_probes(app, ConnectionManager())
    app.state.rooms = ["kitchen", "garden"]
    async with stage.plays(app) as server, server.http() as http:
        assert (await http.get("/http")).status_code == 500
    (said,) = tracebacks()
    assert "this app has no rooms manager" in said


def test_a_test_client_that_does_not_run_the_lifespan_is_told_so(rooms):
    app = with_lifespan(rooms)
    add_probes(app, rooms.manager)
    with pytest.raises(ConfigurationError, match="use `with TestClient"):
        TestClient(app).get("/http")


async def test_the_manager_serves_code_outside_requests(rooms, stage, wire):
    @rooms.ws_route("/ws", room="hall")
    async def session(connection: ConnectionDep) -> None:
        async for _ in connection.messages(str):
            pass

    async def tick() -> None:
        for number in range(3):
            await rooms.manager.broadcast_to_room("hall", number)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await until(lambda: rooms.manager.active_connections)
        await server.call(lambda: asyncio.gather(tick()))
        assert [await client.receive_json() for _ in range(3)] == [0, 1, 2]


# The end


@WAYS
async def test_at_the_end_connections_are_closed_with_1012_and_no_task_is_left(
    rooms, stage, wire, loop, attach, tracebacks
):
    ended = []
    app = attach(rooms)

    @ws_route(app, "/handler", room="hall")
    async def handler(message: Incoming[str]) -> str:
        return message

    @ws_route(app, "/session", room="hall")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await connection.send(message)
        ended.append(connection.is_open)

    @app.websocket("/plain")
    async def plain(websocket: WebSocket) -> None:
        connection = await rooms.manager.connect(websocket, "hall")
        async for message in connection.messages(str):
            await connection.send(message)

    async with stage.plays(app) as server, contextlib.AsyncExitStack() as clients:
        connected = []
        for path in ("/handler", "/session", "/plain"):
            client = await clients.enter_async_context(server.client(path))
            await client.send("hi")
            assert await client.receive() == "hi"
            connected.append(client)
        await server.call(rooms.manager.broadcast, "last words")
        await stage.end_lifespan()
        for client in connected:
            assert await client.receive() == "last words"
            assert await client.closed() == (1012, "")
        assert rooms.manager.active_connections == 0
        assert rooms.manager.active_rooms == []
        await until(lambda: not [name for name in server.tasks() if name.startswith("fastapi_rooms")])
    assert ended == [False]
    assert tracebacks() == []


async def test_a_server_that_stops_closes_with_1012_without_a_traceback(rooms, wire, loop, tracebacks):
    @rooms.ws_route("/ws", room="hall")
    async def handler(message: Incoming[str]) -> str:
        return message

    with live(smallest_app(rooms), loop) as server:
        async with server.client("/ws") as client:
            await client.send("hi")
            assert await client.receive() == "hi"
            stopping = asyncio.ensure_future(asyncio.to_thread(server.stop))
            assert (await client.closed())[0] == 1012
            await stopping
    assert rooms.manager.active_connections == 0
    assert tracebacks() == []


def test_one_app_serves_one_test_client_after_the_other(rooms):
    @rooms.ws_route("/ws/{room_id}", room="{room_id}")
    async def handler(room_id: str, message: Incoming[str]) -> None:
        await rooms.manager.broadcast_to_room(room_id, message)

    app = smallest_app(rooms)
    for _ in range(2):
        with (
            TestClient(app) as client,
            client.websocket_connect("/ws/hall") as alice,
            client.websocket_connect("/ws/hall") as bob,
        ):
            alice.send_text("hello")
            assert alice.receive_text() == "hello"
            assert bob.receive_text() == "hello"
        assert rooms.manager.active_connections == 0


def test_a_test_client_sees_1012_when_the_manager_stops(rooms):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]) -> str:
        return message

    app = smallest_app(rooms)
    with TestClient(app) as client, client.websocket_connect("/ws") as socket:
        socket.send_text("hi")
        assert socket.receive_text() == "hi"
        client.portal.call(rooms.manager.stop)
        assert socket.receive() == {"type": "websocket.close", "code": 1012, "reason": ""}


async def test_after_the_end_the_app_has_no_manager_and_can_start_again(rooms, stage):
    app: Any = with_lifespan(rooms)
    add_probes(app, rooms.manager)
    for _ in range(2):
        async with stage.plays(app) as server:
            await probe(server)
        assert not hasattr(app.state, "rooms")
