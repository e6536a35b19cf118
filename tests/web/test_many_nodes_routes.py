"""Apps on many nodes: what routes and their clients see, also while the others are out of reach."""

import asyncio
import contextlib
import re
import textwrap
from collections.abc import AsyncIterator, Awaitable, Collection

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from stage import refused
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from support import live, until

from fastapi_rooms import (
    BackendUnavailable,
    ConnectionDep,
    ConnectionManager,
    DistributedWebSocketManager,
    Gap,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
    ws_route,
)
from fastapi_rooms.backends.memory import Hub, MemoryBackend
from fastapi_rooms.domain.envelope import EVERYBODY, Target, room_target, user_target
from fastapi_rooms.testing import LocalCluster

UNAVAILABLE = {"type": "error", "code": "unavailable"}


@pytest.fixture
def cluster():
    return LocalCluster()


@pytest.fixture
def rooms(request, cluster):
    """An extension on the first node of the cluster, with the test's `wire`, or the default one."""
    wire = request.getfixturevalue("wire") if "wire" in request.fixturenames else "auto"
    return RoomsExtension(cluster.backends[0], settings=RoomsSettings(wire=wire))


@pytest.fixture
async def other(cluster):
    """The second node, on the loop of the test."""
    manager = DistributedWebSocketManager(cluster.backends[1])
    await manager.start(required=True)
    yield manager
    await manager.stop()


# Reaching others


async def test_clients_hear_other_nodes_from_when_their_handshake_is_answered(rooms, stage, other, wire, loop):
    @rooms.ws_route("/ws/{room}", room="{room}", user_id=lambda user: user)
    async def chat(message: Incoming[str]) -> None: ...

    async with stage.plays(rooms) as server:
        for number in range(20):
            async with server.client(f"/ws/room-{number}?user=user-{number}") as client:
                await other.broadcast_to_room(f"room-{number}", "room")
                await other.send_to_user(f"user-{number}", b"user")
                await other.broadcast({"to": "all"})
                assert [await client.receive(), await client.receive()] == ["room", b"user"]
                assert await client.receive_json() == {"to": "all"}


async def test_routes_get_the_manager_of_many_nodes(rooms, stage, other):
    @rooms.router.get("/http")
    async def http(manager: ManagerDep) -> bool:
        return manager is rooms.manager and isinstance(manager, DistributedWebSocketManager)

    @rooms.ws_route("/ws", room="hall")
    async def ws(message: Incoming[str], manager: ManagerDep) -> bool:
        return manager is rooms.manager

    async with stage.plays(rooms) as server, server.client("/ws") as client, server.http() as http_client:
        assert (await http_client.get("/http")).json() is True
        await client.send("hi")
        assert await client.receive_json() is True
        await other.close_room("hall", 4000, "bye")
        assert await client.closed() == (4000, "bye")


KNOCK = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class HesitantBackend(MemoryBackend):
    """Confirms subscriptions when it is told to."""

    def __init__(self) -> None:
        super().__init__(Hub())
        self.asked = asyncio.Event()
        self.goes_on = asyncio.Event()

    @property
    def wanted(self) -> set[Target]:
        return set(self._wanted)

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        ready = super().subscribe(targets)
        return ready if EVERYBODY in targets else self._confirm()

    async def _confirm(self) -> None:
        self.asked.set()
        await self.goes_on.wait()


async def test_a_client_that_goes_while_its_subscription_is_confirmed_leaves_nothing_behind(stage, loop, tracebacks):
    backend = HesitantBackend()
    rooms = RoomsExtension(backend)

    @rooms.ws_route("/ws", room="hall", user_id=lambda: "ann")
    async def chat(message: Incoming[str]) -> str:
        return message

    async with stage.plays(rooms) as server:
        _, client = await asyncio.open_connection("127.0.0.1", server.port)
        client.write(KNOCK)
        await server.call(backend.asked.wait)
        assert backend.wanted == {EVERYBODY, room_target("hall"), user_target("ann")}
        client.transport.abort()
        await until(lambda: not server.uvicorn.server_state.connections, "the server has seen it")
        await server.call(backend.goes_on.set)
        await until(lambda: backend.wanted == {EVERYBODY})
        assert rooms.manager.active_connections == 0
    assert tracebacks() == []


