"""How a connection ends when its handler has ended, and what becomes of an exception that leaves it.

FastAPI would let its exception handlers answer with an HTTP response, which an accepted WebSocket cannot carry: the
client would get 1006 and the operator two tracebacks. So the `yield` dependencies are cleaned up here, in FastAPI's
order, the app's own exception handlers are called here, what they return is dropped, and the client gets a close code.
An exception that nobody takes goes on to the server, which logs it.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.close_codes import ABNORMAL, CloseCode, check_close
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConfigurationError, tells_of_end
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.admission.handshake_refused import call_handler, is_default
from fastapi_rooms.engine.lifecycle import TOO_SLOW
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound.failed_write import close_instead
from fastapi_rooms.engine.outbound.wire_choice import limit_reading_of

logger = logging.getLogger("fastapi_rooms")

# Where FastAPI keeps the exit stacks of `yield` dependencies, the one that is entered first at the front.
_STACKS = ("fastapi_inner_astack", "fastapi_function_astack")

ExceptionHandler = Callable[[WebSocket, Exception], Any]


async def end_without_error(
    websocket: WebSocket, manager: ConnectionManager, connection: Connection, said: Seldom
) -> None:
    """Close with 1000, then clean up; `said` decides whether what is noticed then is logged.

    Raises:
        Exception: What a `yield` dependency raised in its cleanup, if no exception handler takes it.
    """
    await close_and_wait(websocket, manager, connection, CloseCode.NORMAL)
    raised = await _clean_up(websocket, None)
    if raised is not None and not await _handle(websocket, raised, said):
        raise raised


async def end_with_error(
    websocket: WebSocket, manager: ConnectionManager, connection: Connection, error: Exception, said: Seldom
) -> None:
    """Close the connection of a handler that raised, after the app's own exception handler has had its say.

    `said` decides whether what is noticed on the way is logged: clients decide how often it happens.

    Raises:
        Exception: The error, or what a `yield` dependency made of it, if no exception handler takes it.
    """
    if _is_default(_find_handler(websocket, error)):
        # Nobody else will close it, so it is closed before the dependencies clean up, as it is without an error.
        await _close_for(websocket, manager, connection, error, said)
    changed = await _clean_up(websocket, error)
    # What was sent before leaves before anything that an exception handler does to the socket.
    await asyncio.sleep(manager.settings.flush_interval / 1000)
    await connection.wait_until_caught_up()
    try:
        if changed is not None and not await _handle(websocket, changed, said):
            raise changed
    finally:
        await _close_for(websocket, manager, connection, changed, said)


async def close_and_wait(
    websocket: WebSocket, manager: ConnectionManager, connection: Connection, code: int, reason: str = ""
) -> None:
    """Close, and wait until the close frame is written or the peer given up."""
    await manager.close(connection, code, reason)
    await connection.wait_until_closed()
    if WebSocketState.DISCONNECTED in (websocket.application_state, websocket.client_state):
        limit_reading_of(websocket)  # the app may have closed it by itself
        return
    # The handler had the manager forget it, so nobody has closed the socket, and nobody watches it. Or it was given up
    # before its close frame had its turn, and its socket is out of reach: it must not take that for an end at which all
    # is well.
    close = Close(code, reason)
    if connection.close_code == ABNORMAL:
        close = close_instead(TOO_SLOW, close)
    elif connection.close_code is not None:
        close = close_instead(TOO_SLOW, Close(connection.close_code, connection.close_reason))
    try:
        async with asyncio.timeout(manager.settings.send_timeout):
            await websocket.close(close.code, close.reason)
        limit_reading_of(websocket)
    except Exception as error:  # noqa: BLE001 - whatever a server raises: the client went, or does not read
        logger.debug("a connection that was forgotten could not be closed: %r", error)


async def _close_for(
    websocket: WebSocket, manager: ConnectionManager, connection: Connection, error: Exception | None, said: Seldom
) -> None:
    """Close with the code that fits the error."""
    code, reason = int(CloseCode.INTERNAL_ERROR), ""
    if isinstance(error, WebSocketException):
        try:
            code, reason = check_close(error.code, error.reason)
        except ConfigurationError as invalid:
            if _is_due(said):
                logger.error(  # noqa: TRY400 - the traceback says nothing
                    "a WebSocketException was raised with a code that may not be sent: %s (said once a minute)", invalid
                )
    await close_and_wait(websocket, manager, connection, code, reason)


async def _clean_up(websocket: WebSocket, error: Exception | None) -> Exception | None:
    """Let the route's `yield` dependencies see the end now, as FastAPI does when it leaves the endpoint.

    Returns the error, or what they made of it; None if there is none or they swallowed it.
    """
    stack = AsyncExitStack()
    for key in _STACKS:
        dependencies = websocket.scope.get(key)
        if isinstance(dependencies, AsyncExitStack):  # pragma: no branch - FastAPI sets both
            await stack.enter_async_context(dependencies.pop_all())
    try:
        if error is None:
            await stack.aclose()
            return None
        swallowed = await stack.__aexit__(type(error), error, error.__traceback__)
    except Exception as changed:  # noqa: BLE001 - whatever they raise instead takes the place of the error
        return error if tells_of_end(changed) else changed  # or they said something to a client that has gone
    return None if swallowed else error


async def _handle(websocket: WebSocket, error: Exception, said: Seldom) -> bool:
    """Call the app's exception handler; return whether there is one, or a default one that we stand in for."""
    handler = _find_handler(websocket, error)
    if handler is None:
        return say_if_another_has_ended(websocket, error, said)
    if _is_default(handler):
        if not isinstance(error, WebSocketException) and _is_due(said):
            logger.warning(
                "%s was raised after accept on %.200r, where it cannot become a response: the client was closed (said "
                "once a minute)",
                f"HTTPException {error.status_code}" if isinstance(error, HTTPException) else type(error).__name__,
                websocket.scope["path"],
            )
        if isinstance(error, HTTPException):  # what stands around the default, as Sentry does, hears of it as ever
            await call_handler(handler, websocket, error)
        return True
    await call_handler(handler, websocket, error)
    return True


