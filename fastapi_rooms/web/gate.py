"""What comes before everything else of a route: refusing who may not connect at all."""

from typing import Annotated

from fastapi import Depends
from starlette.websockets import WebSocket

from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.references import connection_of
from fastapi_rooms.web.dependencies import get_manager


async def gate(websocket: WebSocket, manager: Annotated[ConnectionManager, Depends(get_manager)]) -> None:
    """Refuse foreign HTTP origins, and everybody while the node is being stopped.

    `ConnectionManager.connect` does so, too; here nothing was asked of a database or of Redis yet.

    Raises:
        HandshakeRefused: It is refused.
    """
    manager.check_handshake(websocket)
    connection_of(websocket)  # made before anybody looks at credentials: it counts when somebody is closed meanwhile
