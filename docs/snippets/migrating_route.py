from fastapi import FastAPI

from fastapi_rooms import ConnectionDep, ManagerDep, RoomsExtension

rooms = RoomsExtension()


@rooms.ws_route("/ws/{name}")
async def chat(name: str, connection: ConnectionDep, manager: ManagerDep) -> None:
    try:
        async for text in connection.messages(str):
            await manager.broadcast(f"{name}: {text}")
    finally:
        await manager.broadcast(f"{name} left")


app = FastAPI()
app.include_router(rooms.router)
