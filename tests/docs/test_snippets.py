"""Each snippet of the docs does on a real server what its page says."""

import asyncio
import contextlib
import gc
import importlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from brokers.server import Broker
from fastapi import FastAPI, WebSocket
from live_server import live_server
from support import http_client, until
from type_checker import SECONDS, check_types
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fastapi_rooms import DistributedWebSocketManager, RoomsExtension, RoomsSettings

SNIPPETS = Path(__file__).parents[2] / "docs" / "snippets"
DEADLINE = 5.0


class Site:
    """A snippet that is being served."""

    def __init__(self, address: str, http: httpx.AsyncClient) -> None:
        self.http = http
        self._address = address

    def connect(self, path: str, headers: dict[str, str] | None = None, **options: Any) -> connect:
        return connect(f"ws://{self._address}{path}", additional_headers=headers, **options)


@asynccontextmanager
async def served(module: str) -> AsyncIterator[Site]:
    app = importlib.import_module(module).app
    with live_server(app) as address:
        async with http_client(f"http://{address}") as http:
            yield Site(address, http)


async def receive(client: ClientConnection) -> str | bytes:
    return await asyncio.wait_for(client.recv(), DEADLINE)


async def receive_json(client: ClientConnection) -> Any:
    return json.loads(await receive(client))


async def send_json(client: ClientConnection, message: Any) -> None:
    await client.send(json.dumps(message))


async def close_code(client: ClientConnection) -> int | None:
    try:
        async with asyncio.timeout(DEADLINE):
            while True:
                await client.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


async def refusal(connecting: connect) -> int:
    with pytest.raises(InvalidStatus) as refused:
        await connecting
    return refused.value.response.status_code


async def log_in(site: Site, name: str) -> dict[str, str]:
    response = await site.http.post("/login", params={"name": name})
    site.http.cookies.clear()
    return {"Cookie": f"session={response.cookies['session']}"}


async def test_first() -> None:
    async with served("first") as site:
        page = await site.http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "new WebSocket" in page.text
        async with site.connect("/ws/lobby") as ann, site.connect("/ws/lobby") as bob, site.connect("/ws/x") as other:
            await send_json(ann, {"name": "Ann", "text": "hello"})
            assert await receive_json(ann) == {"name": "Ann", "text": "hello"}
            assert await receive_json(bob) == {"name": "Ann", "text": "hello"}
            await send_json(other, {"text": "no name"})
            error = await receive_json(other)
            assert (error["type"], error["code"]) == ("error", "invalid_message")
            assert error["errors"] == [{"type": "missing", "loc": ["name"], "msg": "Field required"}]


async def test_quickstart_identity() -> None:
    async with served("quickstart") as site:
        assert await refusal(site.connect("/ws/lobby")) == 401
        async with site.connect("/ws/lobby", await log_in(site, "Ann")):
            assert (await site.http.get("/rooms/lobby")).json() == ["Ann"]

        async def is_empty() -> bool:
            return (await site.http.get("/rooms/lobby")).json() == []

        await until(is_empty)


async def test_quickstart_messages() -> None:
    async with served("quickstart") as site:
        ann, bob = await log_in(site, "Ann"), await log_in(site, "Bob")
        async with (
            site.connect("/ws/lobby", ann) as ann1,
            site.connect("/ws/lobby", bob) as bob1,
            site.connect("/ws/kitchen", bob) as bob2,
        ):
            await send_json(ann1, {"type": "say", "text": "hello"})
            for client in (ann1, bob1):
                assert await receive_json(client) == {"type": "said", "name": "Ann", "text": "hello"}
            await send_json(ann1, {"type": "whisper", "to": "Bob", "text": "psst"})
            for client in (ann1, bob1, bob2):
                assert await receive_json(client) == {"type": "whispered", "name": "Ann", "text": "psst"}
            assert (await site.http.post("/announce", json={"text": "tea"})).json() == 3
            for client in (ann1, bob1, bob2):
                assert await receive_json(client) == {"type": "announced", "text": "tea"}


