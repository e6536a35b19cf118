"""Answering the WebSocket handshake."""

from collections.abc import Iterable

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.connection import SUBPROTOCOL_KEY
from fastapi_rooms.domain.errors import NotConnectedError


async def accept(websocket: WebSocket, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
    """Accept a WebSocket unless the app has done so.

    Args:
        websocket: The socket.
        subprotocol: What to select; None: what a dependency has chosen, if one has.
        headers: Headers of the answer.

    Raises:
        NotConnectedError: Either side has ended it.
        Exception: Whatever the server raises when the client went meanwhile.
    """
    if WebSocketState.DISCONNECTED in (websocket.application_state, websocket.client_state):
        raise NotConnectedError("this WebSocket has ended: a client that comes again is a new WebSocket")
    if websocket.application_state is WebSocketState.CONNECTING:
        if subprotocol is not None:
            websocket.scope[SUBPROTOCOL_KEY] = subprotocol
        await websocket.accept(subprotocol=websocket.scope.get(SUBPROTOCOL_KEY), headers=headers)
