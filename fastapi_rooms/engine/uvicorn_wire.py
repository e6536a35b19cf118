"""Ready-made frames for uvicorn's transport.

uvicorn's default WebSocket protocol (websockets-sansio) frames each message for each connection anew. Here a frame is
built once per message and the same bytes are written to every member's transport. Handshake, closing handshake, pings,
pongs, keepalive and flow control stay uvicorn's: this wire asks the protocol whether it may write, and closes through
ASGI.

Our frames are never compressed, also where permessage-deflate was negotiated: that is legal (RFC 7692 section 6: the
RSV1 bit says it per message) and leaves the compression window of uvicorn's own messages alone.
"""

import asyncio
from typing import Protocol, TypeGuard

from starlette.websockets import WebSocket

from fastapi_rooms.domain.messages import Close
from fastapi_rooms.engine.batch import Batch
from fastapi_rooms.engine.wire import Progress, Transport, buffer_size, kernel_tells

MODULE = "uvicorn.protocols.websockets.websockets_sansio_impl"
NAME = "WebSocketsSansIOProtocol"


class UvicornProtocol(Protocol):
    """What we use of uvicorn's protocol object."""

    transport: Transport
    writable: asyncio.Event
    """Cleared while the transport's buffer is above its high-water mark."""
    close_sent: bool
    disconnected: bool


def is_known_protocol(protocol: object) -> TypeGuard[UvicornProtocol]:
    """Return whether the object is the protocol that this wire was written for, by class and by shape."""
    return (
        type(protocol).__module__ == MODULE
        and type(protocol).__name__ == NAME
        and isinstance(getattr(protocol, "writable", None), asyncio.Event)
        and isinstance(getattr(protocol, "close_sent", None), bool)
        and isinstance(getattr(protocol, "disconnected", None), bool)
    )


class UvicornWire:
    """Writes frames to the transport below uvicorn's protocol."""

    __slots__ = ("_progress", "_protocol", "_transport", "_websocket", "_written")

    batch_bytes = 64 * 1024  # the transport's high-water mark: more would only lie in its buffer

    def __init__(self, websocket: WebSocket, protocol: UvicornProtocol) -> None:
        self._websocket = websocket
        self._protocol = protocol
        self._transport = protocol.transport
        self._progress: Progress | None = None  # made when somebody asks: few connections are ever behind
        self._written: int | None = None if kernel_tells(protocol.transport) else 0  # bytes passed on, where it matters

    def is_gone(self) -> bool:
        """Return whether either side has ended the socket, be it behind our back."""
        protocol = self._protocol
        return protocol.disconnected or protocol.close_sent or self._transport.is_closing()

    def is_writable(self) -> bool:
        """Return whether the transport's buffer is below its high-water mark."""
        return self._protocol.writable.is_set()

    def write_now(self, batch: Batch) -> bool:
        """Write all frames with one call; False if the transport's buffer is above its mark.

        Most of what this costs is the memory that it touches, of thousands of connections in turn. So the mark is
        looked at only where the buffer holds anything, and nothing is counted.
        """
        transport, protocol = self._transport, self._protocol
        if transport.is_closing() or protocol.close_sent:
            raise ConnectionResetError("the socket has ended")
        if transport.get_write_buffer_size() and not protocol.writable.is_set():
            return False
        transport.write(batch.frames())
        if self._written is not None:
            self._written += batch.size
        return True

    async def write(self, batch: Batch) -> None:
        """Wait until the transport's buffer is below its mark, then write."""
        while not self.write_now(batch):
            await self._protocol.writable.wait()

    async def close(self, close: Close) -> None:
        """Let uvicorn send the close frame and run the closing handshake."""
        await self._websocket.close(close.code, close.reason)

    def abort(self) -> bool:
        """End the socket."""
        self._transport.abort()
        return True

    def buffered(self) -> int:
        """Return the size of the transport's write buffer."""
        return buffer_size(self._transport)

    def taken(self) -> int:
        """Return what the peer's kernel has taken, or else what this one has."""
        if self._progress is None:
            self._progress = Progress(self._transport)
        return self._progress.taken(self._written or 0)

    def is_closing(self) -> bool:
        """Return whether uvicorn has closed the transport."""
        return self._transport.is_closing()

    def has_left(self) -> bool:
        """Return whether the transport is closed and empty."""
        return self._transport.is_closing() and not buffer_size(self._transport)