# While the others are out of reach


async def test_a_message_whose_handler_cannot_reach_the_others_is_answered_and_the_socket_stays(
    rooms, cluster, stage, other, wire, loop, tracebacks
):
    @rooms.ws_route("/ws", room="hall")
    async def chat(message: Incoming[str], manager: ManagerDep, connection: ConnectionDep) -> str:
        await manager.broadcast_to_room("hall", message, exclude=connection)
        return "sent"

    async with stage.plays(rooms) as server, server.client("/ws") as ann, server.client("/ws") as bob:
        cluster.cut(0)
        for number in range(30):
            await ann.send(f"here {number}")
            assert await ann.receive_json() == UNAVAILABLE
            assert await bob.receive() == f"here {number}", "members of this node are served"
        assert rooms.manager.status.undelivered == 30
        assert rooms.manager.stats().dropped["invalid"] == 0
        cluster.restore(0)
        await ann.send("after")
        assert [await ann.receive(), await bob.receive()] == ["sent", "after"]
        await other.broadcast_to_room("hall", "hello again")
        assert await ann.receive() == await bob.receive() == "hello again"
    assert tracebacks() == []


async def test_the_next_messages_are_handled_in_their_order(rooms, cluster, stage):
    @rooms.ws_route("/ws", room="hall")
    async def chat(message: Incoming[int], manager: ManagerDep) -> int:
        if message % 2:
            await asyncio.sleep(0)
            await manager.broadcast_to_room("kitchen", message)
        return message

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        cluster.cut(0)
        for number in range(6):
            await client.send(str(number))
        assert [await client.receive_json() for _ in range(6)] == [0, UNAVAILABLE, 2, UNAVAILABLE, 4, UNAVAILABLE]


async def test_a_handler_may_take_it_into_its_own_hands(rooms, cluster, stage, wire):
    @rooms.ws_route("/ws")
    async def chat(message: Incoming[str], manager: ManagerDep) -> str:
        try:
            await manager.broadcast(message)
        except BackendUnavailable:
            return "only here"
        return "everywhere"

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        cluster.cut(0)
        await client.send("hi")
        assert [await client.receive(), await client.receive()] == ["hi", "only here"]


