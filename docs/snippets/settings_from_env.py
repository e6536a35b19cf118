from fastapi import FastAPI

from fastapi_rooms import RoomsExtension, RoomsSettings

rooms = RoomsExtension(settings=RoomsSettings.from_env())
app = FastAPI(lifespan=rooms.lifespan)


@app.get("/send-timeout")
async def send_timeout() -> float:
    return rooms.manager.settings.send_timeout
