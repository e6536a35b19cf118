from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fastapi_rooms import Incoming, ManagerDep, RoomsExtension, RoomsSettings

# --8<-- [start:two]
rooms = RoomsExtension()
partners = RoomsExtension(settings=RoomsSettings(max_connections=100))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with rooms.lifespan(app), partners.lifespan(partner_app):
        yield


@rooms.ws_route("/ws", room="hall")
async def chat(message: Incoming[str], manager: ManagerDep) -> None:
    await manager.broadcast_to_room("hall", message)


@partners.ws_route("/ws", room="hall")
async def partner_chat(message: Incoming[str], manager: ManagerDep) -> None:
    await manager.broadcast_to_room("hall", f"partners: {message}")


partner_app = FastAPI()
partner_app.include_router(partners.router)

app = FastAPI(lifespan=lifespan)
app.include_router(rooms.router)
app.mount("/partners", partner_app)
# --8<-- [end:two]
