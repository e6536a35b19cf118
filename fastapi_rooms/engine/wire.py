"""How bytes reach one socket.

`AsgiWire` works on every server. Chosen once per connection by `engine.wires.choose_wire`.
"""

from collections.abc import Sequence
from typing import Protocol

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.messages import Close, Message


class Transport(Protocol):
    """What we use of asyncio's and uvloop's transports, which share no base class."""

    def abort(self) -> None:
        """Drop the buffer and end the socket."""
        ...

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the kernel has not taken."""
        ...

    def is_closing(self) -> bool:
        """Return whether it is closed or about to be."""
        ...

    def write(self, data: bytes) -> None:
        """Pass bytes to the kernel, or to the buffer if it takes no more."""
        ...


class Wire(Protocol):
    """The way to one socket. Only its outbox uses it."""

    batch_bytes: int
    """How much to pass to one write; at least one message is passed."""

    def is_gone(self) -> bool:
        """Return whether nothing can be written any more."""
        ...

    def is_writable(self) -> bool:
        """Return whether `write_now` may be called."""
        ...

    def write_now(self, messages: Sequence[Message]) -> None:
        """Write without waiting. Only after `is_writable` said so, in the same tick."""
        ...

    async def write(self, messages: Sequence[Message]) -> None:
        """Write, and wait while the peer takes nothing. Cancellation may leave the messages written or not."""
        ...

    async def close(self, close: Close) -> None:
        """Send a close frame, and wait while the peer takes nothing."""
        ...

    def abort(self) -> bool:
        """End the socket without a close frame; False where the server offers no way."""
        ...

    def buffered(self) -> int:
        """Return how many bytes the server holds for the peer, 0 where it cannot be told."""
        ...

    def taken(self) -> int:
        """Return a number that grows whenever the peer takes something."""
        ...


class AsgiWire:
    """Writes ASGI events: one await per message, whatever the server."""

    __slots__ = ("_transport", "_websocket", "_written")

    batch_bytes = 1

    def __init__(self, websocket: WebSocket, transport: Transport | None) -> None:
        self._websocket = websocket
        self._transport = transport  # None: out of reach, so there is no abort
        self._written = 0  # bytes that the server has accepted from us

    def is_gone(self) -> bool:
        """Return whether either side has ended the socket."""
        return (
            self._websocket.application_state is not WebSocketState.CONNECTED
            or self._websocket.client_state is WebSocketState.DISCONNECTED
            or (self._transport is not None and self._transport.is_closing())
        )

    def is_writable(self) -> bool:
        """Return False: an ASGI send may always wait."""
        return False

    def write_now(self, messages: Sequence[Message]) -> None:  # noqa: ARG002
        """Never called, since `is_writable` says no."""
        raise AssertionError("an ASGI send may wait, so it cannot write now")

    async def write(self, messages: Sequence[Message]) -> None:
        """Send one event per message."""
        for message in messages:
            # A copy, since the next server or middleware may change the event, and the message is everybody's.
            await self._websocket.send(message.asgi().copy())
            self._written += message.size

    async def close(self, close: Close) -> None:
        """Let the server send the close frame and run the closing handshake."""
        await self._websocket.close(close.code, close.reason)

    def abort(self) -> bool:
        """End the socket if the server's transport is within reach."""
        if self._transport is None:
            return False
        self._transport.abort()
        return True

    def buffered(self) -> int:
        """Return the size of the transport's write buffer if it is within reach."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def taken(self) -> int:
        """Return what was written less what the transport still holds. uvicorn's own pings make it shrink a little."""
        return self._written - self.buffered()
