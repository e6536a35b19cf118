"""One client from accept to the end: run the handler, close, clean up once."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.errors import ConnectionEnded
from fastapi_rooms.engine.admission.admission import AuthorizeJoin
from fastapi_rooms.engine.endings.connection_tasks import says_that_it_is_over
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.attendance import Attendance
from fastapi_rooms.web.handlers import Handler
from fastapi_rooms.web.identity import Identity
from fastapi_rooms.web.outcome import close_and_wait, end_with_error, end_without_error


async def serve(  # noqa: C901 - one frame on purpose, see below
    websocket: WebSocket,
    manager: ConnectionManager,
    room: str | None,
    identity: Identity,
    metadata: Mapping[str, Any] | None,
    authorize_join: AuthorizeJoin | None,
    handler: Handler,
    values: dict[str, Any],
) -> None:
    """Accept a client and serve it. One frame on purpose: each that waits costs memory in every connection.

    Args:
        websocket: The client.
        manager: Who is to hold it.
        room: The room to join.
        identity: Who it is.
        metadata: What the app wants to remember of it.
        authorize_join: Asked before it joins a room.
        handler: Who serves it.
        values: What the handler is called with.
    """
    try:
        connection = await manager.connect(
            websocket,
            room,
            identity.user_id,
            metadata,
            expires_at=identity.expires_at,
            authorize_join=authorize_join,
        )
    except OSError:
        return  # the client went during the handshake
    # Not kept for as long as the connection lives, as all that has a name here is.
    del room, identity, metadata, authorize_join
    attendance = Attendance(sessions_of(manager).reader(connection), manager.settings.disconnect_grace)
    is_absent = False
    try:
        try:
            try:
                await handler.run(connection, manager, values)
            finally:
                is_absent = attendance.leave()
        except asyncio.CancelledError:
            if not is_absent:
                raise
        except WebSocketDisconnect:
            pass  # the handler used the WebSocket itself and learned from it that the client is gone
        except (ConnectionEnded, StopAsyncIteration, RuntimeError, ExceptionGroup) as error:
            if connection.is_open or not says_that_it_is_over(error):  # it was somebody else who has gone
                raise
    except Exception as error:  # noqa: BLE001 - whatever a handler raises
        await end_with_error(websocket, manager, connection, error, handler.end_said)
    except asyncio.CancelledError:
        # The server is stopping, or the handler awaited something that was cancelled.
        task = asyncio.current_task()
        is_stopping = task is not None and task.cancelling()
        await manager.close(connection, CloseCode.SERVICE_RESTART if is_stopping else CloseCode.INTERNAL_ERROR)
        raise
    except BaseException:
        await close_and_wait(websocket, manager, connection, CloseCode.INTERNAL_ERROR)
        raise
    else:
        await end_without_error(websocket, manager, connection, handler.end_said)
    finally:
        manager.disconnect(connection)
