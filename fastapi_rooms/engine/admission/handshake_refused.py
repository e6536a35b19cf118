"""Telling a client that it is not let in."""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException, WebSocketException
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.close_codes import CloseCode, check_close
from fastapi_rooms.domain.connection import SUBPROTOCOL_KEY
from fastapi_rooms.domain.errors import NotConnectedError, RoomsError
from fastapi_rooms.domain.refusal import HANDSHAKE_ANSWERS, Refusal, close_code_of
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.outbound.wire_choice import limit_reading_of

logger = logging.getLogger("fastapi_rooms")

F = TypeVar("F", bound=Callable[..., Any])

EXCEPTION_HANDLERS = "starlette.exception_handlers"
"""Where a scope has the app's exception handlers: those by class, those by status."""
REFUSE_BY_CLOSE_KEY = "fastapi_rooms.refuse_by_close"
"""Where a scope has the setting, once its HTTP origin was found allowed: nobody else is accepted to be refused."""
_DEFAULTS = frozenset({"fastapi.exception_handlers", "starlette.middleware.exceptions"})
_denials_said = Seldom(math.inf)
_stand_for_default: list[object] = []
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
    by_class, _ = websocket.scope.get(EXCEPTION_HANDLERS, ({}, {}))
    first = next((by_class[kind] for kind in HandshakeRefused.__mro__ if kind in by_class), None)
    if is_default(first):  # the app has nothing to say to it
        by_class[HandshakeRefused] = _answer  # the same answer, but without an error in the log
    raise HandshakeRefused(reason, retry_after, challenge)


def is_default(handler: object) -> bool:
    """Return whether an exception handler is FastAPI's or Starlette's own, or one of ours that stands for it."""
    return getattr(handler, "__module__", None) in _DEFAULTS or handler in _stand_for_default


def stand_for_default(handler: F) -> F:
    """Take note that an exception handler of this package stands for FastAPI's own."""
    _stand_for_default.append(handler)
    return handler


async def _answer(websocket: WebSocket, error: HandshakeRefused) -> Response | None:
    """Answer as FastAPI does."""
    answer = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    return await answer_denied(websocket, answer, error.detail, error.reason)


async def answer_denied(
    websocket: WebSocket, answer: Response, detail: object, reason: Refusal | None = None
) -> Response | None:
    """Return the answer to a handshake, or accept and close, as `refuse_by_close` has it.

    Where the server knows of no such answers, it is closed unaccepted otherwise, which is a bare 403. It waits for the
    server: uvicorn logs an error if the app returns before it has sent.

    Args:
        websocket: Whose.
        answer: The answer.
        detail: What it says, if that is a text.
        reason: Why, if it is one of ours.
    """
    is_known = _DENIAL in (websocket.scope.get("extensions") or {})
    policy = websocket.scope.get(REFUSE_BY_CLOSE_KEY)
    code = close_code_of(answer.status_code, reason)
    if code is not None and (policy == "always" or (policy == "auto" and not is_known)):
        await _accept_and_close(websocket, code, _in_words(answer, detail))
        return None
    if not is_known:
        if _denials_said.is_due(0):
            logger.info(
                "this server can answer a handshake with 403 alone: a refusal with %d, and its Retry-After and body, "
                'do not reach the client. RoomsSettings(refuse_by_close="auto") tells by a close code (said once)',
                answer.status_code,
            )
        await websocket.close()
        return None
    answer.background = BackgroundTask(_let_the_server_send)
    return answer


def _in_words(answer: Response, detail: object) -> str:
    """Return the reason of a close frame in place of an answer."""
    later = answer.headers.get("Retry-After", "")
    words = [detail if isinstance(detail, str) else "", f"Retry after {later} s." if later.isdecimal() else ""]
    return " ".join(filter(None, words))


async def _accept_and_close(websocket: WebSocket, code: CloseCode, reason: str) -> None:
    try:
        await websocket.accept(_selected(websocket))
        await websocket.close(*check_close(code, reason))
        limit_reading_of(websocket)
    except Exception as error:  # noqa: BLE001 - whatever a server raises: the client went meanwhile
        logger.debug("a handshake could not be refused by a close: %r", error)


def _selected(websocket: WebSocket) -> str | None:
    """Return a subprotocol that the client offered, without which browsers hang up by themselves; never a token."""
    offered = [one for one in websocket.scope.get("subprotocols") or () if "bearer." not in one]
    return websocket.scope.get(SUBPROTOCOL_KEY) or next(iter(offered), None)


async def _let_the_server_send() -> None:
    for _ in range(3):
        await asyncio.sleep(0)
