import os

from fastapi import FastAPI
from redis.asyncio import Redis

from fastapi_rooms import ManagerDep, RoomsExtension

# --8<-- [start:client]
client = Redis(
    host=os.environ["REDIS_HOST"],
    port=int(os.environ["REDIS_PORT"]),
    username="rooms",
    password=os.environ["REDIS_PASSWORD"],
)
rooms = RoomsExtension(client, required=True)
# --8<-- [end:client]
app = FastAPI()
app.include_router(rooms.router)


@app.post("/announce")
async def announce(text: str, manager: ManagerDep) -> int:
    return await manager.broadcast(text)
