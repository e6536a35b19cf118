"""A lifespan that ends while its server goes on: nobody is let in to hear nothing, and somebody is told."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from stage import refused
from support import counted, live, until

from fastapi_rooms import (
    ConnectionDep,
    DistributedWebSocketManager,
    RoomsExtension,
    RoomsSettings,
    health_router,
)
from fastapi_rooms.testing import LocalCluster


@pytest.fixture(params=["one node", "many nodes"])
def rooms(request):
    return RoomsExtension(LocalCluster(1).backends[0] if request.param == "many nodes" else None)


def app_of(rooms, fails, *, passes_state=True):
    """An app as the guide writes it, with a producer that fails at some time."""

    async def produce():
        await fails.wait()
        raise ConnectionError("an exception that the app did not expect")

    @asynccontextmanager
    async def lifespan(app):
        async with rooms.lifespan(app) as state, asyncio.TaskGroup() as tasks:
            producing = tasks.create_task(produce())
            yield state if passes_state else {}
            producing.cancel()

    app = FastAPI(lifespan=lifespan)

    @rooms.ws_route("/ws", room="prices")
    async def prices(connection: ConnectionDep) -> None:
        async for _ in connection.messages(str):
            pass

    app.include_router(rooms.router)
    app.include_router(health_router(rooms))
    return app


def said(caplog):
    return [record for record in caplog.records if "its server goes on" in record.getMessage()]


@pytest.mark.parametrize("passes_state", [True, False], ids=["passes its state on", "keeps its state"])
async def test_who_comes_after_the_end_is_refused_and_an_error_says_what_to_do(rooms, loop, passes_state, caplog):
    fails = asyncio.Event()
    with live(app_of(rooms, fails, passes_state=passes_state), loop) as server:
        async with server.http() as http, server.client("/ws") as client:
            assert (await http.get("/live")).status_code == 200
            await server.call(fails.set)
            assert (await client.closed())[0] == 1012
            await until(lambda: rooms.manager._parts.drain.is_shut and not rooms.manager.is_draining)
            assert said(caplog) == [], "nobody has come: it may be an end like any other"
            for _ in range(3):
                answer = await refused(server, "/ws")
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert counted(rooms.manager.stats().refused) == {"draining": 3}
            answer = await http.get("/live")
            assert (answer.status_code, answer.json()) == (503, {"alive": False})
            answer = await http.get("/ready")
            assert (answer.status_code, answer.json()["ready"], answer.json()["draining"]) == (503, False, True)
    (record,) = said(caplog)
    assert record.levelno == logging.ERROR
    assert "Handle it in the task (BackendUnavailable, while Redis is away), and restart" in record.getMessage()


async def test_the_question_whether_it_lives_is_enough_to_have_it_said(rooms, caplog):
    fails = asyncio.Event()
    with live(app_of(rooms, fails)) as server:
        async with server.http() as http:
            await server.call(fails.set)
            await until(lambda: rooms._attached == 0)
            await until(lambda: rooms.manager._parts.drain.is_shut)
            for _ in range(2):
                assert (await http.get("/live")).status_code == 503
    assert len(said(caplog)) == 1


async def test_an_end_like_any_other_says_nothing_and_the_next_start_lets_in(rooms, caplog):
    app = FastAPI()
    for _ in range(2):
        async with rooms.lifespan(app):
            assert not rooms.manager._parts.drain.is_shut
        assert rooms.manager._parts.drain.is_shut
        assert not hasattr(app.state, "rooms")
    assert said(caplog) == []


async def test_an_app_whose_lifespan_has_ended_early_can_have_another_extension(rooms):
    app = FastAPI()
    with pytest.raises(ConnectionError):
        async with rooms.lifespan(app):
            raise ConnectionError
    assert app.state.rooms is rooms.manager, "it refuses whoever comes"
    other = RoomsExtension()
    async with other.lifespan(app):
        assert app.state.rooms is other.manager
    assert not hasattr(app.state, "rooms")
    async with rooms.lifespan(app):
        assert app.state.rooms is rooms.manager
        assert not rooms.manager._parts.drain.is_shut
    assert not hasattr(app.state, "rooms")


def test_what_ended_on_a_loop_that_is_closed_ended_there_alone(rooms):
    async def main():
        async with rooms.lifespan(FastAPI()):
            pass
        assert rooms.manager._parts.drain.is_shut

    asyncio.run(main())
    assert not rooms.manager._parts.drain.is_shut


async def test_a_node_of_many_that_was_stopped_by_hand_lets_nobody_in_until_it_is_started(caplog):
    rooms = RoomsExtension(LocalCluster(1).backends[0], settings=RoomsSettings(drain_timeout=None))
    with live(app_of(rooms, asyncio.Event())) as server:
        assert isinstance(rooms.manager, DistributedWebSocketManager)
        await server.call(rooms.manager.stop)
        assert (await refused(server, "/ws")).status_code == 503
        assert len(said(caplog)) == 1
        await server.call(rooms.manager.start)
        async with server.client("/ws"):
            await until(lambda: rooms.manager.active_connections)
