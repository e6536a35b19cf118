"""The kit with which users test an app on many nodes: used here as they would."""

from contextlib import ExitStack

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_rooms import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionDep,
    DistributedWebSocketManager,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
)
from fastapi_rooms.testing import LocalCluster


def make_app(backend, **options) -> FastAPI:
    rooms = RoomsExtension(backend, **options)
    app = FastAPI()

    @rooms.ws_route("/ws/{room}", room="{room}")
    async def chat(room: str, message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> None:
        await manager.broadcast_to_room(room, message, exclude=connection)

    @app.get("/status")
    async def status(manager: ManagerDep) -> dict:
        return {"connected": manager.status.connected, "undelivered": manager.status.undelivered}

    app.include_router(rooms.router)
    return app


@pytest.fixture
def cluster():
    return LocalCluster()


@pytest.fixture
def clients(cluster):
    with ExitStack() as ends:
        yield [ends.enter_context(TestClient(make_app(backend))) for backend in cluster]


def test_two_apps_reach_each_others_rooms(clients):
    one, two = clients
    with one.websocket_connect("/ws/kitchen") as ann, two.websocket_connect("/ws/kitchen") as bob:
        for number in range(50):
            ann.send_text(f"ann {number}")
            assert bob.receive_text() == f"ann {number}"
            bob.send_text(f"bob {number}")
            assert ann.receive_text() == f"bob {number}"


def test_another_room_is_not_reached(clients):
    one, two = clients
    with one.websocket_connect("/ws/kitchen") as ann, two.websocket_connect("/ws/hall") as bob:
        ann.send_text("not for bob")
        with one.websocket_connect("/ws/hall") as cid:
            cid.send_text("hello")
            assert bob.receive_text() == "hello"


def test_a_node_that_is_cut_off_is_degraded_and_hears_again_when_it_is_restored(cluster, clients):
    one, two = clients
    with one.websocket_connect("/ws/kitchen") as ann, two.websocket_connect("/ws/kitchen") as bob:
        cluster.cut(1)
        assert (one.get("/status").json()["connected"], two.get("/status").json()["connected"]) == (True, False)
        ann.send_text("lost")
        bob.send_text("nobody hears that")
        assert bob.receive_json()["code"] == "unavailable", "the socket stays"
        assert two.get("/status").json() == {"connected": False, "undelivered": 1}
        cluster.restore(1)
        ann.send_text("after")
        assert bob.receive_text() == "after"
        bob.send_text("me too")
        assert ann.receive_text() == "me too"


def test_the_app_is_told_about_the_gap(cluster):
    gaps = []
    with (
        TestClient(make_app(cluster.backends[0])) as one,
        TestClient(make_app(cluster.backends[1], on_gap=gaps.append)) as two,
        one.websocket_connect("/ws/kitchen") as ann,
        two.websocket_connect("/ws/kitchen") as bob,
    ):
        cluster.cut(1)
        cluster.restore(1)
        ann.send_text("after")
        assert bob.receive_text() == "after"
    assert [(gap.rooms, gap.everybody) for gap in gaps] == [({"kitchen"}, True)]


def test_an_app_that_requires_the_others_does_not_start_while_cut_off(cluster):
    cluster.cut(0)
    app = make_app(cluster.backends[0], required=True)
    with pytest.raises(BackendUnavailable, match="cut off"), TestClient(app):
        pass
    cluster.restore(0)
    with TestClient(app) as client:
        assert client.get("/status").json()["connected"]


async def test_managers_without_an_app_find_each_other(cluster):
    settings = RoomsSettings(publish_failure="log")
    one, two = (DistributedWebSocketManager(backend, settings=settings) for backend in cluster)
    for manager in (one, two):
        await manager.start(required=True)
    assert repr(cluster) == "<LocalCluster nodes=2 connected=2>"
    cluster.cut(0)
    assert repr(cluster) == "<LocalCluster nodes=2 connected=1>"
    assert await one.broadcast("hello") == 0
    assert one.status.undelivered == 1
    for manager in (one, two):
        await manager.stop()


def test_it_is_as_large_as_one_likes():
    cluster = LocalCluster(5)
    assert len(cluster.backends) == len(set(cluster)) == 5
    assert tuple(cluster) == cluster.backends


@pytest.mark.parametrize("nodes", [0, -1])
def test_it_has_nodes(nodes):
    with pytest.raises(ConfigurationError, match=r"write LocalCluster\(2\)"):
        LocalCluster(nodes)


def test_a_node_that_is_not_there_is_not_cut_off(cluster):
    with pytest.raises(ConfigurationError):
        cluster.cut(2)
