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
    websocket: WebSocket, manager: ConnectionManager, connection: Connection, handler: Handler, values: dict[str, Any]
) -> None:
    """Serve a client that was accepted. One frame on purpose: each that waits costs memory in every connection."""
    loop = asyncio.get_running_loop()
    reader = manager.reader(connection)
    attendance = asyncio.timeout(None)

    def on_end() -> None:
        # Nothing of a handler runs while its next message is read inline; a busy one may go on for the grace time.
        attendance.reschedule(loop.time() + (0 if reader.is_inline else manager.settings.disconnect_grace))

    reader.call_at_end(on_end)
    try:
        try:
            async with attendance:
                try:
                    await handler.run(connection, manager, values)
                finally:
                    reader.call_at_end(None)
        except TimeoutError:
            if not attendance.expired():
                raise
        except WebSocketDisconnect:
            pass  # the handler used the WebSocket itself and learned from it that the client is gone
        await manager.close(connection, CloseCode.NORMAL)
        await manager.closed(connection)
    except Exception as error:  # noqa: BLE001 - whatever a handler raises
        await end_with_error(websocket, manager, connection, error)
    except asyncio.CancelledError:
        await manager.close(connection, CloseCode.SERVICE_RESTART)  # the server is stopping
        raise
    finally:
        manager.disconnect(connection)
