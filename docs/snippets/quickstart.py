# --8<-- [start:imports]
import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import Cookie, FastAPI, HTTPException, Response
from pydantic import BaseModel, Field

from fastapi_rooms import ConnectionDep, Incoming, ManagerDep, RoomsExtension

rooms = RoomsExtension()
app = FastAPI()
# --8<-- [end:imports]

# --8<-- [start:identity]
sessions: dict[str, str] = {}  # session id -> name; a real app has a table


@app.post("/login")
async def login(name: str, response: Response) -> None:
    session = secrets.token_urlsafe()
    sessions[session] = name
    response.set_cookie("session", session, httponly=True, samesite="lax")


async def signed_in(session: Annotated[str | None, Cookie()] = None) -> str:
    name = sessions.get(session or "")
    if name is None:
        raise HTTPException(401, "log in first")
    return name


# --8<-- [end:identity]


# --8<-- [start:messages]
class Say(BaseModel):
    type: Literal["say"]
    text: str = Field(min_length=1, max_length=500)


class Whisper(BaseModel):
    type: Literal["whisper"]
    to: str
    text: str = Field(min_length=1, max_length=500)


FromClient = Annotated[Say | Whisper, Field(discriminator="type")]


class Said(BaseModel):
    type: Literal["said", "whispered"]
    name: str
    text: str


# --8<-- [end:messages]


# --8<-- [start:handler]
@rooms.ws_route("/ws/{room_id}", room="{room_id}", user_id=signed_in)
async def chat(
    room_id: str,
    message: Incoming[FromClient],
    connection: ConnectionDep,
    manager: ManagerDep,
) -> Said | None:
    name = connection.user_id or ""
    if isinstance(message, Whisper):
        whisper = Said(type="whispered", name=name, text=message.text)
        await manager.send_to_user(message.to, whisper)
        return whisper  # what a handler returns goes to the sender
    said = Said(type="said", name=name, text=message.text)
    await manager.broadcast_to_room(room_id, said)
    return None


# --8<-- [end:handler]


# --8<-- [start:http]
class Announcement(BaseModel):
    text: str


@app.post("/announce")
async def announce(announcement: Announcement, manager: ManagerDep) -> int:
    return await manager.broadcast({"type": "announced", "text": announcement.text})


@app.get("/rooms/{room_id}")
async def who_is_here(room_id: str, manager: ManagerDep) -> list[str]:
    members = manager.get_room_members(room_id)
    return sorted({member.user_id or "" for member in members})


# --8<-- [end:http]


# --8<-- [start:stream]
class Question(BaseModel):
    question: str


@rooms.ws_route("/ask", user_id=signed_in)
async def answer(message: Incoming[Question]) -> AsyncIterator[str]:
    for word in f"You asked: {message.question}".split():
        yield word
        await asyncio.sleep(0)  # where a real app waits for its language model


# --8<-- [end:stream]

# --8<-- [start:include]
app.include_router(rooms.router)
# --8<-- [end:include]
