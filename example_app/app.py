"""The app: log-in, the page, an announcement by HTTP, and one WebSocket per tab.

One process is all, unless `EXAMPLE_REDIS_URL` says where many nodes meet; `example_app.cluster` starts two that do.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse, JSONResponse

from example_app import bot, chat
from example_app.headers import SecurityHeaders
from example_app.here import Here, HereDep
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
from fastapi_rooms import (
    BackendUnavailable,
    CloseCode,
    ConnectionDep,
    Gap,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
    health_router,
)

STATIC = Path(__file__).parent / "static"

REDIS_URL = os.environ.get("EXAMPLE_REDIS_URL")


async def tell_missed(gap: Gap) -> None:
    await app.state.here.tell_missed(gap)


rooms = RoomsExtension(REDIS_URL, settings=RoomsSettings(key_prefix="example"), on_gap=tell_missed)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if REDIS_URL and not os.environ.get("EXAMPLE_SECRET"):
        raise RuntimeError(
            "EXAMPLE_REDIS_URL joins many nodes, which have to trust each other's cookies: set EXAMPLE_SECRET"
        )
    app.state.started_at = time.monotonic()
    app.state.here = Here(rooms.manager)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(app.state.here.watch())
        yield
        watching.cancel()


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


@app.exception_handler(BackendUnavailable)
async def on_unavailable(_request: Request, _error: BackendUnavailable) -> JSONResponse:
    return JSONResponse({"detail": "Other nodes are out of reach: only the tabs of this node were told."}, 503)


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
async def login(wanted: Login, request: Request, response: Response, here: HereDep) -> User:
    """Give out an identity. Whoever has one and asks for the same name again keeps it."""
    user = find_user(request)
    if user is None or user.name != wanted.name:
        if here.is_taken(wanted.name):
            raise HTTPException(409, f"{wanted.name} is here already: choose another name.")
        user = new_user(wanted.name)
    remember(response, user, secure=request.url.scheme == "https")
    return user


@app.post("/logout", dependencies=[Depends(refuse_foreign_pages)])
async def logout(user: UserDep, response: Response, manager: ManagerDep) -> dict[str, bool]:
    """Forget an identity and close all its tabs; return whether those on other nodes were closed, too."""
    forget(response)
    try:
        await manager.close_user(user.id, CloseCode.REVOKED, "logged out")
    except BackendUnavailable:
        return {"everywhere": False}
    return {"everywhere": True}


@app.post("/announce", dependencies=[Depends(refuse_foreign_pages)])
async def announce(announcement: Announcement, user: UserDep, manager: ManagerDep) -> dict[str, int]:
    """Tell everybody something; return how many connections of this node it was handed to."""
    return {"reached": await manager.broadcast(Announced(sender=user, text=announcement.text))}


@rooms.ws_route(
    "/ws",
    user_id=get_user_id,
    metadata=get_metadata,
    dependencies=[Depends(chat.attend)],
)
async def talk(
    message: Incoming[FromPage],
    connection: ConnectionDep,
    here: HereDep,
    started_at: Annotated[float, Depends(get_started_at)],
) -> AsyncIterator[Word | Refused]:
    """Serve one tab; called for one message after the other. What it yields goes to that tab alone."""
    if not isinstance(message, Ask):
        refused = await chat.act(message, connection, here)
        if refused is not None:
            yield refused
    elif message.room not in connection.rooms:
        yield Refused(reason=f"You are not in {message.room}: open the room first.", key=message.key)
    else:
        async for word in bot.answer(message, here, time.monotonic() - started_at):
            yield word


app.include_router(rooms.router)
app.include_router(health_router(rooms))