def say_if_another_has_ended(websocket: WebSocket, error: Exception, said: Seldom) -> bool:
    """Return whether an error of a handler, whose own client is here, tells only that somebody else's has gone.

    That may happen at any time, so it is no failure of the server; but who left something undone should hear of it.
    """
    if not tells_of_end(error):
        return False
    if _is_due(said):
        logger.warning(
            "a handler on %.200r ended early, since it sent to the connection of somebody else, which has ended: call "
            "manager.send_personal there, which returns False then, or catch ConnectionEnded (said once a minute)",
            websocket.scope["path"],
            exc_info=error,
        )
    return True


def _is_due(said: Seldom) -> bool:
    return said.is_due(asyncio.get_running_loop().time())


def _find_handler(websocket: WebSocket, error: Exception) -> ExceptionHandler | None:
    """Return the exception handler for this error, as Starlette would find it: in this app, then in the outer one."""
    by_class, by_status = websocket.scope.get("starlette.exception_handlers", ({}, {}))
    outer_app = getattr(websocket.scope.get("router"), "dependency_overrides_provider", None)
    outer = {
        kind: handler
        for kind, handler in getattr(outer_app, "exception_handlers", {}).items()
        if kind not in (Exception, 500)  # those belong to Starlette's middleware for HTTP alone
    }
    status = [error.status_code] if isinstance(error, HTTPException) else []
    kinds: list[object] = [*status, *type(error).__mro__]
    for handlers in ({**by_status, **by_class}, outer):
        for kind in kinds:
            if (handler := handlers.get(kind)) is not None:
                found: ExceptionHandler = handler
                return found
    return None


def _is_default(handler: ExceptionHandler | None) -> bool:
    # Those that FastAPI and Starlette install all answer with what only an unaccepted socket can carry: this module
    # stands in for them.
    return handler is None or is_default(handler)
