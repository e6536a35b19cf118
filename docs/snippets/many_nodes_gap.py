import os

from fastapi import FastAPI

from fastapi_rooms import ConnectionDep, Gap, RoomsExtension


# --8<-- [start:gap]
async def start_over(gap: Gap) -> None:
    """Have the clients of this node fetch again what they may have missed."""
    notice = {"type": "reload", "since": gap.since}
    for room in gap.rooms:
        for member in rooms.manager.get_room_members(room):
            await member.send(notice)


rooms = RoomsExtension(os.environ["REDIS_URL"], on_gap=start_over)
# --8<-- [end:gap]


@rooms.ws_route("/ws/{room}", room="{room}")
async def listen(connection: ConnectionDep) -> None:
    async for _ in connection.messages(str):
        pass


app = FastAPI()
app.include_router(rooms.router)
