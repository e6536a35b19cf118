"""Routes that run in a thread and want to send: the wrong way fails at once and says which is the right one."""

import asyncio
import threading
from uuid import uuid4

import anyio
import pytest
from fastapi import FastAPI
from support import live

from fastapi_rooms import ConfigurationError, ConnectionDep, ManagerDep, RoomsExtension, RoomsSettings
from fastapi_rooms.testing import LocalCluster


@pytest.fixture(params=["one node", "in memory", "redis"])
def rooms(request):
    settings = RoomsSettings(key_prefix=uuid4().hex)
    match request.param:
        case "one node":
            return RoomsExtension(settings=settings)
        case "in memory":
            return RoomsExtension(LocalCluster(1).backends[0], settings=settings)
    return RoomsExtension(request.getfixturevalue("shared_broker").url, settings=settings, required=True)


def app_of(rooms):
    app = FastAPI()

    @rooms.ws_route("/ws", room="kitchen")
    async def sit(connection: ConnectionDep) -> None:
        async for _ in connection.messages(str):
            pass

    @app.get("/wrong")
    def wrong(manager: ManagerDep) -> str:
        try:
            return str(asyncio.run(manager.broadcast_to_room("kitchen", "wrong")))
        except ConfigurationError as error:
            return str(error)

    @app.get("/right")
    def right(manager: ManagerDep) -> int:
        return anyio.from_thread.run(manager.broadcast_to_room, "kitchen", "right")

    app.include_router(rooms.router)
    return app


async def test_a_route_in_a_thread_learns_at_once_how_to_send(rooms, loop):
    with live(app_of(rooms), loop) as server:
        async with server.client("/ws") as client, server.http() as http:
            threads = threading.active_count()
            for _ in range(3):
                answer = (await http.get("/wrong", timeout=5)).json()
                assert "write anyio.from_thread.run(manager.broadcast, message)" in answer
            assert (await http.get("/right", timeout=5)).json() == 1
            assert await client.receive() == "right"
            assert threading.active_count() <= threads + 1, "no thread waits for ever"


async def test_a_second_lifespan_on_another_loop_is_refused_and_harms_nobody(rooms):
    app = app_of(rooms)

    async def second():
        async with rooms.lifespan(app):
            raise AssertionError("it has started")

    with live(app) as server:
        with pytest.raises(ConfigurationError, match="Two loops that run at once need a manager each"):
            await asyncio.to_thread(asyncio.run, second())
        async with server.client("/ws") as client, server.http() as http:
            assert (await http.get("/right")).json() == 1
            assert await client.receive() == "right"
