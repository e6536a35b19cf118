"""What becomes of an exception that leaves a handler after accept.

FastAPI would let its exception handlers answer with an HTTP response, which an accepted WebSocket cannot carry: the
client would get 1006 and the operator two tracebacks. So the app's own handlers are called here, what they return is
dropped, and the client gets a close code.
"""

import inspect
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocket

from fastapi_rooms.domain.close_codes import CloseCode, check_close
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.engine.manager import ConnectionManager

logger = logging.getLogger("fastapi_rooms")

# Where FastAPI keeps the exit stacks of `yield` dependencies, the one that is entered first at the front.
_STACKS = ("fastapi_inner_astack", "fastapi_function_astack")

# Handlers that FastAPI and Starlette install themselves; all answer with what only an unaccepted socket can carry.
_DEFAULTS = frozenset({"fastapi.exception_handlers", "starlette.middleware.exceptions"})


async def end_with_error(
    websocket: WebSocket, manager: ConnectionManager, connection: Connection, error: Exception
) -> None:
    """Close the connection of a handler that raised, after the app's own exception handler has had its say.

    Raises:
        Exception: The error, or what a `yield` dependency made of it, if no exception handler takes it.
    """
    if _find_handler(websocket, error) is None:
        # Nobody else will close it, so it is closed before the dependencies clean up, as it is without an error.
        await _close(manager, connection, error)
    changed = await _clean_up(websocket, error)
    try:
        if changed is not None and not await _handle(websocket, changed):
            raise changed
    finally:
        await _close(manager, connection, changed)


def _find_handler(websocket: WebSocket, error: Exception) -> Callable[[WebSocket, Exception], Any] | None:
    """Return the exception handler that the app itself registered for this error, as Starlette would find it."""
    by_class, by_status = websocket.scope.get("starlette.exception_handlers", ({}, {}))
    handler = by_status.get(error.status_code) if isinstance(error, HTTPException) else None
    for kind in type(error).__mro__:
        handler = handler or by_class.get(kind)
    return None if getattr(handler, "__module__", None) in _DEFAULTS else handler


async def _clean_up(websocket: WebSocket, error: Exception) -> Exception | None:
    """Let the route's `yield` dependencies see the error now, as FastAPI does when it leaves the endpoint.

    Returns what they made of it; None if they swallowed it.
    """
    stack = AsyncExitStack()
    for key in _STACKS:
        dependencies = websocket.scope.get(key)
        if isinstance(dependencies, AsyncExitStack):
            await stack.enter_async_context(dependencies.pop_all())
    try:
        swallowed = await stack.__aexit__(type(error), error, error.__traceback__)
    except Exception as changed:  # noqa: BLE001 - whatever they raise instead takes the place of the error
        return changed
    return None if swallowed else error


async def _handle(websocket: WebSocket, error: Exception) -> bool:
    """Call the app's exception handler; return whether there is one, or FastAPI has one that we stand in for."""
    handler = _find_handler(websocket, error)
    if handler is None:
        if isinstance(error, HTTPException):
            logger.warning(
                "HTTPException %s was raised after accept, where it cannot become a response: closed with 1011",
                error.status_code,
            )
        return isinstance(error, HTTPException | WebSocketException)
    if inspect.iscoroutinefunction(handler):
        await handler(websocket, error)
    else:
        await run_in_threadpool(handler, websocket, error)
    return True


async def _close(manager: ConnectionManager, connection: Connection, error: Exception | None) -> None:
    """Close with the code that fits the error, and wait until the close frame is written or the peer given up."""
    code, reason = int(CloseCode.INTERNAL_ERROR), ""
    if isinstance(error, WebSocketException):
        try:
            code, reason = check_close(error.code, error.reason)
        except ConfigurationError as invalid:
            logger.error("a WebSocketException was raised with a code that may not be sent: %s", invalid)  # noqa: TRY400
    await manager.close(connection, code, reason)
    await manager.closed(connection)
