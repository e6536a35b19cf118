"""Telling a client that it is not let in."""

import asyncio
import inspect
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.close_codes import CloseCode, check_close
from fastapi_rooms.domain.connection import SUBPROTOCOL_KEY
from fastapi_rooms.domain.errors import NotConnectedError, RoomsError
from fastapi_rooms.domain.refusal import HANDSHAKE_ANSWERS, Refusal, close_code_of
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.outbound.wire_choice import limit_reading_of

logger = logging.getLogger("fastapi_rooms")

EXCEPTION_HANDLERS = "starlette.exception_handlers"
"""Where a scope has the app's exception handlers: those by class, those by status."""
REFUSE_BY_CLOSE_KEY = "fastapi_rooms.refuse_by_close"
"""Where a scope has the setting, once its HTTP origin was found allowed: nobody else is accepted to be refused."""
NOTE_KEY = "fastapi_rooms.note_no"
"""Where a scope has whom to tell that the app has said no, `(websocket, error, by_response)`; nobody if it has none."""
_DEFAULTS = frozenset({"fastapi.exception_handlers", "starlette.middleware.exceptions"})
_BY_STARLETTE = frozenset({HTTPException, WebSocketException})  # for which it has handlers that nobody has registered
_FORBIDDEN = 403
_denials_said = Seldom(math.inf)
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
    take_over_answers(websocket)
    raise HandshakeRefused(reason, retry_after, challenge)


class Answering:
    """Stands around an exception handler of an app, and sees to how its answer to a handshake is sent.

    The handler is asked first, whoever has made it: FastAPI, the app, or a tool for errors that stands around either.

    Args:
        handler: The handler.
        is_default: Whether it is FastAPI's or Starlette's own, or stands around that.
    """

    def __init__(self, handler: Callable[..., Any], *, is_default: bool) -> None:
        self.handler = handler
        self.is_default = is_default

    async def __call__(self, connection: HTTPConnection, error: Exception) -> Any:
        """Return what the handler makes of an error; if it answers a handshake, such that the server can send it."""
        if not isinstance(connection, WebSocket) or not _is_unanswered(connection):
            return await call_handler(self.handler, connection, error)
        answer = await call_handler(self.handler, connection, error)
        is_response = isinstance(answer, Response) and _is_unanswered(connection)  # not if it has answered by itself
        note = connection.scope.get(NOTE_KEY)
        if note is not None:
            note(connection, error, is_response)
        if not is_response:
            return answer
        detail = error.detail if isinstance(error, HTTPException) else None
        reason = error.reason if isinstance(error, HandshakeRefused) else None
        return await _answer_denied(connection, answer, detail, reason)


def take_over_answers(websocket: WebSocket) -> None:
    """Stand around all exception handlers of this app, from now on. They are the app's, so this is done once."""
    registered = getattr(websocket.scope.get("app"), "exception_handlers", {})
    for handlers in websocket.scope.get(EXCEPTION_HANDLERS, ()):
        for kind, handler in handlers.items():
            if not isinstance(handler, Answering):
                # What the app has registered counts: tools such as Sentry put theirs around each, the defaults, too.
                own = registered.get(kind)
                by_default = kind in _BY_STARLETTE if own is None else is_default(own)
                handlers[kind] = Answering(handler, is_default=by_default or is_default(handler))


def is_default(handler: object) -> bool:
    """Return whether an exception handler is FastAPI's or Starlette's own, or stands around that."""
    if isinstance(handler, Answering):
        return handler.is_default
    return getattr(handler, "__module__", None) in _DEFAULTS


async def call_handler(handler: Callable[..., Any], connection: HTTPConnection, error: Exception) -> Any:
    """Return what an exception handler returns; one without `async` runs in a thread."""
    if _is_async(handler):
        return await handler(connection, error)
    return await run_in_threadpool(handler, connection, error)


def _is_async(handler: Any) -> bool:
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def _is_unanswered(websocket: WebSocket) -> bool:
    return websocket.application_state is WebSocketState.CONNECTING


async def _answer_denied(
    websocket: WebSocket, answer: Response, detail: object, reason: Refusal | None
) -> ASGIApp | None:
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
        # A 403 that becomes a bare one loses no more than its body.
        if answer.status_code != _FORBIDDEN and _denials_said.is_due(0):
            logger.info(
                "this server can answer a handshake with 403 alone: a refusal with %d, and its Retry-After and body, "
                'do not reach the client. RoomsSettings(refuse_by_close="auto") tells by a close code (said once)',
                answer.status_code,
            )
        await websocket.close()
        return None
    return partial(_send_and_wait, answer)


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


async def _send_and_wait(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    await answer(scope, receive, send)
    for _ in range(3):
        await asyncio.sleep(0)
