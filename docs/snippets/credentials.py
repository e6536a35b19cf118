import os
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fastapi_rooms import BearerSubprotocol, ConnectionDep, Incoming, RoomsExtension, Tickets

rooms = RoomsExtension(os.environ.get("REDIS_URL"))
app = FastAPI(lifespan=rooms.lifespan)

users = {"t0k3n": "ann"}


async def logged_in(authorization: Annotated[str, Header()] = "") -> str:
    token = authorization.removeprefix("Bearer ")
    if token not in users:
        raise HTTPException(401, "log in first")
    return users[token]


# --8<-- [start:ticket]
tickets = Tickets()


@app.post("/ticket")
async def new_ticket(
    request: Request,
    user_id: Annotated[str, Depends(logged_in)],  # as your other routes know it
) -> str:
    return await tickets.issue(request, user_id)


@rooms.ws_route("/with-ticket", user_id=tickets.redeem)
async def with_ticket(message: Incoming[str], connection: ConnectionDep) -> str:
    return f"{connection.user_id} said {message}"


# --8<-- [end:ticket]

# --8<-- [start:bearer]
bearer = BearerSubprotocol()


async def token_user(token: Annotated[str, Depends(bearer)]) -> str:
    if token not in users:  # or decode your JWT
        raise HTTPException(401, "unknown token")
    return users[token]


@rooms.ws_route("/with-token", user_id=token_user)
async def with_token(message: Incoming[str], connection: ConnectionDep) -> str:
    return f"{connection.user_id} said {message}"


# --8<-- [end:bearer]

# --8<-- [start:either]
in_header = HTTPBearer(auto_error=False)
in_subprotocol = BearerSubprotocol(supported=["chat.v1"], auto_error=False)


async def any_user(
    header: Annotated[HTTPAuthorizationCredentials | None, Depends(in_header)],
    subprotocol: Annotated[str | None, Depends(in_subprotocol)],
) -> str:
    token = header.credentials if header else subprotocol
    if token is None or token not in users:
        raise HTTPException(401, "unknown token")
    return users[token]


@rooms.ws_route("/either", user_id=any_user)
async def either(message: Incoming[str], connection: ConnectionDep) -> str:
    return f"{connection.user_id} said {message}"


# --8<-- [end:either]

app.include_router(rooms.router)
