"""What becomes of the app's own no before accept: an `HTTPException` of a dependency, a parameter that is not valid.

FastAPI answers both well. But uvicorn logs an ERROR for each stranger who is refused with an HTTP status, since the app
has returned before the server has sent the answer, and the other leaves no word of what was wrong. So FastAPI's own
handlers are replaced by ones that answer the same, wait for the server, and count. Handlers that the app has registered
stay as they are.
"""

import asyncio
import logging
from typing import Any, cast

from fastapi.exception_handlers import http_exception_handler, websocket_request_validation_exception_handler
from fastapi.exceptions import WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.admission.handshake_refused import (
    EXCEPTION_HANDLERS,
    answer_denied,
    stand_for_default,
)
from fastapi_rooms.engine.references import SCOPE_KEY
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.dependencies import find_manager

logger = logging.getLogger("fastapi_rooms")

_invalid_said = Seldom()  # of the process: clients decide how often they come with nonsense


def take_over_answers(websocket: WebSocket) -> None:
    """Answer in FastAPI's place, from now on and in this app, what a dependency refuses before accept."""
    by_class, _ = websocket.scope.get(EXCEPTION_HANDLERS, ({}, {}))
    if by_class.get(HTTPException) is http_exception_handler:
        by_class[HTTPException] = _answer_http_exception
    if by_class.get(WebSocketRequestValidationError) is websocket_request_validation_exception_handler:
        by_class[WebSocketRequestValidationError] = _answer_invalid


@stand_for_default
async def _answer_http_exception(request: Request | WebSocket, error: HTTPException) -> Response | None:
    answer = await http_exception_handler(cast(Request, request), error)  # which it does not look at
    if not isinstance(request, WebSocket) or request.application_state is not WebSocketState.CONNECTING:
        return answer
    _count(request, Refusal.APP)
    return await answer_denied(request, answer, error.detail)


@stand_for_default
async def _answer_invalid(websocket: WebSocket, error: WebSocketRequestValidationError) -> None:
    if websocket.application_state is WebSocketState.CONNECTING:
        _count(websocket, Refusal.PARAMETERS)
        if _invalid_said.is_due(asyncio.get_running_loop().time()):
            wrong = "; ".join(f"{_place(one)}: {one.get('msg')}" for one in error.errors()[:5])
            logger.info("refused a handshake on %.200r, %.500s (said once a minute)", websocket.scope["path"], wrong)
    await websocket_request_validation_exception_handler(websocket, error)


def _place(one: Any) -> str:
    """Return where a value was looked for, and under which name: `query.room_id`."""
    return ".".join(str(part) for part in one.get("loc", ()))


def _count(websocket: WebSocket, reason: Refusal) -> None:
    """Count it where the route is one of ours: its first dependency has made the connection."""
    manager = find_manager(websocket)
    if manager is not None and SCOPE_KEY in websocket.scope:
        sessions_of(manager).note_refusal(websocket, reason)
