"""What an app's own WebSocket says once its connection has a reader.

Two that receive steal from each other: an app that called `websocket.receive_text()` would get every second message,
and the reader the others, without a word. So the WebSocket becomes one that says so at the first call. Its class is
changed and not its attributes, which would cost memory in every connection.
"""

from collections.abc import Iterable
from typing import NoReturn

from starlette.websockets import WebSocket

from fastapi_rooms.domain.errors import ConfigurationError


class ClaimedWebSocket(WebSocket):
    """A WebSocket whose messages the reader of its connection takes."""

    async def receive(self) -> NoReturn:
        """Refuse: `receive_text` and all others come through here.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            "the messages of this connection are read for you, so the WebSocket cannot receive: take "
            "`message: Incoming[str]` as a parameter of the handler, or iterate with "
            "`async for message in connection.messages(str)` (or bytes, or a model)"
        )

    async def accept(
        self,
        subprotocol: str | None = None,  # noqa: ARG002 - as Starlette has it
        headers: Iterable[tuple[bytes, bytes]] | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """Refuse: it is accepted.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            "this WebSocket is accepted already: leave `websocket.accept()` out. For a subprotocol there is "
            "ws_route(subprotocols=[...]); for headers of your own, write an endpoint with `await "
            "manager.connect(websocket, headers=...)`"
        )


def claim(websocket: WebSocket) -> None:
    """Let a WebSocket say that it cannot receive. One of a class of the app's own is left as it is."""
    if type(websocket) is WebSocket:
        websocket.__class__ = ClaimedWebSocket
