import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fastapi_rooms import Incoming, RoomsExtension

rooms = RoomsExtension()


@rooms.ws_route("/ws")
async def echo(message: Incoming[str]) -> str:
    return message


# --8<-- [start:collector]
@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    gc.collect()
    gc.freeze()  # what is there by now stays, and need not be looked at
    gc.set_threshold(10_000, 50, 10)  # 700, 10, 10 by default
    async with rooms.lifespan(app):
        yield


# --8<-- [end:collector]
app = FastAPI(lifespan=lifespan)
app.include_router(rooms.router)
