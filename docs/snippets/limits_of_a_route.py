from fastapi import FastAPI

from fastapi_rooms import ConnectionDep, Incoming, Limits, ManagerDep, Overflow, RoomsExtension

rooms = RoomsExtension()


@rooms.ws_route("/chat/{room}", room="{room}")  # what RoomsSettings says
async def chat(room: str, message: Incoming[str], manager: ManagerDep) -> None:
    await manager.broadcast_to_room(room, message)


@rooms.ws_route(
    "/prices",
    room="prices",
    limits=Limits(overflow=Overflow.DROP_OLDEST, outbox_messages=1, messages_per_second=1),
)
async def prices(connection: ConnectionDep) -> None:
    async for _ in connection.messages(str):
        pass  # whoever looks at prices has nothing to say


app = FastAPI()
app.include_router(rooms.router)
