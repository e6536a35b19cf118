"""What becomes of the app's own no before accept: an `HTTPException` of a dependency, a parameter that is not valid.

The app's exception handlers answer both. But uvicorn logs an ERROR for each stranger who is refused with an HTTP
status, since the app has returned before the server has sent the answer, and a parameter leaves no word of what was
wrong. So `Answering` stands around the handlers and waits for the server, and here it is counted and said.
"""

import asyncio
import logging
from typing import Any

from fastapi.exceptions import WebSocketRequestValidationError
from starlette.websockets import WebSocket

from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.admission.handshake_refused import NOTE_KEY, HandshakeRefused, take_over_answers
from fastapi_rooms.engine.references import SCOPE_KEY
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.dependencies import find_manager

logger = logging.getLogger("fastapi_rooms")

_invalid_said = Seldom()  # of the process: clients decide how often they come with nonsense


def note_answers(websocket: WebSocket) -> None:
    """See to it that what a dependency refuses before accept is answered well, counted and told."""
    take_over_answers(websocket)
    websocket.scope[NOTE_KEY] = _note


def _note(websocket: WebSocket, error: Exception, by_response: bool) -> None:  # noqa: FBT001 - called from one place
    if isinstance(error, WebSocketRequestValidationError):
        _count(websocket, Refusal.PARAMETERS)
        if _invalid_said.is_due(asyncio.get_running_loop().time()):
            wrong = "; ".join(f"{_place(one)}: {one.get('msg')}" for one in error.errors()[:5])
            logger.info("refused a handshake on %.200r, %.500s (said once a minute)", websocket.scope["path"], wrong)
    elif by_response and not isinstance(error, HandshakeRefused):  # which is counted where it is raised
        _count(websocket, Refusal.APP)


def _place(one: Any) -> str:
    """Return where a value was looked for, and under which name: `query.room_id`."""
    return ".".join(str(part) for part in one.get("loc", ()))


def _count(websocket: WebSocket, reason: Refusal) -> None:
    """Count it where the route is one of ours: its first dependency has made the connection."""
    manager = find_manager(websocket)
    if manager is not None and SCOPE_KEY in websocket.scope:
        sessions_of(manager).note_refusal(websocket, reason)