async def test_a_streamed_answer_that_cannot_reach_the_others_ends_and_the_socket_stays(rooms, cluster, stage, wire):
    cleaned = []

    @rooms.ws_route("/ws")
    async def chat(message: Incoming[str], manager: ManagerDep) -> AsyncIterator[str]:
        try:
            yield f"{message} 1"
            await manager.broadcast_to_room("hall", message)
            yield f"{message} 2"
        finally:
            cleaned.append(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        cluster.cut(0)
        await client.send("a")
        assert await client.receive() == "a 1"
        assert await client.receive_json() == UNAVAILABLE
        cluster.restore(0)
        await client.send("b")
        assert [await client.receive(), await client.receive()] == ["b 1", "b 2"]
        await until(lambda: cleaned == ["a", "b"])


async def test_a_client_that_has_gone_meanwhile_is_not_answered(rooms, cluster, stage, other, tracebacks):
    @rooms.ws_route("/ws", room="hall")
    async def leave(message: Incoming[str], manager: ManagerDep, connection: ConnectionDep) -> None:
        await manager.close(connection, 4000)
        await manager.broadcast("somebody left")

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        cluster.cut(0)
        await client.send("bye")
        assert await client.closed() == (4000, "")
    assert tracebacks() == []


async def test_a_session_that_cannot_reach_the_others_ends_as_with_any_error(
    rooms, cluster, stage, wire, loop, tracebacks
):
    """There is no message to answer: whether the session goes on without the others is for its handler to decide."""

    @rooms.ws_route("/ws", room="hall")
    async def session(connection: ConnectionDep, manager: ManagerDep) -> None:
        async for message in connection.messages(str):
            await manager.broadcast_to_room("hall", message)

    async with stage.plays(rooms) as server, server.client("/ws") as ann, server.client("/ws") as bob:
        cluster.cut(0)
        await ann.send("hi")
        assert await ann.receive() == await bob.receive() == "hi", "members of this node are served"
        assert await ann.closed() == (1011, "")
        assert rooms.manager.active_connections == 1
    (traceback,) = tracebacks()
    assert "BackendUnavailable: other nodes were not told" in traceback


async def test_a_session_may_go_on_without_the_others(rooms, cluster, stage):
    @rooms.ws_route("/ws", room="hall")
    async def session(connection: ConnectionDep, manager: ManagerDep) -> None:
        async for message in connection.messages(str):
            with contextlib.suppress(BackendUnavailable):
                await manager.broadcast_to_room("hall", message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        cluster.cut(0)
        for word in ("one", "two"):
            await client.send(word)
            assert await client.receive() == word


async def test_a_streamed_session_that_cannot_reach_the_others_ends_behind_what_it_sent(
    rooms, cluster, stage, wire, tracebacks
):
    @rooms.ws_route("/ws")
    async def stream(manager: ManagerDep) -> AsyncIterator[int]:
        for number in range(3):
            yield number
        await manager.broadcast_to_room("hall", "over")

    async with stage.plays(rooms) as server:
        cluster.cut(0)
        async with server.client("/ws") as client:
            assert [await client.receive_json() for _ in range(3)] == [0, 1, 2]
            assert await client.closed() == (1011, "")
    assert len(tracebacks()) == 1


async def test_an_exception_handler_of_the_app_takes_what_escapes_from_a_session(rooms, cluster, stage, tracebacks):
    taken = []

    @rooms.ws_route("/ws")
    async def session(connection: ConnectionDep, manager: ManagerDep) -> None:
        async for message in connection.messages(str):
            await manager.broadcast_to_room("hall", message)

    app = FastAPI()
    app.include_router(rooms.router)

    @app.exception_handler(BackendUnavailable)
    async def take(connection: Request | WebSocket, error: BackendUnavailable) -> None:
        taken.append(isinstance(connection, WebSocket))

    async with stage.plays(app) as server, server.client("/ws") as client:
        cluster.cut(0)
        await client.send("hi")
        assert await client.closed() == (1011, "")
    assert taken == [True]
    assert tracebacks() == []


async def test_an_http_route_decides_what_its_clients_see(rooms, cluster, stage, other):
    @rooms.router.post("/announce")
    async def announce(text: str, manager: ManagerDep) -> int:
        try:
            return await manager.broadcast(text)
        except BackendUnavailable as error:
            raise HTTPException(503, "try again later") from error

    @rooms.router.post("/careless")
    async def careless(manager: ManagerDep) -> int:
        return await manager.broadcast("hi")

    app = FastAPI()
    app.include_router(rooms.router)

    @app.exception_handler(BackendUnavailable)
    async def take(request: Request, error: BackendUnavailable) -> JSONResponse:
        return JSONResponse({"detail": "others are out of reach"}, 503)

    async with stage.plays(app) as server, server.http() as http:
        assert (await http.post("/announce", params={"text": "hi"})).json() == 0
        cluster.cut(0)
        answer = await http.post("/announce", params={"text": "hi"})
        assert (answer.status_code, answer.json()) == (503, {"detail": "try again later"})
        answer = await http.post("/careless")
        assert (answer.status_code, answer.json()) == (503, {"detail": "others are out of reach"})


async def test_if_failures_are_logged_clients_see_nothing_of_them(cluster, stage, wire, caplog):
    rooms = RoomsExtension(cluster.backends[0], settings=RoomsSettings(wire=wire, publish_failure="log"))

    @rooms.ws_route("/ws", room="hall")
    async def chat(message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room("hall", message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        cluster.cut(0)
        for word in ("one", "two"):
            await client.send(word)
            assert await client.receive() == word
        await until(lambda: rooms.manager.status.undelivered == 2)
    assert [record.getMessage() for record in caplog.records if "other nodes" in record.getMessage()] == [
        "other nodes were not told: this node is cut off (1 so far, said once a minute)"
    ]


# Start and end


async def test_an_app_starts_degraded_and_connects_when_it_can(rooms, cluster, stage, other):
    @rooms.ws_route("/ws", room="hall")
    async def chat(message: Incoming[str]) -> str:
        return message

    cluster.cut(0)
    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("hello?")
        assert await client.receive() == "hello?"
        await other.broadcast_to_room("hall", "missed")
        cluster.restore(0)
        await other.broadcast_to_room("hall", "heard")
        assert await client.receive() == "heard"


async def test_an_app_that_requires_the_others_does_not_start_without_them_and_leaves_nothing_behind(cluster):
    rooms = RoomsExtension(cluster.backends[0], required=True)
    app = FastAPI(lifespan=rooms.lifespan)
    cluster.cut(0)
    with pytest.raises(BackendUnavailable, match="required=False"):
        async with app.router.lifespan_context(app):
            pass
    assert not hasattr(app.state, "rooms")
    assert asyncio.all_tasks() == {asyncio.current_task()}
    cluster.restore(0)
    async with app.router.lifespan_context(app):
        assert app.state.rooms is rooms.manager
        assert rooms.manager.status.connected


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_app_is_told_about_a_gap_on_its_own_loop(cluster, stage, is_async, loop):
    told: list[tuple[Gap, asyncio.AbstractEventLoop]] = []

    def tell(gap: Gap) -> None:
        told.append((gap, asyncio.get_running_loop()))

    async def tell_later(gap: Gap) -> None:
        await asyncio.sleep(0)
        tell(gap)

    rooms = RoomsExtension(cluster.backends[0], on_gap=tell_later if is_async else tell)

    @rooms.ws_route("/ws", room="hall", user_id=lambda: "ann")
    async def chat(message: Incoming[str]) -> None: ...

    async with stage.plays(rooms) as server, server.client("/ws"):
        cluster.cut(0)
        cluster.restore(0)
        await until(lambda: told)
        ((gap, where),) = told
        assert (gap.rooms, gap.users, gap.everybody) == ({"hall"}, {"ann"}, True)
        assert where is server.loop


async def test_at_the_end_clients_are_closed_with_1012_and_the_node_listens_to_nobody(
    rooms, cluster, stage, other, wire, loop, tracebacks
):
    @rooms.ws_route("/ws", room="hall")
    async def chat(message: Incoming[str]) -> str:
        return message

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await other.broadcast_to_room("hall", "last words")
        assert await client.receive() == "last words"
        await stage.end_lifespan()
        assert await client.closed() == (1012, "")
        assert not rooms.manager.status.connected
        assert repr(cluster) == "<LocalCluster nodes=2 connected=1>"
        assert not [name for name in server.tasks() if name.startswith("fastapi_rooms")]
    assert tracebacks() == []


async def test_an_extension_shows_counts_and_no_secrets():
    extension = RoomsExtension("redis://ann:hunter2@localhost:1/0")
    node = extension.manager.node_id[:8]
    assert repr(extension) == (
        f"<RoomsExtension <DistributedWebSocketManager connections=0 rooms=0 degraded node={node}>>"
    )


def test_settings_reach_the_manager_of_many_nodes(cluster):
    settings = RoomsSettings(outbox_messages=7)
    rooms = RoomsExtension(cluster.backends[0], settings=settings)
    assert rooms.manager.settings is settings


# Without the extension, and without FastAPI


async def chat_with(manager: ConnectionManager, websocket: WebSocket) -> None:
    connection = await manager.connect(websocket, "hall")
    try:
        async for message in connection.messages(str):
            await manager.broadcast_to_room("hall", message, exclude=connection)
    finally:
        manager.disconnect(connection)


async def talk(server, other: DistributedWebSocketManager) -> None:
    async with server.client("/ws") as ann, server.client("/ws") as bob:
        await ann.send("hi")
        assert await bob.receive() == "hi"
        await other.broadcast_to_room("hall", "from elsewhere")
        assert await ann.receive() == await bob.receive() == "from elsewhere"


async def test_a_manager_works_with_the_deprecated_hooks(cluster, other):
    manager = DistributedWebSocketManager(cluster.backends[0])
    app = FastAPI()
    for event, hook in (("startup", manager.start), ("shutdown", manager.stop)):
        with pytest.warns(DeprecationWarning, match="on_event"):
            app.on_event(event)(hook)

    @app.websocket("/ws")
    async def chat(websocket: WebSocket) -> None:
        await chat_with(manager, websocket)

    for _ in range(2):
        with live(app) as server:
            await talk(server, other)
        assert not manager.status.connected


async def test_a_manager_works_without_fastapi(cluster, other):
    manager = DistributedWebSocketManager(cluster.backends[0])

    async def chat(websocket: WebSocket) -> None:
        await chat_with(manager, websocket)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        await manager.start(required=True)
        yield
        await manager.stop()

    with live(Starlette(routes=[WebSocketRoute("/ws", chat)], lifespan=lifespan)) as server:
        await talk(server, other)
    assert not manager.status.connected


async def test_before_the_start_a_client_is_refused_and_the_operator_told_what_to_do(cluster, tracebacks):
    manager = DistributedWebSocketManager(cluster.backends[0])
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(websocket: WebSocket) -> None:
        await chat_with(manager, websocket)

    with live(app) as server:
        assert (await refused(server, "/ws")).status_code == 500
    assert any("`await manager.start()` when the app starts" in traceback for traceback in tracebacks())


# Users' own tests


def test_the_example_of_the_local_cluster_runs_as_it_stands_there():
    example = re.search(r"```python\n(.*?)```", LocalCluster.__doc__, re.DOTALL)[1]

    def make_app(rooms: RoomsExtension) -> FastAPI:
        @rooms.ws_route("/ws/{room}", room="{room}")
        async def chat(room: str, message: Incoming[str], connection: ConnectionDep) -> None:
            await rooms.manager.broadcast_to_room(room, message, exclude=connection)

        app = FastAPI()
        app.include_router(rooms.router)
        return app

    names = {"LocalCluster": LocalCluster, "RoomsExtension": RoomsExtension, "TestClient": TestClient}
    exec(textwrap.dedent(example), {**names, "make_app": make_app})


def test_http_and_websocket_routes_of_two_test_clients_reach_each_other(cluster):
    def make_app(backend: MemoryBackend) -> FastAPI:
        rooms = RoomsExtension(backend, required=True)
        app = FastAPI(lifespan=rooms.lifespan)

        @ws_route(app, "/ws", room="hall", user_id=lambda: "ann")
        async def chat(message: Incoming[str]) -> str:
            return message

        @app.post("/announce")
        async def announce(text: str, manager: ManagerDep) -> int:
            return await manager.broadcast(text)

        @app.post("/ban")
        async def ban(manager: ManagerDep) -> int:
            return await manager.close_user("ann", 4003, "banned")

        return app

    apps = [make_app(backend) for backend in cluster]
    for _ in range(2):
        with (
            TestClient(apps[0]) as one,
            TestClient(apps[1]) as two,
            one.websocket_connect("/ws") as here,
            two.websocket_connect("/ws") as there,
        ):
            assert one.post("/announce", params={"text": "news"}).json() == 1
            assert here.receive_text() == there.receive_text() == "news"
            assert two.post("/ban").json() == 1
            for socket in (here, there):
                assert socket.receive() == {"type": "websocket.close", "code": 4003, "reason": "banned"}
