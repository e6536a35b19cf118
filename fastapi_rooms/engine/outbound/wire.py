"""How bytes reach one socket.

`AsgiWire` works on every server. Chosen once per connection by `wire_choice.choose_wire`.
"""

from collections.abc import Awaitable
from contextvars import copy_context
from typing import Protocol

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.domain.messages import Close
from fastapi_rooms.engine.outbound.batch import Batch
from fastapi_rooms.engine.outbound.closing_handshake import closed_by_server, limit_reading, protocol_of
from fastapi_rooms.engine.outbound.in_context import run_in_context
from fastapi_rooms.engine.outbound.transport import Progress, Transport, buffer_size


class Wire(Protocol):
    """The way to one socket. Only its outbox uses it."""

    batch_bytes: int
    """How much to pass to one write; at least one message is passed."""

    def is_gone(self) -> bool:
        """Return whether nothing can be written any more."""
        ...

    def is_writable(self) -> bool:
        """Return whether `write_now` would write."""
        ...

    def write_now(self, batch: Batch) -> bool:
        """Write without waiting; False if that cannot be, or not with one write: then nothing was written.

        Raises:
            Exception: The peer is gone, whatever was written.
        """
        ...

    def write(self, batch: Batch) -> Awaitable[None]:
        """Write, and wait while the peer takes nothing. Cancellation may leave the messages written or not."""
        ...

    def close(self, close: Close) -> Awaitable[None]:
        """Send a close frame, and wait while the peer takes nothing. Little is read of it from then on."""
        ...

    def closed_by_server(self) -> tuple[int, str] | None:
        """Return code and reason of the close frame that this side has sent first; None if there is none."""
        ...

    def can_abort(self) -> bool:
        """Return whether `abort` ends the socket: not where the server offers no way."""
        ...

    def abort(self) -> None:
        """End the socket without a close frame, where that can be."""
        ...

    def buffered(self) -> int:
        """Return how many bytes the server holds for the peer, 0 where it cannot be told."""
        ...

    def taken(self) -> int:
        """Return a number that is another one whenever the peer has taken something."""
        ...

    def is_closing(self) -> bool:
        """Return whether the server has closed its transport, and merely waits for the peer to take what it holds."""
        ...

    def has_left(self) -> bool:
        """Return whether the server is done with the socket, as far as can be told."""
        ...


class AsgiWire:
    """Writes ASGI events: one await per message, whatever the server."""

    __slots__ = ("_context", "_progress", "_protocol", "_transport", "_websocket", "_written")

    batch_bytes = 1

    def __init__(self, websocket: WebSocket, transport: Transport | None) -> None:
        self._websocket = websocket
        self._context = copy_context()  # of the endpoint, which middleware around it expects to be in when it sends
        self._transport = transport  # None: out of reach, so there is no abort
        # The server's object for the socket, asked for now, since a transport forgets it when it is closed.
        self._protocol = None if transport is None else protocol_of(transport)
        self._progress = Progress(transport)
        self._written = 0  # bytes passed on

    def is_gone(self) -> bool:
        """Return whether either side has ended the socket."""
        websocket, transport = self._websocket, self._transport
        return (
            websocket.application_state is not WebSocketState.CONNECTED
            or websocket.client_state is WebSocketState.DISCONNECTED
            or (transport is not None and transport.is_closing())
        )

    def is_writable(self) -> bool:
        """Return False: an ASGI send may always wait."""
        return False

    def write_now(self, batch: Batch) -> bool:  # noqa: ARG002
        """Return False: an ASGI send may always wait."""
        return False

    def write(self, batch: Batch) -> Awaitable[None]:
        """Send one event per message: of Starlette's `send`, just what is left while a socket is open."""
        return run_in_context(self._context, self._write(batch))

    async def _write(self, batch: Batch) -> None:
        for message in batch.messages():
            # A copy, since the next server or middleware may change the event, and the message is everybody's.
            await self._websocket._send(message.asgi().copy())
            self._written += message.size

    def close(self, close: Close) -> Awaitable[None]:
        """Let the server send the close frame and run the closing handshake."""
        return run_in_context(self._context, self._close(close))

    async def _close(self, close: Close) -> None:
        await self._websocket.close(close.code, close.reason)
        limit_reading(self._transport)

    def closed_by_server(self) -> tuple[int, str] | None:
        """Return what the server's protocol has sent, None if it is out of reach or does not tell."""
        return closed_by_server(self._websocket, self._protocol)

    def can_abort(self) -> bool:
        """Return whether the server's transport is within reach."""
        return self._transport is not None

    def abort(self) -> None:
        """End the socket if the server's transport is within reach."""
        if self._transport is not None:
            self._transport.abort()

    def buffered(self) -> int:
        """Return the size of the transport's write buffer if it is within reach."""
        return 0 if self._transport is None else buffer_size(self._transport)

    def taken(self) -> int:
        """Return what the peer's kernel has taken of what the server holds; if it holds nothing, what it has taken."""
        return self._progress.taken(self._written) if self.buffered() else self._written

    def is_closing(self) -> bool:
        """Return whether the transport is closed, False if it is out of reach."""
        return self._transport is not None and self._transport.is_closing()

    def has_left(self) -> bool:
        """Return whether the transport is closed and empty, True if it is out of reach."""
        return self._transport is None or (self._transport.is_closing() and not buffer_size(self._transport))
