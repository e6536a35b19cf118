"""A node as users write one: `CHAT_REDIS=redis://… CHAT_PREFIX=… uvicorn chat_node:app`."""

import os

from fastapi import FastAPI

from fastapi_rooms import ConnectionDep, Incoming, ManagerDep, RoomsExtension, RoomsSettings

rooms = RoomsExtension(
    os.environ["CHAT_REDIS"], settings=RoomsSettings(key_prefix=os.environ["CHAT_PREFIX"]), required=True
)


def who(user: str | None = None) -> str | None:
    return user


@rooms.ws_route("/ws/{room}", room="{room}", user_id=who)
async def chat(room: str, message: Incoming[str | bytes], connection: ConnectionDep, manager: ManagerDep) -> None:
    await manager.broadcast_to_room(room, message, exclude=connection)


@rooms.ws_route("/pid", room="everybody")
async def pid(message: Incoming[str]) -> int:
    return os.getpid()


app = FastAPI()
app.include_router(rooms.router)


@app.post("/announce")
async def announce(text: str, manager: ManagerDep) -> int:
    return await manager.broadcast(text)


@app.post("/ban/{user}")
async def ban(user: str, manager: ManagerDep) -> int:
    return await manager.close_user(user, 4003, "banned")


@app.get("/health")
async def health() -> dict[str, object]:
    status = rooms.manager.status
    return {
        "connected": status.connected,
        "gaps": status.gaps,
        "undelivered": status.undelivered,
        "undecodable": status.undecodable,
        "connections": rooms.manager.active_connections,
    }
