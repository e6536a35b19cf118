from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import FastAPI, Header
from pydantic import BaseModel

from fastapi_rooms import (
    ConnectionDep,
    ConnectionId,
    Incoming,
    ManagerDep,
    MessageError,
    MessageType,
    RoomsExtension,
)

rooms = RoomsExtension()


async def name(x_name: Annotated[str, Header()]) -> str:
    return x_name


# --8<-- [start:targets]
@rooms.ws_route("/ws/{room}", room="{room}", user_id=name)
async def chat(
    room: str,
    message: Incoming[str],
    connection: ConnectionDep,
    manager: ManagerDep,
) -> None:
    await connection.send("to this connection")
    await manager.send_personal(connection, "the same, through the manager")
    await manager.send_to_user("Ann", "to every connection of Ann")
    await manager.broadcast_to_room(room, "to everybody in the room")
    await manager.broadcast_to_room(room, "to the others", exclude=connection)
    await manager.broadcast("to everybody")


# --8<-- [end:targets]


# --8<-- [start:reply]
class Whisper(BaseModel):
    to: ConnectionId  # as a client was told it before
    text: str


@rooms.ws_route("/whispers")
async def whisper(message: Incoming[Whisper], manager: ManagerDep) -> str | None:
    if await manager.send_personal(message.to, message.text):
        return None
    return "nobody there"


# --8<-- [end:reply]

app = FastAPI()
app.include_router(rooms.router)


# --8<-- [start:types]
@dataclass
class Reading:
    sensor: UUID
    taken_at: datetime
    celsius: float


@app.post("/readings/{room}")
async def publish(room: str, celsius: float, manager: ManagerDep) -> int:
    reading = Reading(uuid4(), datetime.now(UTC), celsius)
    return await manager.broadcast_to_room(room, reading)  # neither str nor bytes: JSON


@app.post("/stored/{room}")
async def publish_stored(room: str, manager: ManagerDep) -> int:
    stored = b'{"from": "a cache"}'  # JSON already: checked, not encoded again
    return await manager.broadcast_to_room(room, stored, MessageType.JSON)


# --8<-- [end:types]


# --8<-- [start:unsendable]
@app.post("/unsendable/{room}")
async def publish_unsendable(room: str, manager: ManagerDep) -> str:
    try:
        await manager.broadcast_to_room(room, {"what": object()})
    except MessageError as error:
        return f"nobody was sent anything: {error}"
    return "sent"


# --8<-- [end:unsendable]


# --8<-- [start:users]
@app.put("/rooms/{room}/users/{user}")
async def invite(room: str, user: str, manager: ManagerDep) -> int:
    return await manager.users.join_room(user, room)


@app.delete("/rooms/{room}/users/{user}")
async def remove(room: str, user: str, manager: ManagerDep) -> int:
    await manager.broadcast_to_room(room, f"{user} has to go", exclude_user=user)
    return await manager.users.leave_room(user, room)


# --8<-- [end:users]


# --8<-- [start:close]
@app.post("/rooms/{room}/close")
async def close_room(room: str, manager: ManagerDep) -> int:
    await manager.broadcast_to_room(room, "this room closes now")
    return await manager.close_room(room, 4000, "closed by the host")


# --8<-- [end:close]
