"""One client from accept to the end: connect, run the handler, close, clean up once."""

import asyncio
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.failures import end_with_error
from fastapi_rooms.web.handlers import Handler


async def serve(
    websocket: WebSocket,
    manager: ConnectionManager,
    handler: Handler,
    values: dict[str, Any],
    *,
    room: str | None,
    user_id: str | None,
    metadata: dict[str, Any] | None,
) -> None:
    """Serve a client whose dependencies are solved."""
    try:
        connection = await manager.connect(websocket, room, user_id, metadata)
    except OSError:
        return  # the client went during the handshake
    try:
        await _run_handler(manager, handler, connection, values)
    except Exception as error:  # noqa: BLE001 - whatever a handler raises
        await end_with_error(websocket, manager, connection, error)
    except asyncio.CancelledError:
        await manager.close(connection, CloseCode.SERVICE_RESTART)  # the server is stopping
        raise
    else:
        await manager.close(connection, CloseCode.NORMAL)
        await manager.closed(connection)
    finally:
        manager.disconnect(connection)


async def _run_handler(
    manager: ConnectionManager, handler: Handler, connection: Connection, values: dict[str, Any]
) -> None:
    """Run the handler. When the client goes, a handler that is busy may go on for the grace time."""
    loop = asyncio.get_running_loop()
    grace = manager.settings.disconnect_grace
    reader = manager.reader(connection)
    attendance = asyncio.timeout(None)
    try:
        async with attendance:
            reader.call_at_end(lambda: attendance.reschedule(loop.time() + grace))
            try:
                await handler.run(connection, manager, values)
            finally:
                reader.call_at_end(None)
    except TimeoutError:
        if not attendance.expired():
            raise
    except WebSocketDisconnect:
        return  # the handler used the WebSocket itself and learned from it that the client is gone
