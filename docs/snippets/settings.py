from fastapi import FastAPI

from fastapi_rooms import ConnectionDep, ManagerDep, Overflow, RoomsExtension, RoomsSettings

# --8<-- [start:settings]
rooms = RoomsExtension(
    settings=RoomsSettings(
        outbox_messages=100,
        overflow=Overflow.DROP_OLDEST,
        send_timeout=5.0,
    )
)
# --8<-- [end:settings]
app = FastAPI()


@rooms.ws_route("/ws/{room}", room="{room}")
async def listen(connection: ConnectionDep) -> None:
    async for _ in connection.messages(str):
        pass


# --8<-- [start:stats]
@app.get("/stats")
async def stats(manager: ManagerDep) -> dict[str, int]:
    now = manager.stats()
    return {
        "connections": now.connections,
        "lost": now.dropped["lost"],
        "slow_consumers": now.closed["slow_consumer"],
        "stalled": now.closed["stalled"],
    }


# --8<-- [end:stats]

app.include_router(rooms.router)
