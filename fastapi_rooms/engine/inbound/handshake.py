"""Answering the WebSocket handshake."""

from collections.abc import Iterable

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.errors import NotConnectedError

SUBPROTOCOL_KEY = "fastapi_rooms.subprotocol"
"""Where a dependency leaves the subprotocol to select, in the ASGI scope; None or nothing: none."""


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
        chosen = websocket.scope.get(SUBPROTOCOL_KEY) if subprotocol is None else subprotocol
        await websocket.accept(subprotocol=chosen, headers=headers)
