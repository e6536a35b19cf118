from fastapi import FastAPI

from fastapi_rooms import Incoming, RoomsExtension, RoomsSettings

settings = RoomsSettings(allowed_origins=["https://chat.example"])
rooms = RoomsExtension(settings=settings)


@rooms.ws_route("/ws")
async def talk(message: Incoming[str]) -> str:
    return message


app = FastAPI()
app.include_router(rooms.router)
