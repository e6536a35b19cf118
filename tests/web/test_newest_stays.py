"""A user who comes again and closes those who were here before, by a dependency of the route."""

from typing import Annotated

import pytest
from fastapi import Depends, Request, WebSocket
from stage import refused
from support import until

from fastapi_rooms import ConnectionDep, ManagerDep, RoomsExtension, Tickets
from fastapi_rooms.testing import LocalCluster

CODE = 4009


def as_connection(rooms):
    async def newest(user: str, connection: ConnectionDep, manager: ManagerDep) -> str:
        await manager.close_user(user, CODE, "another device", exclude=connection)
        return user

    return newest


def as_websocket(rooms):
    async def newest(user: str, websocket: WebSocket) -> str:
        await rooms.manager.close_user(user, CODE, "another device", exclude=websocket)
        return user

    return newest


@pytest.fixture(params=["one node", "many nodes"])
def rooms(request):
    return RoomsExtension(LocalCluster(1).backends[0] if request.param == "many nodes" else None)


@pytest.mark.parametrize("way", [as_connection, as_websocket])
async def test_the_newest_stays_and_the_one_before_is_closed(rooms, stage, loop, way):
    @rooms.ws_route("/ws", user_id=way(rooms))
    async def talk(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await connection.send(message)

    async with (
        stage.plays(rooms) as server,
        server.client("/ws?user=ann") as first,
        server.client("/ws?user=bob"),
        server.client("/ws?user=ann") as second,
    ):
        assert await first.closed() == (CODE, "another device")
        await second.send("still here")
        assert await second.receive() == "still here"
        async with server.client("/ws?user=ann") as third:
            assert await second.closed() == (CODE, "another device")
            await third.send("still here")
            assert await third.receive() == "still here"
            await until(lambda: rooms.manager.active_connections == 2)


async def test_a_handler_closes_the_other_devices_and_their_tickets(rooms, stage):
    tickets = Tickets()

    @rooms.ws_route("/ws", user_id=tickets.redeem)
    async def talk(connection: ConnectionDep, manager: ManagerDep) -> None:
        async for _ in connection.messages(str):
            await connection.send(str(await manager.close_user("ann", CODE, exclude=connection)))

    @rooms.router.post("/ticket")
    async def ticket(request: Request, user: Annotated[str, Depends(lambda: "ann")]) -> str:
        return await tickets.issue(request, user)

    async with stage.plays(rooms) as server, server.http() as http:

        async def path():
            return f"/ws?ticket={(await http.post('/ticket')).json()}"

        async with server.client(await path()) as phone, server.client(await path()) as laptop:
            unused = await path()
            await phone.send("log out everywhere else")
            assert await phone.receive() == "1"
            assert (await laptop.closed())[0] == CODE
            assert (await refused(server, unused)).status_code == 401
            async with server.client(await path()):
                await until(lambda: rooms.manager.active_connections == 2)
