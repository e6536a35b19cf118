"""Ready-made frames for uvicorn's transport.

uvicorn's default WebSocket protocol (websockets-sansio) frames each message for each connection anew. Here a frame is
built once per message and the same bytes are written to every member's transport. Handshake, closing handshake, pings,
pongs, keepalive and flow control stay uvicorn's: this wire asks the protocol whether it may write, and closes through
ASGI.

Our frames are not compressed, also where permessage-deflate was negotiated: that is legal (RFC 7692 section 6: the RSV1
bit says it per message) and leaves the compression window of uvicorn's own messages alone. A compressed frame could not
be shared, since it depends on what was sent to that client before. So where the settings ask for compression, messages
from a certain size on go through the compressor of each client, which is uvicorn's and stays in step with its own.
"""

import asyncio
from typing import Any, Protocol, TypeGuard

from starlette.websockets import WebSocket

from fastapi_rooms.domain.messages import Close
from fastapi_rooms.engine.outbound.batch import Batch
from fastapi_rooms.engine.outbound.closing_handshake import closed_by_server, limit_reading
from fastapi_rooms.engine.outbound.transport import Progress, Transport, buffer_size, is_transport, kernel_tells

MODULE = "uvicorn.protocols.websockets.websockets_sansio_impl"
NAME = "WebSocketsSansIOProtocol"


class Compressor(Protocol):
    """What we use of the sans-I/O connection that uvicorn's protocol has, where it negotiated compression."""

    def send_text(self, data: bytes) -> None:
        """Make a text frame."""
        ...

    def send_binary(self, data: bytes) -> None:
        """Make a binary frame."""
        ...

    def data_to_send(self) -> list[bytes]:
        """Return the frames made since the last call."""
        ...


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
        and is_transport(getattr(protocol, "transport", None))
    )


def find_compressor(protocol: object) -> Compressor | None:
    """Return what compresses messages for a client; None if that was not negotiated or is not as we know it."""
    conn: Any = getattr(protocol, "conn", None)
    if not all(callable(getattr(conn, name, None)) for name in ("send_text", "send_binary", "data_to_send")):
        return None
    extensions = getattr(conn, "extensions", ())
    found: Compressor = conn
    return found if any(getattr(one, "name", "") == "permessage-deflate" for one in extensions) else None


class UvicornWire:
    """Writes frames to the transport below uvicorn's protocol.

    Args:
        websocket: The socket.
        protocol: The server's object for it.
        compress_min_bytes: From which size on messages are compressed if that was negotiated; None: never.
    """

    __slots__ = ("_compress_min_bytes", "_compressor", "_progress", "_protocol", "_transport", "_websocket", "_written")

    batch_bytes = 64 * 1024  # the transport's high-water mark: more would only lie in its buffer

    def __init__(self, websocket: WebSocket, protocol: UvicornProtocol, compress_min_bytes: int | None = None) -> None:
        self._compress_min_bytes = compress_min_bytes or 0
        self._compressor = None if compress_min_bytes is None else find_compressor(protocol)
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
        """Write all frames with one call; False if the transport's buffer is above its mark, or the batch too large.

        Most of what this costs is the memory that it touches, of thousands of connections in turn. So the mark is
        looked at only where the buffer holds anything, and nothing is counted.
        """
        transport, protocol = self._transport, self._protocol
        if transport.is_closing() or protocol.close_sent:
            raise ConnectionResetError("the socket has ended")
        if batch.size > self.batch_bytes and len(batch) > 1:
            return False
        if transport.get_write_buffer_size() and not protocol.writable.is_set():
            return False
        if self._compressor is None or batch.largest < self._compress_min_bytes:
            transport.write(batch.frames())
        else:
            transport.write(self._compressed(self._compressor, batch))
        if self._written is not None:
            self._written += batch.size
        return True

    def _compressed(self, compressor: Compressor, batch: Batch) -> bytes:
        frames: list[bytes] = []
        for message in batch:
            if message.size < self._compress_min_bytes:
                frames.append(message.frame())
                continue
            send = compressor.send_text if message.is_text else compressor.send_binary
            send(message.payload)
            frames += compressor.data_to_send()
        return b"".join(frames)

    async def write(self, batch: Batch) -> None:
        """Wait until the transport's buffer is below its mark, then write."""
        while not self.write_now(batch):
            await self._protocol.writable.wait()

    async def close(self, close: Close) -> None:
        """Let uvicorn send the close frame and run the closing handshake."""
        await self._websocket.close(close.code, close.reason)
        limit_reading(self._transport)

    def closed_by_server(self) -> tuple[int, str] | None:
        """Return what uvicorn's protocol has sent."""
        return closed_by_server(self._websocket, self._protocol)

    def can_abort(self) -> bool:
        """Return True: the transport is at hand."""
        return True

    def abort(self) -> None:
        """End the socket."""
        self._transport.abort()

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
