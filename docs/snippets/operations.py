from dataclasses import asdict
from typing import Any

from fastapi import FastAPI

from fastapi_rooms import (
    Connection,
    Disconnected,
    Hooks,
    Incoming,
    ManagerDep,
    Refused,
    RoomsExtension,
)

# --8<-- [start:hooks]
journal: list[str] = []


def on_connected(connection: Connection) -> None:
    journal.append(f"{connection.user_id} came")


async def on_disconnected(end: Disconnected) -> None:
    journal.append(f"{end.connection.user_id} left: {end.code} {end.seconds:.0f} s")


def on_refused(refused: Refused) -> None:
    journal.append(f"refused: {refused.reason}")


rooms = RoomsExtension(
    hooks=Hooks(
        connected=on_connected,
        disconnected=on_disconnected,
        refused=on_refused,
    )
)
# --8<-- [end:hooks]


@rooms.ws_route("/ws")
async def echo(message: Incoming[str]) -> str:
    return message


app = FastAPI()
app.include_router(rooms.router)


# --8<-- [start:stats]
@app.get("/internal/rooms")
async def stats(manager: ManagerDep) -> dict[str, Any]:
    return asdict(manager.stats())


# --8<-- [end:stats]
