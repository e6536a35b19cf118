"""This package as its documentation shows it: the extension and `ws_route`."""

from fastapi import FastAPI

from benchmarks.servers.options import UNLIMITED, Options
from fastapi_rooms import Incoming, ManagerDep, RoomsExtension, RoomsSettings


def make_app(options: Options) -> FastAPI:
    """Return an app with one route of ours."""
    rooms = RoomsExtension(options.redis_url, settings=RoomsSettings(**UNLIMITED, **options.settings))

    @rooms.ws_route("/ws/{room}", room="{room}")
    async def chat(room: str, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(room, message)

    app = FastAPI()
    app.include_router(rooms.router)
    return app
