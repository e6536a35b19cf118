import os
from secrets import compare_digest
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException

from fastapi_rooms import (
    Incoming,
    ManagerDep,
    RoomsExtension,
    health_router,
)

# --8<-- [start:health]
rooms = RoomsExtension()

app = FastAPI()
app.include_router(rooms.router)
app.include_router(health_router(rooms, prefix="/health"))
# --8<-- [end:health]


@rooms.ws_route("/ws/{room}", room="{room}")
async def chat(message: Incoming[str]) -> str:
    return message


# --8<-- [start:drain]
@app.post("/drain")
async def drain(token: Annotated[str, Header()], manager: ManagerDep) -> None:
    expected = os.environ["DRAIN_TOKEN"]
    if not compare_digest(token.encode(), expected.encode()):
        raise HTTPException(403)
    await manager.drain()


# --8<-- [end:drain]
