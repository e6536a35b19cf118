"""The app that `test_other_servers.py` has each server serve."""

import asyncio
import logging

from fastapi import FastAPI, HTTPException

from fastapi_rooms import Incoming, ManagerDep, RoomsExtension, RoomsSettings

logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")

FILL_BYTES, FILL_COUNT = 60_000, 400

rooms = RoomsExtension(settings=RoomsSettings(send_timeout=0.3, drain_timeout=0.3))


async def nobody() -> str:
    raise HTTPException(401)


@rooms.ws_route("/ws/{room}", room="{room}")
async def chat(room: str, message: Incoming[str], manager: ManagerDep) -> None:
    await manager.broadcast_to_room(room, message)


@rooms.ws_route("/denied", user_id=nobody)
async def denied(message: Incoming[str]) -> None: ...


app = FastAPI()
app.include_router(rooms.router)


@app.post("/fill/{room}")
async def fill(room: str, manager: ManagerDep) -> int:
    """Send to a room until nobody is left in it; return how many messages that were."""
    for count in range(FILL_COUNT):
        if not manager.get_room_members(room):
            return count
        await manager.broadcast_to_room(room, "x" * FILL_BYTES)
        await asyncio.sleep(0.001)
    return FILL_COUNT


@app.get("/closing")
async def closing(manager: ManagerDep) -> int:
    """Return how many have ended and have a socket that has not left."""
    return manager.stats().closing


@app.post("/drain")
async def drain(manager: ManagerDep) -> None:
    await manager.drain()


@app.post("/again")
async def again(manager: ManagerDep) -> None:
    """Let clients in after a drain."""
    await manager.stop()
