"""Telling a client that it is not let in."""

import asyncio
import math
from typing import NoReturn

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException, WebSocketException
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.errors import NotConnectedError, RoomsError
from fastapi_rooms.domain.refusal import HANDSHAKE_ANSWERS, Refusal

_HANDLERS = "starlette.exception_handlers"  # in the scope: those by class, those by status
_DENIAL = "websocket.http.response"  # the ASGI extension for an HTTP answer to a handshake


class HandshakeRefused(RoomsError, HTTPException):  # noqa: N818 - says what happened
    """A client is not let in. An `HTTPException` of Starlette, so that before accept it is that status to the client.

    For an answer of your own, register an exception handler for this class, or for `HTTPException`.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: Refusal, retry_after: float | None = None, challenge: str | None = None) -> None:
        self.reason = reason
        answer = HANDSHAKE_ANSWERS[reason]
        headers = {}
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        if challenge is not None:
            headers["WWW-Authenticate"] = challenge
        HTTPException.__init__(self, answer.status, answer.detail, headers or None)


def refuse(
    websocket: WebSocket, reason: Refusal, retry_after: float | None = None, challenge: str | None = None
) -> NoReturn:
    """Refuse a handshake, or end a WebSocket that the app has accepted itself.

    Args:
        websocket: Whose.
        reason: Why.
        retry_after: In how many seconds it may be tried again.
        challenge: What kind of credentials are wanted, for `WWW-Authenticate`.

    Raises:
        HandshakeRefused: The handshake is not answered yet.
        WebSocketException: It is; Starlette closes with the code that fits.
        NotConnectedError: It has ended.
    """
    if WebSocketState.DISCONNECTED in (websocket.application_state, websocket.client_state):
        raise NotConnectedError("this WebSocket has ended: a client that comes again is a new WebSocket")
    if websocket.application_state is not WebSocketState.CONNECTING:
        answer = HANDSHAKE_ANSWERS[reason]
        raise WebSocketException(answer.close_code, answer.detail)
    by_class, _ = websocket.scope.get(_HANDLERS, ({}, {}))
    first = next((by_class[kind] for kind in HandshakeRefused.__mro__ if kind in by_class), None)
    if getattr(first, "__module__", None) == "fastapi.exception_handlers":  # the app has nothing to say to it
        by_class[HandshakeRefused] = _answer  # the same answer, but without an error in the log
    raise HandshakeRefused(reason, retry_after, challenge)


async def _answer(websocket: WebSocket, error: HandshakeRefused) -> Response | None:
    """Answer as FastAPI does, then wait for the server: uvicorn logs an error if the app returns before it has sent."""
    if _DENIAL not in websocket.scope.get("extensions", {}):
        await websocket.close()
        return None
    return JSONResponse(
        {"detail": error.detail}, error.status_code, error.headers, background=BackgroundTask(_let_the_server_send)
    )


async def _let_the_server_send() -> None:
    for _ in range(3):
        await asyncio.sleep(0)
