from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_rooms import Incoming, ManagerDep, RoomsExtension
from fastapi_rooms.testing import LocalCluster


def create_app(rooms: RoomsExtension) -> FastAPI:
    """Your own factory: what differs between nodes is passed in."""

    @rooms.ws_route("/ws/{room}", room="{room}")
    async def chat(room: str, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(room, message)

    app = FastAPI()
    app.include_router(rooms.router)
    return app


@pytest.fixture
def cluster() -> LocalCluster:
    return LocalCluster(2)


@pytest.fixture
def nodes(cluster: LocalCluster) -> Iterator[list[TestClient]]:
    apps = [create_app(RoomsExtension(backend)) for backend in cluster]
    with ExitStack() as ends:
        yield [ends.enter_context(TestClient(app)) for app in apps]


def test_a_room_reaches_over_two_nodes(nodes: list[TestClient]) -> None:
    here, there = nodes
    with (
        here.websocket_connect("/ws/kitchen") as ann,
        there.websocket_connect("/ws/kitchen") as bob,
    ):
        ann.send_text("hello")
        assert bob.receive_text() == "hello"


def test_nobody_is_closed_because_a_node_is_alone(
    cluster: LocalCluster,
    nodes: list[TestClient],
) -> None:
    here, there = nodes
    with (
        here.websocket_connect("/ws/kitchen") as ann,
        there.websocket_connect("/ws/kitchen") as bob,
    ):
        cluster.cut(1)
        bob.send_text("does anybody hear me?")
        assert bob.receive_text() == "does anybody hear me?"
        assert bob.receive_json()["code"] == "unavailable"
        cluster.restore(1)
        bob.send_text("and now?")
        assert ann.receive_text() == "and now?"
