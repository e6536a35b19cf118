import os
from typing import Annotated, Literal

from fastapi import FastAPI, Header
from limits import parse
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string

from fastapi_rooms import Connection, Incoming, RoomsExtension

# In production "async+redis://…": what all nodes count in, by the library
# that is installed already.
storage = storage_from_string(
    os.environ.get("LIMITS_URL", "async+memory://"),
    implementation="redispy",
)
window = MovingWindowRateLimiter(storage)
LIMITS = {"connect": parse("3 per minute"), "message": parse("5 per minute")}


async def limiter(connection: Connection, action: Literal["connect", "message"]) -> bool:
    return await window.hit(LIMITS[action], action, connection.user_id or "nobody")


rooms = RoomsExtension(limiter=limiter)


async def who(x_name: Annotated[str, Header()] = "nobody") -> str:
    return x_name


@rooms.ws_route("/ws", user_id=who)
async def echo(message: Incoming[str]) -> str:
    return message


app = FastAPI()
app.include_router(rooms.router)
