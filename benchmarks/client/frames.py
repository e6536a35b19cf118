"""Handshake and frames, no more of RFC 6455 than a load needs."""

import zlib
from collections.abc import Iterator

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
COMPRESSED, OPCODE = 0x40, 0x0F
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
ZERO_KEY = bytes(4)
"""A mask that changes nothing. Servers unmask all the same; only proxies have a reason to want a random one."""


def handshake(port: int, path: str, *, deflate: bool) -> bytes:
    """Return the request that opens a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"{OFFER if deflate else ''}\r\n"
    ).encode()


def server_frame(payload: bytes) -> bytes:
    """Return the text frame that a server sends for it, when it does not compress."""
    return _header(0x80 | TEXT, len(payload), 0) + payload


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a masked frame."""
    return _header(0x80 | opcode, len(payload), 0x80) + ZERO_KEY + payload


def _header(first: int, size: int, mask: int) -> bytes:
    if size < 126:
        return bytes((first, mask | size))
    if size < 1 << 16:
        return bytes((first, mask | 126)) + size.to_bytes(2, "big")
    return bytes((first, mask | 127)) + size.to_bytes(8, "big")


def split(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield the first byte, the payload and the end of each whole frame."""
    start, length = 0, len(data)
    while length - start >= 2:
        size, body = data[start + 1] & 0x7F, start + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, body = int.from_bytes(data[body : body + width], "big"), body + width
        end = body + size
        if body > length or end > length:
            return
        yield data[start], data[body:end], end
        start = end


class Inflater:
    """Undoes permessage-deflate for one connection (RFC 7692 section 7.2.2)."""

    def __init__(self, agreed: bytes) -> None:
        self._fresh = b"server_no_context_takeover" in agreed
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    def inflate(self, payload: bytes) -> bytes:
        """Return the message."""
        if self._fresh:
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        return self._inflate.decompress(payload + b"\x00\x00\xff\xff")
