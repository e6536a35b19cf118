import secrets
from typing import Annotated, Any

from fastapi import Cookie, Depends, FastAPI, Header, HTTPException, WebSocket

from fastapi_rooms import ConnectionDep, Incoming, RoomsExtension

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

# --8<-- [start:origin]
HTTP_ORIGINS = {"https://chat.example"}


async def known_http_origin(websocket: WebSocket) -> None:
    origin = websocket.headers.get("origin")  # a browser always sends it
    if origin is not None and origin not in HTTP_ORIGINS:
        raise HTTPException(403, "this page may not connect")


@rooms.ws_route(
    "/guarded",
    user_id=user_from_cookie,
    dependencies=[Depends(known_http_origin)],
)
async def guarded(message: Incoming[str]) -> str:
    return message


# --8<-- [end:origin]

app = FastAPI()
app.include_router(rooms.router)
