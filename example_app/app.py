"""The app: log-in, the page, an announcement by HTTP, and one WebSocket per tab."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse

from example_app import bot, chat
from example_app.headers import SecurityHeaders
from example_app.identity import (
    Name,
    User,
    UserDep,
    find_user,
    forget,
    get_metadata,
    get_user_id,
    new_user,
    refuse_foreign_pages,
    remember,
)
from example_app.messages import Announced, Ask, FromPage, Refused, Text, Word
from fastapi_rooms import ConnectionDep, Incoming, ManagerDep, RoomsExtension

STATIC = Path(__file__).parent / "static"

LOGGED_OUT = 4501
"""The close code of a log-out. The page takes 4500-4999 as "do not come back by yourself"."""

rooms = RoomsExtension()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.started_at = time.monotonic()
    yield


# No /docs: its page loads scripts from another host, which the Content-Security-Policy forbids.
app = FastAPI(title="fastapi_rooms example", lifespan=lifespan, openapi_url=None)
app.add_middleware(SecurityHeaders)
app.mount("/static", StaticFiles(directory=STATIC), name="example_static")


class Login(BaseModel):
    """The name that somebody wants to go by."""

    name: Name


class Announcement(BaseModel):
    """What everybody shall read."""

    text: Text


async def get_started_at(connection: HTTPConnection) -> float:
    started_at: float = connection.app.state.started_at
    return started_at


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@app.get("/me")
async def me(user: UserDep) -> User:
    return user


@app.post("/login", dependencies=[Depends(refuse_foreign_pages)])
async def login(wanted: Login, request: Request, response: Response, manager: ManagerDep) -> User:
    """Give out an identity. Whoever has one and asks for the same name again keeps it."""
    user = find_user(request)
    if user is None or user.name != wanted.name:
        if chat.is_taken(manager, wanted.name):
            raise HTTPException(409, f"{wanted.name} is here already: choose another name.")
        user = new_user(wanted.name)
    remember(response, user, secure=request.url.scheme == "https")
    return user


@app.post("/logout", status_code=204, dependencies=[Depends(refuse_foreign_pages)])
async def logout(user: UserDep, response: Response, manager: ManagerDep) -> None:
    """Forget an identity and close all its tabs."""
    forget(response)
    await manager.close_user(user.id, LOGGED_OUT, "logged out")


@app.post("/announce", dependencies=[Depends(refuse_foreign_pages)])
async def announce(announcement: Announcement, user: UserDep, manager: ManagerDep) -> dict[str, int]:
    """Tell everybody something; return how many connections it was handed to."""
    return {"reached": await manager.broadcast(Announced(sender=user, text=announcement.text))}


@rooms.ws_route(
    "/ws",
    user_id=get_user_id,
    metadata=get_metadata,
    dependencies=[Depends(refuse_foreign_pages), Depends(chat.tell_rooms_at_the_end)],
)
async def talk(
    message: Incoming[FromPage],
    connection: ConnectionDep,
    manager: ManagerDep,
    started_at: Annotated[float, Depends(get_started_at)],
) -> AsyncIterator[Word | Refused]:
    """Serve one tab; called for one message after the other. What it yields goes to that tab alone."""
    if not isinstance(message, Ask):
        refused = await chat.act(message, connection, manager)
        if refused is not None:
            yield refused
    elif message.room not in connection.rooms:
        yield Refused(reason=f"You are not in {message.room}: open the room first.", key=message.key)
    else:
        async for word in bot.answer(message, manager, time.monotonic() - started_at):
            yield word


app.include_router(rooms.router)
