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


# --8<-- [start:counters]
@app.get("/counters")
async def counters(manager: ManagerDep) -> dict[str, int]:
    counted = manager.counters
    return {
        "connections": manager.active_connections,
        "lost_messages": counted.lost_messages,
        "slow_consumers": counted.slow_consumers,
        "aborted": counted.aborted,
    }


# --8<-- [end:counters]

app.include_router(rooms.router)
