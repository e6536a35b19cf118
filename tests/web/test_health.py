"""`health_router`: what a load balancer and Kubernetes are told."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from brokers.ports import free_port
from fastapi import FastAPI
from fastapi.testclient import TestClient
from support import live, until
from websockets.exceptions import InvalidStatus

from fastapi_rooms import (
    ConfigurationError,
    ConnectionManager,
    DistributedWebSocketManager,
    Incoming,
    RoomsExtension,
    RoomsSettings,
)
from fastapi_rooms import health_router as public_health_router
from fastapi_rooms.web.health import health_router

QUICK = {"probe_interval": 0.1, "publish_timeout": 0.3}


def app_with(rooms, **options):
    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    app.include_router(health_router(rooms, **options))
    return app


async def ask(http, path):
    answer = await http.get(path)
    return answer.status_code, answer.json()


READY = {"ready": True, "started": True, "draining": False, "connected": None, "degraded_since": None, "connections": 0}


async def test_a_node_that_is_well_is_alive_and_ready_and_says_how_many_are_here(loop):
    rooms = RoomsExtension()

    @rooms.ws_route("/ws")
    async def chat(message: Incoming[str]) -> None: ...

    with live(app_with(rooms), loop) as server:
        async with server.http() as http:
            assert await ask(http, "/live") == (200, {"alive": True})
            assert await ask(http, "/ready") == (200, READY)
            async with server.client("/ws"):
                await until(lambda: rooms.manager.active_connections)
                assert await ask(http, "/ready") == (200, {**READY, "connections": 1})
            assert (await http.get("/ready")).headers["cache-control"] == "no-store"


async def test_a_node_that_drains_is_alive_and_not_ready_until_it_is_used_again():
    rooms = RoomsExtension()
    with live(app_with(rooms)) as server:
        async with server.http() as http:
            await server.call(rooms.manager.drain, 1)
            assert await ask(http, "/ready") == (503, {**READY, "ready": False, "draining": True})
            assert await ask(http, "/live") == (200, {"alive": True})
            assert (await http.get("/ready")).headers["cache-control"] == "no-store"
            await server.call(rooms.manager.stop)
            assert await ask(http, "/ready") == (200, READY)


async def test_a_node_whose_server_runs_no_lifespan_is_not_ready():
    rooms = RoomsExtension()

    @rooms.ws_route("/ws")
    async def chat(message: Incoming[str]) -> None: ...

    with live(app_with(rooms), lifespan="off") as server:
        async with server.http() as http:
            assert await ask(http, "/ready") == (503, {**READY, "ready": False, "started": False})
            assert await ask(http, "/live") == (200, {"alive": True})
        with pytest.raises(InvalidStatus) as refused:
            async with server.client("/ws"):
                pass
        assert refused.value.response.status_code == 500


def test_a_manager_needs_no_lifespan_to_be_ready():
    app = FastAPI()
    app.include_router(health_router(ConnectionManager()))
    assert TestClient(app).get("/ready").json() == READY


def test_a_probe_does_not_go_through_all_connections(monkeypatch):
    rooms = RoomsExtension()
    monkeypatch.setattr(rooms.manager, "stats", None)
    with TestClient(app_with(rooms)) as client:
        assert client.get("/ready").json() == READY


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_a_node_that_does_not_hear_the_others_is_not_ready_until_it_does(broker, fault):
    rooms = RoomsExtension(broker.url, settings=RoomsSettings(**QUICK), required=True)
    with live(app_with(rooms)) as server:
        async with server.http() as http:
            assert await ask(http, "/ready") == (200, {**READY, "connected": True})
            begin = datetime.now(UTC)
            getattr(broker, fault)()
            await until(lambda: not rooms.manager.status.connected)
            status, body = await ask(http, "/ready")
            since = datetime.fromisoformat(body.pop("degraded_since"))
            assert begin <= since <= datetime.now(UTC)
            assert (status, body) == (
                503,
                {"ready": False, "started": True, "draining": False, "connected": False, "connections": 0},
            )
            assert await ask(http, "/live") == (200, {"alive": True})
            if fault == "kill":
                broker.start()
            else:
                broker.thaw()
            await until(lambda: rooms.manager.status.connected)
            assert await ask(http, "/ready") == (200, {**READY, "connected": True})


async def test_a_node_that_began_without_redis_is_not_ready():
    rooms = RoomsExtension(f"redis://127.0.0.1:{free_port()}", settings=RoomsSettings(**QUICK))
    with live(app_with(rooms)) as server:
        async with server.http() as http:
            status, body = await ask(http, "/ready")
            assert (status, body["ready"], body["connected"]) == (503, False, False)
            assert (await http.get("/live")).status_code == 200


@pytest.mark.filterwarnings("ignore:The `__fields__` attribute")  # an old FastAPI looks at it
def test_the_paths_can_have_a_prefix_and_several_routers_tell_of_several_managers():
    draining, well, rooms = ConnectionManager(), ConnectionManager(), RoomsExtension()
    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(health_router(draining, prefix="/one"))
    app.include_router(health_router(well, prefix="/two"))
    app.include_router(health_router(rooms), prefix="/v1/health")
    with TestClient(app) as client:
        client.portal.call(draining.drain, 1)
        assert [client.get(path).status_code for path in ("/one/ready", "/two/ready", "/v1/health/ready")] == [
            503,
            200,
            200,
        ]
        assert client.get("/ready").status_code == 404
        assert len(client.get("/openapi.json").json()["paths"]) == 6
        client.portal.call(draining.stop)


@pytest.mark.filterwarnings("ignore:The `__fields__` attribute")  # an old FastAPI looks at it
def test_the_answers_are_described():
    described = app_with(RoomsExtension(), prefix="/health").openapi()
    for path, codes in (("/health/live", {"200", "503"}), ("/health/ready", {"200", "503"})):
        operation = described["paths"][path]["get"]
        assert set(operation["responses"]) == codes
        assert operation["tags"] == ["health"]
    ready = described["paths"]["/health/ready"]["get"]["responses"]
    schemas = {code: answer["content"]["application/json"]["schema"]["$ref"] for code, answer in ready.items()}
    assert set(schemas.values()) == {"#/components/schemas/Ready"}
    assert set(described["components"]["schemas"]["Ready"]["required"]) == set(READY)


def test_it_can_be_made_when_a_module_is_imported_without_a_loop_or_a_lifespan():
    code = (
        "from fastapi_rooms import DistributedWebSocketManager, RoomsExtension, health_router\n"
        "health_router(RoomsExtension()); health_router(DistributedWebSocketManager('redis://127.0.0.1:1'))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_manager_that_was_not_started_is_not_ready():
    app = FastAPI()
    app.include_router(health_router(DistributedWebSocketManager(f"redis://127.0.0.1:{free_port()}")))
    with live(app) as server:
        async with server.http() as http:
            assert (await http.get("/ready")).status_code == 503


def test_what_has_no_health_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"takes a RoomsExtension or its manager, not FastAPI.*health_router\(rooms\)"
    ):
        health_router(FastAPI())


def test_it_is_public():
    assert public_health_router is health_router
