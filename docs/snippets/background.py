import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI

from fastapi_rooms import BackendUnavailable, ConnectionDep, RoomsExtension

rooms = RoomsExtension()


async def tell_prices() -> None:
    price = 100
    while True:
        with suppress(BackendUnavailable):  # this node's members have it
            await rooms.manager.broadcast_to_room("prices", {"price": price})
        price += 1
        await asyncio.sleep(0.1)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
    async with rooms.lifespan(app) as state, asyncio.TaskGroup() as tasks:
        prices = tasks.create_task(tell_prices())
        yield state
        prices.cancel()


app = FastAPI(lifespan=lifespan)


@rooms.ws_route("/prices", room="prices")
async def prices(connection: ConnectionDep) -> None:
    async for _ in connection.messages(str):
        pass  # nothing is expected from the client; this waits until it is gone


app.include_router(rooms.router)
