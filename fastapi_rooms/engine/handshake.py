"""Answering the WebSocket handshake."""

from collections.abc import Iterable

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.errors import NotConnectedError


async def accept(websocket: WebSocket, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
    """Accept a WebSocket unless the app has done so.

    Raises:
        NotConnectedError: Either side has ended it.
        Exception: Whatever the server raises when the client went meanwhile.
    """
    if WebSocketState.DISCONNECTED in (websocket.application_state, websocket.client_state):
        raise NotConnectedError("this WebSocket has ended: a client that comes again is a new WebSocket")
    if websocket.application_state is WebSocketState.CONNECTING:
        await websocket.accept(subprotocol=subprotocol, headers=headers)