async def test_quickstart_validation() -> None:
    async with served("quickstart") as site, site.connect("/ws/lobby", await log_in(site, "Ann")) as ann:
        await send_json(ann, {"type": "say", "text": ""})
        assert await receive_json(ann) == {
            "type": "error",
            "code": "invalid_message",
            "errors": [
                {
                    "type": "string_too_short",
                    "loc": ["say", "text"],
                    "msg": "String should have at least 1 character",
                }
            ],
        }
        await send_json(ann, {"type": "say", "text": "still here"})
        assert (await receive_json(ann))["text"] == "still here"
        for _ in range(10):
            await ann.send("not JSON")
        assert await close_code(ann) == 1007


async def test_quickstart_stream() -> None:
    async with served("quickstart") as site, site.connect("/ask", await log_in(site, "Ann")) as ann:
        await send_json(ann, {"question": "why?"})
        assert [await receive(ann) for _ in range(3)] == ["You", "asked:", "why?"]


def test_testing_page() -> None:
    # As in a user's project: without our settings, by which a warning of TestClient's about its own age is an error.
    alone = ("-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *alone, "quickstart_live.py", "quickstart_client.py"],
        cwd=SNIPPETS,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "4 passed" in run.stdout


async def test_handlers_per_message() -> None:
    async with served("handlers") as site:
        async with site.connect("/boards/7") as one, site.connect("/boards/7") as other:
            await send_json(one, {"x": 1, "y": 2})
            moved = await receive_json(other)
            assert (moved["x"], moved["y"], len(moved["by"])) == (1, 2, 32)
            await send_json(other, {"x": 3, "y": 4})
            assert (await receive_json(one))["x"] == 3  # and not its own move before it
        async with site.connect("/length") as client:
            await client.send("four")
            assert await receive_json(client) == {"characters": 4}
            await client.send(b"four")
            assert (await receive_json(client))["errors"][0]["type"] == "frame_type"
        async with site.connect("/reverse") as client:
            await client.send(b"abc")
            assert await receive(client) == b"cba"


async def test_handlers_session() -> None:
    async with served("handlers") as site, site.connect("/rooms/r") as one:
        async with site.connect("/rooms/r") as other:
            assert (await receive_json(one))["type"] == "came"
            await send_json(other, {"text": "hi"})
            assert (await receive_json(one))["text"] == "hi"
            assert (await receive_json(other))["text"] == "hi"
            await send_json(other, {"text": "/quit"})
            assert await close_code(other) == 1000
        assert (await receive_json(one))["type"] == "went"


async def test_handlers_push_and_stream() -> None:
    async with served("handlers") as site:
        async with site.connect("/clock") as client:
            assert await receive_json(client) == {"tick": 0}
        async with site.connect("/jobs") as client:
            await send_json(client, {"steps": 2})
            assert [await receive_json(client) for _ in range(3)] == [
                {"type": "progress", "step": 1},
                {"type": "progress", "step": 2},
                {"type": "done"},
            ]
        async with site.connect("/lag") as client:
            await send_json(client, {"type": "ping", "sent_at": 1.5})
            assert await receive_json(client) == {"type": "pong", "sent_at": 1.5}
        async with site.connect("/length") as client:
            await client.send('{"type":"ping"}')  # `str` claims every text frame, also a ping
            assert await receive_json(client) == {"characters": 15}
        async with site.connect("/jobs") as client:
            await client.send('{"type":"ping"}')
            assert await receive_json(client) == {"type": "pong"}


async def test_handlers_errors(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app")
    async with served("handlers") as site:
        async with site.connect("/orders") as client:
            await send_json(client, {"item": "tea"})
            assert await receive_json(client) == {"ordered": "tea"}
            await send_json(client, {"item": "nothing"})
            assert await close_code(client) == 4404
        async with site.connect("/orders") as client:
            await send_json(client, {"item": "unicorn"})
            assert await close_code(client) == 1011
    assert "out of stock: /orders" in caplog.messages


async def test_sending_targets() -> None:
    async with served("sending") as site:
        ann, bob = {"X-Name": "Ann"}, {"X-Name": "Bob"}
        async with (
            site.connect("/ws/a", ann) as ann1,
            site.connect("/ws/b", ann) as ann2,
            site.connect("/ws/a", bob) as bob1,
        ):
            await ann1.send("go")
            assert [await receive(ann1) for _ in range(5)] == [
                "to this connection",
                "the same, through the manager",
                "to every connection of Ann",
                "to everybody in the room",
                "to everybody",
            ]
            assert [await receive(ann2) for _ in range(2)] == ["to every connection of Ann", "to everybody"]
            assert [await receive(bob1) for _ in range(3)] == [
                "to everybody in the room",
                "to the others",
                "to everybody",
            ]


async def test_sending_types() -> None:
    async with served("sending") as site, site.connect("/ws/a", {"X-Name": "Ann"}) as client:
        assert (await site.http.post("/readings/a", params={"celsius": 21.5})).json() == 1
        reading = await receive_json(client)
        assert set(reading) == {"sensor", "taken_at", "celsius"}
        assert reading["taken_at"].endswith("Z")
        assert (await site.http.post("/stored/a")).json() == 1
        assert await receive(client) == '{"from": "a cache"}'
        assert (await site.http.post("/stored/nobody")).json() == 0
        assert (await site.http.post("/unsendable/a")).json().startswith("nobody was sent anything: dict cannot be")
        assert (await site.http.post("/rooms/a/close")).json() == 1
        assert await receive(client) == "this room closes now"
        assert await close_code(client) == 4000


async def test_sending_users() -> None:
    async with (
        served("sending") as site,
        site.connect("/ws/hall", {"X-Name": "Ann"}) as ann,
        site.connect("/ws/kitchen", {"X-Name": "Bob"}) as bob,
    ):
        assert (await site.http.put("/rooms/kitchen/users/Ann")).json() == 1
        await bob.send("go")
        received = [await receive(ann) for _ in range(4)]
        assert received[1:] == ["to everybody in the room", "to the others", "to everybody"]
        assert (await site.http.delete("/rooms/kitchen/users/Ann")).json() == 1
        assert [await receive(bob) for _ in range(5)][-1] == "Ann has to go"
        await bob.send("go")
        assert await receive(ann) == "to every connection of Ann"
        assert await receive(ann) == "to everybody"


async def test_sending_reply() -> None:
    async with served("sending") as site, site.connect("/ws/a", {"X-Name": "Ann"}) as ann:
        module = sys.modules["sending"]
        (connection,) = module.rooms.manager.get_user_connections("Ann")
        async with site.connect("/whispers") as client:
            await send_json(client, {"to": connection.connection_id, "text": "psst"})
            assert await receive(ann) == "psst"
            await send_json(client, {"to": "Ann", "text": "psst"})
            assert await receive(client) == "nobody there"


async def test_limits_of_a_route() -> None:
    async with (
        served("limits_of_a_route") as site,
        site.connect("/chat/a") as chat,
        site.connect("/prices") as prices,
    ):
        await chat.send("hello")
        assert await receive(chat) == "hello"
        rooms = sys.modules["limits_of_a_route"].rooms
        [watching] = rooms.manager.get_room_members("prices")
        [talking] = rooms.manager.get_room_members("a")
        assert (watching._outbox.settings.overflow, talking._outbox.settings.overflow) == ("drop_oldest", "close")
        for _ in range(1_002):
            await prices.send("quiet")
        assert await receive_json(prices) == {"type": "error", "code": "rate_limited"}


async def test_background() -> None:
    async with served("background") as site, site.connect("/prices") as client:
        first = (await receive_json(client))["price"]
        assert (await receive_json(client))["price"] == first + 1


async def test_background_goes_on_while_redis_is_away(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RoomsSettings(publish_timeout=0.3, probe_interval=0.1)
    on_many_nodes = partial(RoomsExtension, broker.url, settings=settings, required=True)
    monkeypatch.setattr("fastapi_rooms.RoomsExtension", on_many_nodes)
    monkeypatch.delitem(sys.modules, "background", raising=False)
    async with served("background") as site:
        monkeypatch.delitem(sys.modules, "background")
        async with site.connect("/prices") as client:
            first = (await receive_json(client))["price"]
            broker.kill()
            for price in range(first + 1, first + 20):
                assert (await receive_json(client))["price"] == price
            async with site.connect("/prices") as late:
                assert (await receive_json(late))["price"] > price
            broker.start()
            assert (await receive_json(client))["price"] == price + 1


async def test_identity() -> None:
    async with served("identity") as site:
        assert await refusal(site.connect("/cookie")) == 401
        assert await refusal(site.connect("/header")) == 401
        assert await refusal(site.connect("/header", {"Authorization": "Bearer guess"})) == 401
        cookie = {"Cookie": "session=c2VjcmV0"}
        async with site.connect("/cookie", cookie) as client:
            await client.send("hi")
            assert await receive(client) == "ann said hi"
        async with site.connect("/header", {"Authorization": "Bearer t0k3n"}) as client:
            await client.send("hi")
            assert await receive(client) == "robot-7 said hi"
        assert await refusal(site.connect("/private/board", cookie)) == 403
        async with site.connect("/private/staff", cookie) as client:
            await client.send("where am I?")
            assert await receive_json(client) == ["private:staff"]
        assert await refusal(site.connect("/expiring")) == 401
        async with site.connect("/expiring", cookie) as client:
            await send_json(client, {"type": "renew", "token": "c2VjcmV0"})
            assert (await receive(client)).startswith("until ")
        async with site.connect("/rooms", cookie) as client:
            await send_json(client, {"type": "enter", "room": "board"})
            assert await receive_json(client) == {"type": "error", "code": "join_refused", "room": "board"}
            await send_json(client, {"type": "enter", "room": "staff"})
            assert await receive(client) == "you are in staff"


async def test_http_origins() -> None:
    async with served("http_origins") as site:
        assert await refusal(site.connect("/ws", origin="https://elsewhere.example")) == 403
        async with site.connect("/ws", origin="https://chat.example") as client:
            await client.send("hi")
            assert await receive(client) == "hi"


async def test_many_clients_at_once() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    try:
        async with served("many_at_once") as site, site.connect("/ws") as ann:
            await ann.send("hi")
            assert await receive(ann) == "hi"
            assert gc.get_threshold() == (10_000, 50, 10)
            assert gc.get_freeze_count() > before[1]
    finally:
        gc.set_threshold(*before[0])
        gc.unfreeze()


async def test_limits_that_count_on_all_nodes() -> None:
    async with served("limits_everywhere") as site:
        async with site.connect("/ws", {"X-Name": "ann"}) as ann:
            for _ in range(5):
                await ann.send("hi")
                assert await receive(ann) == "hi"
            await ann.send("hi")
            assert await receive_json(ann) == {"type": "error", "code": "rate_limited"}
        for _ in range(2):
            async with site.connect("/ws", {"X-Name": "ann"}):
                pass
        assert await refusal(site.connect("/ws", {"X-Name": "ann"})) == 429
        async with site.connect("/ws", {"X-Name": "bob"}):
            pass


async def test_operations() -> None:
    async with served("operations") as site:
        async with site.connect("/ws"):
            assert (await site.http.get("/internal/rooms")).json()["connections"] == 1
        assert await refusal(site.connect("/ws", origin="https://elsewhere.example")) == 403

        async def is_told() -> bool:
            return (await site.http.get("/internal/rooms")).json()["connections"] == 0

        await until(is_told)
        numbers = (await site.http.get("/internal/rooms")).json()
        assert (numbers["refused"]["http_origin"], numbers["refused"]["join"]) == (1, 0)
        journal = importlib.import_module("operations").journal
        async with asyncio.timeout(DEADLINE):
            while len(journal) < 3:
                await asyncio.sleep(0.005)
        assert sorted(journal) == ["None came", "None left: 1000 0 s", "refused: http_origin"]


async def test_two_extensions() -> None:
    module = importlib.import_module("two_extensions")
    async with served("two_extensions") as site, site.connect("/ws") as ann, site.connect("/partners/ws") as bob:
        await ann.send("hello")
        assert await receive(ann) == "hello"
        await bob.send("hi")
        assert await receive(bob) == "partners: hi", "the other room of that name is another room"
        assert [one.manager.active_connections for one in (module.rooms, module.partners)] == [1, 1]
    assert [one.is_attached for one in (module.rooms, module.partners)] == [False, False]


async def test_health_and_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAIN_TOKEN", "secret")
    async with served("health_and_drain") as site:
        assert (await site.http.get("/health/live")).status_code == 200
        assert (await site.http.get("/health/ready")).status_code == 200
        async with site.connect("/ws/lobby") as ann:
            await ann.send("hello")
            assert await receive(ann) == "hello"
            for headers, status in (({}, 422), ({"token": "guessed"}, 403)):
                assert (await site.http.post("/drain", headers=headers)).status_code == status
            assert (await site.http.get("/health/ready")).json()["ready"] is True
            drained = await site.http.post("/drain", headers={"token": "secret"})
            assert drained.status_code == 200
            assert await close_code(ann) == 1012
        assert (await site.http.get("/health/ready")).status_code == 503
        assert await refusal(site.connect("/ws/lobby")) == 503


async def test_settings() -> None:
    async with served("settings") as site, site.connect("/ws/a"):
        stats = (await site.http.get("/stats")).json()
        assert stats == {"connections": 1, "lost": 0, "slow_consumers": 0, "stalled": 0}


async def test_settings_from_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "ROOMS_SEND_TIMEOUT", "2.5")
    async with served("settings_from_env") as site:
        assert (await site.http.get("/send-timeout")).json() == 2.5


@pytest.mark.parametrize("module", ["migrating_before", "migrating_manager", "migrating_route"])
async def test_migrating_keeps_what_the_clients_see(module: str) -> None:
    async with served(module) as site, site.connect("/ws/ann") as ann:
        async with site.connect("/ws/bob") as bob:
            await bob.send("hello")
            assert await receive(ann) == await receive(bob) == "bob: hello"
        assert await receive(ann) == "bob left"


@pytest.mark.parametrize("module", ["migrating_manager", "migrating_route"])
async def test_a_client_that_stops_reading_stops_nobody(module: str) -> None:
    stops_reading = {"max_queue": 1, "compression": None}  # once it has two messages that nobody takes
    async with (
        served(module) as site,
        site.connect("/ws/stuck", **stops_reading) as stuck,
        site.connect("/ws/ann") as ann,
        site.connect("/ws/bob") as bob,
    ):
        for _ in range(100):
            await ann.send("x" * 60_000)
            for client in (ann, bob):
                heard = await receive(client)
                assert (await receive(client) if heard == "stuck left" else heard) == "ann: " + "x" * 60_000
        assert await close_code(stuck) == 1013


@asynccontextmanager
async def two_nodes(module: str, url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Site, Site]]:
    """Serve a snippet twice, as two processes would: each with a module of its own, and the same Redis."""
    monkeypatch.setenv("REDIS_URL", url)
    async with AsyncExitStack() as ends:
        sites = []
        for _ in range(2):
            sys.modules.pop(module, None)
            sites.append(await ends.enter_async_context(served(module)))
        yield sites[0], sites[1]
        sys.modules.pop(module)


async def test_many_nodes_start_and_status(shared_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        two_nodes("many_nodes", shared_broker.url, monkeypatch) as (here, there),
        here.connect("/ws/kitchen") as ann,
        there.connect("/ws/kitchen") as bob,
    ):
        await ann.send("hello")
        assert await receive(ann) == await receive(bob) == "hello"
        assert (await here.http.post("/announce", json={"text": "tea"})).json() == {"everywhere": True}
        assert await receive(ann) == await receive(bob) == "tea"
        one, two = [(await site.http.get("/status")).json() for site in (here, there)]
        assert one["node"] != two["node"]
        assert all(status["connected"] and status["degraded_since"] is None for status in (one, two))


async def test_many_nodes_errors(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        two_nodes("many_nodes", broker.url, monkeypatch) as (here, there),
        here.connect("/ws/kitchen", max_queue=None) as ann,  # nobody reads how often it was tried
        there.connect("/ws/kitchen", max_queue=None) as bob,
    ):
        broker.kill()

        async def both_know() -> bool:
            return not any([(await site.http.get("/status")).json()["connected"] for site in (here, there)])

        await until(both_know)
        assert (await here.http.post("/announce", json={"text": "tea"})).json() == {"everywhere": False}
        assert await receive(ann) == "tea"
        await bob.send("hello")
        assert await receive(bob) == "hello"
        assert await receive_json(bob) == {"type": "error", "code": "unavailable"}
        broker.start()

        async def is_back() -> bool:
            return (await here.http.post("/announce", json={"text": "back"})).json()["everywhere"]

        await until(is_back)


async def test_many_nodes_gap(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        two_nodes("many_nodes_gap", broker.url, monkeypatch) as (here, there),
        here.connect("/ws/kitchen") as ann,
        there.connect("/ws/kitchen") as bob,
    ):
        assert broker.kill_listeners() == 2
        for client in (ann, bob):
            assert (await receive_json(client))["type"] == "reload"


def run_snippet(name: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, name],
        cwd=SNIPPETS,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


async def test_publishers_and_a_manager_without_an_app(shared_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", shared_broker.url)
    manager = DistributedWebSocketManager(shared_broker.url)  # as the nodes of an app have one
    app = FastAPI()

    @app.websocket("/ws/{room}")
    async def listen(websocket: WebSocket, room: str) -> None:
        connection = await manager.connect(websocket, room, user_id="ann")
        async for _ in connection.messages(str):
            pass
        manager.disconnect(connection)

    app.router.lifespan_context = lambda _: started(manager)
    with live_server(app) as address:
        async with (
            connect(f"ws://{address}/ws/kitchen") as kitchen,
            connect(f"ws://{address}/ws/reports") as reports,
        ):
            run = await asyncio.to_thread(run_snippet, "many_nodes_plain.py")
            assert run.returncode == 0, run.stderr
            assert await receive(kitchen) == "dinner is ready"
            run = await asyncio.to_thread(run_snippet, "publish_report.py")
            assert run.returncode == 0, run.stderr
            assert [(await receive_json(reports))["done"] for _ in range(3)] == [1, 2, 3]
            worker = importlib.import_module("publish_worker")
            await asyncio.to_thread(worker.pay_invoice, "ann", 7)
            worker.publisher.close()
            for client in (kitchen, reports):
                assert await receive_json(client) == {"type": "paid", "invoice": 7}


@asynccontextmanager
async def started(manager: DistributedWebSocketManager) -> AsyncIterator[None]:
    await manager.start(required=True)
    yield
    await manager.stop()


async def test_a_report_without_redis_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}"
    run = await asyncio.to_thread(run_snippet, "publish_report.py", REDIS_URL=url)
    assert run.returncode == 1
    assert run.stderr.startswith("the report is ready, but nobody was told: ")


async def test_a_ready_client_with_the_rights_that_the_page_gives_it(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (SNIPPETS.parent / "guides" / "many-nodes.md").read_text()
    for command in re.findall("^ *(ACL SETUSER .*)$", page, re.MULTILINE):
        broker.call(*command.replace(">a-long-random-password", ">secret").split())
    for name, value in (("HOST", "127.0.0.1"), ("PORT", str(broker.port)), ("PASSWORD", "secret")):
        monkeypatch.setenv(f"REDIS_{name}", value)
    async with two_nodes("ready_client", broker.url, monkeypatch) as (here, _):
        assert (await here.http.post("/announce", params={"text": "tea"})).json() == 0
    refused = {dict(zip(entry[::2], entry[1::2], strict=True))["object"] for entry in broker.call("ACL", "LOG")}
    assert refused <= {"client|setinfo"}, "something that it needs was refused"


async def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        async with connect(url) as client:
            await client.send("hello")
            return await receive(client) == "hello"
    return False


async def test_metrics_to_the_last_numbers() -> None:
    # In a process of its own: a meter provider is set once, for good.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "metrics:app", "--port", str(port), "--log-level", "warning"],
        cwd=SNIPPETS,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        async with asyncio.timeout(20):
            while not await answers(f"ws://127.0.0.1:{port}/ws/kitchen"):
                await asyncio.sleep(0.05)
    finally:
        process.terminate()
        exported, _ = await asyncio.to_thread(process.communicate, timeout=20)
    last = exported[exported.rindex("\n{\n") + 1 :] if "\n{\n" in exported else exported
    (resource,) = json.loads(last)["resource_metrics"]
    (scope,) = [one for one in resource["scope_metrics"] if one["scope"]["name"] == "fastapi_rooms"]
    values = {metric["name"]: metric["data"]["data_points"][0] for metric in scope["metrics"]}
    assert values["fastapi_rooms.sent.messages"]["value"] == 1
    assert values["fastapi_rooms.connections"]["value"] == 0
    assert values["fastapi_rooms.broadcast.recipients"]["sum"] == 1


def test_a_backend_of_ones_own() -> None:
    alone = ("-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", *alone, "counted_backend_conformance.py", "two_nodes.py"],
        cwd=SNIPPETS,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    skipped = re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", run.stdout, re.MULTILINE)
    assert set(skipped) == {"this backend has no store"}, run.stdout


async def ticket_of(site: Site) -> str:
    response = await site.http.post("/ticket", headers={"Authorization": "Bearer t0k3n"})
    return str(response.json())


async def test_credentials_tickets() -> None:
    async with served("credentials") as site:
        assert (await site.http.post("/ticket")).status_code == 401
        ticket = await ticket_of(site)
        async with site.connect(f"/with-ticket?ticket={ticket}") as client:
            await client.send("hello")
            assert await receive(client) == "ann said hello"
        for url in (f"/with-ticket?ticket={ticket}", "/with-ticket"):
            assert await refusal(site.connect(url)) == 401


async def test_credentials_tokens() -> None:
    base64url = "base64url.bearer.dDBrM24"
    async with served("credentials") as site:
        for path, offered, selected in (
            ("/with-token", ["bearer", "bearer.t0k3n"], "bearer"),
            ("/with-token", ["bearer", base64url], "bearer"),
            ("/either", ["chat.v1", "bearer.t0k3n"], "chat.v1"),
        ):
            async with site.connect(path, subprotocols=offered) as client:
                assert client.subprotocol == selected
                await client.send("hello")
                assert await receive(client) == "ann said hello"
        async with site.connect("/either", {"Authorization": "Bearer t0k3n"}) as client:
            await client.send("hello")
            assert await receive(client) == "ann said hello"
        assert await refusal(site.connect("/with-token", subprotocols=["bearer", "bearer.wrong"])) == 401
        assert await refusal(site.connect("/with-token", subprotocols=["bearer", "t0k3n"])) == 401
        assert await refusal(site.connect("/either")) == 401


async def test_credentials_in_redis_with_the_rights_that_the_page_gives(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in ("many-nodes.md", "credentials.md"):
        text = (SNIPPETS.parent / "guides" / page).read_text()
        for command in re.findall("^ *(ACL SETUSER .*)$", text, re.MULTILINE):
            broker.call(*command.replace(">a-long-random-password", ">secret").split())
    url = broker.url.replace("://", "://rooms:secret@")
    async with two_nodes("credentials", url, monkeypatch) as (here, there):
        ticket = await ticket_of(here)
        assert broker.call("KEYS", f"*{ticket}*") == []
        async with there.connect(f"/with-ticket?ticket={ticket}") as client:
            await client.send("hello")
            assert await receive(client) == "ann said hello"
        assert await refusal(here.connect(f"/with-ticket?ticket={ticket}")) == 401
    refused = {dict(zip(entry[::2], entry[1::2], strict=True))["object"] for entry in broker.call("ACL", "LOG")}
    assert refused <= {"client|setinfo"}, "something that it needs was refused"


def test_every_snippet_is_tested() -> None:
    text = Path(__file__).read_text()
    for snippet in SNIPPETS.glob("*.py"):
        is_used = snippet.stem in ("live_server", "counted_backend")  # by others
        assert f'"{snippet.stem}"' in text or f'"{snippet.name}"' in text or is_used, snippet.name


@pytest.mark.timeout(SECONDS)
def test_snippets_pass_mypy_strict(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("mypy", reason="only in the development environment")
    run = check_types(request.config, SNIPPETS, sorted(file.name for file in SNIPPETS.glob("*.py")))
    assert run.returncode == 0, run.stdout + run.stderr
