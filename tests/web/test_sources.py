"""Aliases as dependencies, and rooms by solved values, on a running server."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, HTTPException
from stage import refused

from fastapi_rooms import ConnectionDep, Incoming, ManagerDep, RoomsExtension


def current_user(token: str = "") -> str:
    if token != "good":
        raise HTTPException(401, "no")
    return "ann"


User = Annotated[str, Depends(current_user)]


async def test_an_alias_asks_the_dependency_in_it_whatever_is_in_the_query(stage):
    rooms = RoomsExtension()
    asked = []

    def note(token: str = "") -> None:
        asked.append(token)

    @rooms.ws_route("/user", user_id=User, dependencies=[Annotated[None, Depends(note)]])
    async def route(connection: ConnectionDep) -> None:
        await connection.send(connection.user_id)

    async with stage.plays(rooms) as server:
        async with server.client("/user?token=good") as client:
            assert await client.receive() == "ann"
        assert asked == ["good"]
        for query in ("", "?args=1&kwargs=1", "?token=bad&args=1&kwargs=1"):
            assert (await refused(server, f"/user{query}")).status_code == 401


async def test_a_room_is_the_one_that_the_handler_names_however_the_path_is_spelt(stage):
    rooms = RoomsExtension()

    @rooms.ws_route("/number/{number}", room="number:{number}")
    async def by_number(number: int, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(f"number:{number}", message)

    @rooms.ws_route("/id/{key}", room="id:{key}")
    async def by_id(key: UUID, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(f"id:{key}", message)

    @rooms.ws_route("/plain/{name}/{number:int}", room="{name}:{number}")
    async def not_taken(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.send(sorted(connection.rooms))

    key = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
    async with stage.plays(rooms) as server:
        async with server.client("/number/007") as one, server.client("/number/7") as two:
            await one.send("hello")
            assert [await one.receive(), await two.receive()] == ["hello", "hello"]
        async with server.client(f"/id/{key}") as one, server.client(f"/id/{key.lower()}") as two:
            await one.send("hello")
            assert [await one.receive(), await two.receive()] == ["hello", "hello"]
        async with server.client("/plain/a/007") as client:
            await client.send("where?")
            assert await client.receive_json() == ["a:7"]
