import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Cookie, Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel

from fastapi_rooms import (
    Connection,
    ConnectionDep,
    Identity,
    Incoming,
    ManagerDep,
    RoomsExtension,
)

rooms = RoomsExtension()

# --8<-- [start:cookie]
sessions = {"c2VjcmV0": "ann"}


async def user_from_cookie(session: Annotated[str | None, Cookie()] = None) -> str:
    if session is None or session not in sessions:
        raise HTTPException(401, "log in first")
    return sessions[session]


@rooms.ws_route("/cookie", user_id=user_from_cookie)
async def with_cookie(message: Incoming[str], connection: ConnectionDep) -> str:
    return f"{connection.user_id} said {message}"


# --8<-- [end:cookie]

# --8<-- [start:header]
tokens = {"t0k3n": "robot-7"}


async def user_from_header(authorization: Annotated[str, Header()] = "") -> str:
    for token, user_id in tokens.items():
        expected = f"Bearer {token}"
        if secrets.compare_digest(expected.encode(), authorization.encode()):
            return user_id
    raise HTTPException(401, "unknown token", {"WWW-Authenticate": "Bearer"})


@rooms.ws_route("/header", user_id=user_from_header)
async def with_header(message: Incoming[str], connection: ConnectionDep) -> str:
    return f"{connection.user_id} said {message}"


# --8<-- [end:header]

# --8<-- [start:room]
members = {"staff": {"ann"}}


async def allowed_room(
    room_id: str,
    user_id: Annotated[str, Depends(user_from_cookie)],
) -> str:
    if user_id not in members.get(room_id, set()):
        raise HTTPException(403, "you are not a member of this room")
    return f"private:{room_id}"


async def device(user_agent: Annotated[str, Header()] = "") -> dict[str, Any]:
    return {"user_agent": user_agent}


@rooms.ws_route(
    "/private/{room_id}",
    room=allowed_room,
    user_id=user_from_cookie,
    metadata=device,
)
async def private(message: Incoming[str], connection: ConnectionDep) -> list[str]:
    return sorted(connection.rooms)


# --8<-- [end:room]

# --8<-- [start:expiry]
logins = {"c2VjcmV0": ("ann", datetime.now(UTC) + timedelta(hours=8))}


async def login(session: Annotated[str | None, Cookie()] = None) -> Identity:
    if session is None or session not in logins:
        raise HTTPException(401, "log in first")
    user_id, expires_at = logins[session]
    return Identity(user_id, expires_at)


class Renew(BaseModel):
    type: Literal["renew"]
    token: str


@rooms.ws_route("/expiring", user_id=login)
async def expiring(message: Incoming[Renew], connection: ConnectionDep, manager: ManagerDep) -> str:
    user_id, expires_at = logins.get(message.token, (None, None))
    if user_id == connection.user_id:
        await manager.refresh(connection, expires_at)
    return f"until {connection.expires_at:%H:%M}"


# --8<-- [end:expiry]


# --8<-- [start:join]
async def members_of(user_id: Annotated[str, Depends(user_from_cookie)]) -> set[str]:
    return {room for room, users in members.items() if user_id in users}


async def may_join(
    connection: Connection,
    room: str,
    allowed: Annotated[set[str], Depends(members_of)],
) -> bool:
    return room in allowed


class Enter(BaseModel):
    type: Literal["enter"]
    room: str


@rooms.ws_route("/rooms", user_id=user_from_cookie, authorize_join=may_join)
async def enter(message: Incoming[Enter], connection: ConnectionDep, manager: ManagerDep) -> str:
    await manager.join_room(connection, message.room)
    return f"you are in {message.room}"


# --8<-- [end:join]

app = FastAPI()
app.include_router(rooms.router)
