"""A route needs the manager; a handler that asks for it too does not make FastAPI solve it twice."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from support import until
from websockets.exceptions import InvalidStatus

from fastapi_rooms import (
    ConnectionDep,
    ConnectionManager,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
    get_manager,
)

FreshManager = Annotated[ConnectionManager, Depends(get_manager, use_cache=False)]
"""FastAPI solves this each time that it is asked for, so that it can be counted."""


async def asks_not(message: Incoming[str], connection: ConnectionDep) -> str:
    return f"{message} {connection.rooms}"


async def asks(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> str:
    return f"{message} {connection.rooms}"


async def asks_for_a_fresh_one(message: Incoming[str], connection: ConnectionDep, manager: FreshManager) -> str:
    return f"{message} {connection.rooms}"


async def asks_by_default(
    message: Incoming[str],
    connection: ConnectionDep,
    manager: ConnectionManager = Depends(get_manager),  # noqa: B008 - as FastAPI had it before
) -> str:
    return f"{message} {connection.rooms}"


async def asks_under_any_name(message: Incoming[str], connection: ConnectionDep, rooms_manager: ManagerDep) -> str:
    return f"{message} {connection.rooms}"


async def asks_for_something_else(
    message: Incoming[str], connection: ConnectionDep, manager: Annotated[Any, Depends(lambda: "another manager")]
) -> str:
    assert manager == "another manager"
    return f"{message} {connection.rooms}"


async def owns_the_session(connection: ConnectionDep, manager: ManagerDep) -> None:
    async for message in connection.messages(str):
        await manager.send_personal(connection, f"{message} {connection.rooms}")


HANDLERS = [
    asks_not,
    asks,
    asks_for_a_fresh_one,
    asks_by_default,
    asks_under_any_name,
    asks_for_something_else,
    owns_the_session,
]


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_manager_is_asked_for_once(rooms, handler):
    rooms.ws_route("/ws", room="hall")(handler)
    route, _ = rooms.router.routes  # the other answers plain HTTP
    asked = [one for one in route.dependant.dependencies if one.call is get_manager]
    assert len(asked) == 1


@pytest.mark.parametrize("handler", HANDLERS)
async def test_an_override_is_honoured_and_called_once_for_each_connection(stage, handler):
    rooms, other = RoomsExtension(), ConnectionManager()
    rooms.ws_route("/ws", room="hall")(handler)
    calls = []

    def override() -> ConnectionManager:
        calls.append(other.active_connections)
        return other

    app = FastAPI()
    app.include_router(rooms.router)
    app.dependency_overrides[get_manager] = override
    async with stage.plays(app) as server:
        for count in (1, 2):
            async with server.client("/ws") as client:
                await client.send("hi")
                assert "hall" in await client.receive()
                assert (other.active_connections, rooms.manager.active_connections) == (1, 0)
            await until(lambda: not other.active_connections)
            assert len(calls) == count


async def test_the_manager_that_stands_in_refuses_foreign_pages_by_its_own_settings(stage):
    rooms = RoomsExtension(settings=RoomsSettings(allowed_origins=["https://one.example"]))
    other = ConnectionManager(RoomsSettings(allowed_origins=["https://other.example"]))
    rooms.ws_route("/ws", room="hall")(asks_not)
    app = FastAPI()
    app.include_router(rooms.router)
    app.dependency_overrides[get_manager] = lambda: other
    async with stage.plays(app) as server:
        with pytest.raises(InvalidStatus) as refused:
            await server.client("/ws", origin="https://one.example").__aenter__()
        assert refused.value.response.status_code == 403
        async with server.client("/ws", origin="https://other.example") as client:
            await client.send("hi")
            assert "hall" in await client.receive()
