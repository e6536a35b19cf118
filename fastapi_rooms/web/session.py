"""One client from accept to the end: run the handler, close, clean up once."""

import asyncio
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.endings import close, end_with_error, end_without_error
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

    try:
        try:
            async with attendance:
                reader.call_at_end(on_end)
                try:
                    await handler.run(connection, manager, values)
                finally:
                    reader.call_at_end(None)
        except TimeoutError:
            if not attendance.expired():
                raise
        except WebSocketDisconnect:
            pass  # the handler used the WebSocket itself and learned from it that the client is gone
    except Exception as error:  # noqa: BLE001 - whatever a handler raises
        await end_with_error(websocket, manager, connection, error)
    except asyncio.CancelledError:
        # The server is stopping, or the handler awaited something that was cancelled.
        task = asyncio.current_task()
        is_stopping = task is not None and task.cancelling()
        await manager.close(connection, CloseCode.SERVICE_RESTART if is_stopping else CloseCode.INTERNAL_ERROR)
        raise
    except BaseException:
        await close(websocket, manager, connection, CloseCode.INTERNAL_ERROR)
        raise
    else:
        await end_without_error(websocket, manager, connection)
    finally:
        manager.disconnect(connection)
