import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Literal

from fastapi import FastAPI, Request, WebSocket, WebSocketException
from pydantic import BaseModel

from fastapi_rooms import ConnectionDep, Incoming, ManagerDep, RoomsExtension

logger = logging.getLogger("app")
rooms = RoomsExtension()


# --8<-- [start:per_message]
class Move(BaseModel):
    x: int
    y: int


class Moved(BaseModel):
    by: str
    x: int
    y: int


@rooms.ws_route("/boards/{board}", room="board:{board}")
async def moves(
    board: str,
    message: Incoming[Move],
    connection: ConnectionDep,
    manager: ManagerDep,
) -> None:
    moved = Moved(by=connection.connection_id, x=message.x, y=message.y)
    await manager.broadcast_to_room(f"board:{board}", moved, exclude=connection)


# --8<-- [end:per_message]


# --8<-- [start:returns]
@rooms.ws_route("/length")
async def length(message: Incoming[str]) -> dict[str, int]:
    return {"characters": len(message)}


@rooms.ws_route("/reverse")
async def reverse(message: Incoming[bytes]) -> bytes:
    return message[::-1]


# --8<-- [end:returns]


# --8<-- [start:session]
class Say(BaseModel):
    text: str


@rooms.ws_route("/rooms/{room}", room="{room}")
async def talk(room: str, connection: ConnectionDep, manager: ManagerDep) -> None:
    who = connection.connection_id
    came = {"type": "came", "who": who}
    await manager.broadcast_to_room(room, came, exclude=who)
    try:
        async for say in connection.messages(Say):
            if say.text == "/quit":
                return  # closes with 1000
            said = {"type": "said", "who": who, "text": say.text}
            await manager.broadcast_to_room(room, said)
    finally:
        went = {"type": "went", "who": who}
        await manager.broadcast_to_room(room, went, exclude=who)


# --8<-- [end:session]


# --8<-- [start:push]
@rooms.ws_route("/clock")
async def clock(connection: ConnectionDep) -> None:
    tick = 0
    while connection.is_open:
        await connection.send({"tick": tick})
        tick += 1
        await asyncio.sleep(1)


# --8<-- [end:push]


# --8<-- [start:stream]
class Job(BaseModel):
    steps: int


@rooms.ws_route("/jobs")
async def work(message: Incoming[Job]) -> AsyncIterator[dict[str, int | str]]:
    for step in range(1, message.steps + 1):
        yield {"type": "progress", "step": step}
    yield {"type": "done"}


# --8<-- [end:stream]


# --8<-- [start:claim_ping]
class Ping(BaseModel):
    type: Literal["ping"]
    sent_at: float


@rooms.ws_route("/lag")
async def lag(message: Incoming[Ping]) -> dict[str, float | str]:
    return {"type": "pong", "sent_at": message.sent_at}


# --8<-- [end:claim_ping]


# --8<-- [start:errors]
class OutOfStock(Exception):
    pass


class Order(BaseModel):
    item: str


@rooms.ws_route("/orders")
async def order(message: Incoming[Order]) -> dict[str, str]:
    if message.item == "nothing":
        raise WebSocketException(4404, "no such item")  # closed with 4404
    if message.item == "unicorn":
        raise OutOfStock  # on_out_of_stock() sees it, then it is closed with 1011
    return {"ordered": message.item}


app = FastAPI()
app.include_router(rooms.router)


@app.exception_handler(OutOfStock)
async def on_out_of_stock(
    connection: Request | WebSocket,
    error: Exception,
) -> None:
    logger.info("out of stock: %s", connection.url.path)


# --8<-- [end:errors]
