import os
from typing import Annotated

from fastapi import Body, FastAPI

from fastapi_rooms import (
    BackendUnavailable,
    DistributedWebSocketManager,
    Incoming,
    ManagerDep,
    RoomsExtension,
)

# --8<-- [start:start]
rooms = RoomsExtension(os.environ["REDIS_URL"])  # redis://localhost:6379


@rooms.ws_route("/ws/{room}", room="{room}")
async def chat(room: str, message: Incoming[str], manager: ManagerDep) -> None:
    await manager.broadcast_to_room(room, message)


app = FastAPI()
app.include_router(rooms.router)
# --8<-- [end:start]


# --8<-- [start:errors]
@app.post("/announce")
async def announce(
    text: Annotated[str, Body(embed=True)],
    manager: ManagerDep,
) -> dict[str, bool]:
    try:
        await manager.broadcast(text)
    except BackendUnavailable:
        return {"everywhere": False}  # but everybody on this node has it
    return {"everywhere": True}


# --8<-- [end:errors]


# --8<-- [start:status]
@app.get("/status")
async def status(manager: ManagerDep) -> dict[str, object]:
    assert isinstance(manager, DistributedWebSocketManager)
    status = manager.status
    return {
        "node": manager.node_id,
        "connected": status.connected,
        "degraded_since": status.degraded_since,
        "reconnects": status.reconnects,
        "gaps": status.gaps,
        "undelivered": status.undelivered,
        "undecodable": status.undecodable,
    }


# --8<-- [end:status]
