"""A WebSocket client that shares no code with the server, and fails on every byte that it could complain about.

`StrictParser` checks frames by RFC 6455 section 5 and messages by RFC 7692; what it fails on is a `Violation`.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import socket
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from support import DEADLINE, LiveServer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

PLAIN = None
TAKEOVER = "permessage-deflate; client_max_window_bits"
NO_TAKEOVER = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"


class Violation(AssertionError):  # noqa: N818 - it is what RFC 6455 calls it
    """The server has broken the protocol."""


class Received(NamedTuple):
    """A message or a control frame."""

    kind: str
    data: Any
    """Text, bytes, or for a close its (code, reason)."""
    is_compressed: bool
    size: int
    """The bytes of the payload on the wire."""


class Deflate:
    """What was negotiated of permessage-deflate, and both windows."""

    def __init__(self, answer: str) -> None:
        name, *pairs = [part.strip() for part in answer.split(";")]
        _check(name == "permessage-deflate", f"the extension {name!r} was not offered")
        parameters = dict(pair.partition("=")[::2] for pair in pairs)
        _check(len(parameters) == len(pairs), f"a parameter comes twice: {answer}")
        self._server_bits = int(parameters.pop("server_max_window_bits", "15"))
        self._client_bits = int(parameters.pop("client_max_window_bits", "15"))
        self._server_forgets = parameters.pop("server_no_context_takeover", None) is not None
        self._client_forgets = parameters.pop("client_no_context_takeover", None) is not None
        _check(not parameters, f"unknown parameters: {parameters}")
        self._inflate = zlib.decompressobj(-self._server_bits)
        self._deflate = zlib.compressobj(wbits=-self._client_bits)

    def inflate(self, payload: bytes) -> bytes:
        if self._server_forgets:
            self._inflate = zlib.decompressobj(-self._server_bits)
        try:
            data = self._inflate.decompress(payload + b"\x00\x00\xff\xff")
        except zlib.error as error:
            raise Violation(f"the compressed message does not fit to the window: {error}") from error
        _check(not self._inflate.eof and not self._inflate.unused_data, "bytes follow the compressed message")
        return data

    def deflate(self, data: bytes) -> bytes:
        if self._client_forgets:
            self._deflate = zlib.compressobj(wbits=-self._client_bits)
        return (self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


class StrictParser:
    """From the server's bytes to what it said."""

    def __init__(self, deflate: Deflate | None) -> None:
        self.received: list[Received] = []
        self.close: tuple[int, str] | None = None  # what the close frame said; None: there was none
        self._deflate = deflate
        self._data = bytearray()
        self._opcode: int | None = None  # of the message whose fragments are coming in; None: there is none
        self._is_compressed = False
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self._data += data
        while (frame := self._take()) is not None:
            self._on_frame(*frame)

    def end(self) -> None:
        """The server has ended the TCP connection."""
        _check(not self._data, f"a frame is cut off: {bytes(self._data[:40])!r}")
        _check(self._opcode is None, "a fragmented message is cut off")

    def _take(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        # 5.5.1 forbids data only, and 5.5.2 wants pings to be answered until the client's close frame is here.
        _check(self.close is None or data[0] == 0x80 | PONG, f"a frame follows the close frame: {bytes(data[:40])!r}")
        _check(not data[1] & 0x80, "a server must not mask (5.1)")
        size, begin = data[1], 2
        if size >= 126:
            begin = 4 if size == 126 else 10
            if len(data) < begin:
                return None
            size = int.from_bytes(data[2:begin], "big")
            _check(size > (125 if begin == 4 else 0xFFFF), f"the length {size} is not in its shortest form (5.2)")
            _check(size < 1 << 63, "the length has its first bit set (5.2)")
        if len(data) < begin + size:
            return None
        payload = bytes(data[begin : begin + size])
        first = data[0]
        del data[: begin + size]
        return first, payload

    def _on_frame(self, first: int, payload: bytes) -> None:
        is_final, rsv1, opcode = bool(first & 0x80), bool(first & 0x40), first & 0x0F
        _check(not first & 0x30, f"a reserved bit is set: {first:#x}")
        _check(opcode in {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}, f"the opcode {opcode} is reserved")
        if opcode >= CLOSE:
            _check(is_final and len(payload) <= 125, "a control frame is fragmented or too long (5.5)")
            _check(not rsv1, "a control frame is compressed (RFC 7692 section 6.1)")
            self._on_control(opcode, payload)
            return
        if opcode == CONTINUATION:
            _check(self._opcode is not None, "a continuation without a message (5.4)")
            _check(not rsv1, "a continuation has the bit that says compressed (RFC 7692 section 6.1)")
        else:
            _check(self._opcode is None, "a message within the fragments of another (5.4)")
            _check(not rsv1 or self._deflate is not None, "a compressed message, but compression was not negotiated")
            self._opcode, self._is_compressed = opcode, rsv1
        self._parts.append(payload)
        if is_final:
            self._on_message()

    def _on_message(self) -> None:
        raw = b"".join(self._parts)
        data = self._deflate.inflate(raw) if self._deflate is not None and self._is_compressed else raw
        if self._opcode == TEXT:
            self._note("text", _utf8(data), len(raw), is_compressed=self._is_compressed)
        else:
            self._note("bytes", data, len(raw), is_compressed=self._is_compressed)
        self._opcode, self._parts = None, []

    def _on_control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            _check(len(payload) != 1, "a close code of one byte (5.5.1)")
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            _check(
                not payload or code in {*range(1000, 1004), *range(1007, 1015)} or 3000 <= code <= 4999,
                f"the close code {code} may not be sent (7.4)",
            )
            self.close = (code, _utf8(payload[2:]))
            self._note("close", self.close, len(payload))
        else:
            self._note("ping" if opcode == PING else "pong", payload, len(payload))

    def _note(self, kind: str, data: Any, size: int, *, is_compressed: bool = False) -> None:
        self.received.append(Received(kind, data, is_compressed, size))


class StrictClient:
    """A client that reads only when it is told to; what it has read is in `received`."""

    def __init__(self, connected: socket.socket, deflate: Deflate | None) -> None:
        self.answers_pings = True  # while it reads
        self.deflate = deflate
        self._parser = StrictParser(deflate)
        self._socket = connected
        self.received = self._parser.received

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, server: LiveServer, path: str, offer: str | None = PLAIN, receive_buffer: int | None = None
    ) -> AsyncIterator["StrictClient"]:
        with socket.socket() as made:
            if receive_buffer is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            made.settimeout(0)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(DEADLINE):
                await loop.sock_connect(made, ("127.0.0.1", server.port))
                key = base64.b64encode(os.urandom(16)).decode()
                await loop.sock_sendall(made, _request(server.port, path, key, offer).encode())
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    byte = await loop.sock_recv(made, 1)
                    assert byte, f"the server has hung up during the handshake, after {head!r}"
                    head += byte
            yield cls(made, _negotiated(head.decode(), key, offer))

    @property
    def close_frame(self) -> tuple[int, str] | None:
        return self._parser.close

    def of(self, *kinds: str) -> list[Any]:
        """What was received of these kinds."""
        return [one.data for one in self.received if one.kind in kinds]

    async def send_frame(self, first: int, payload: bytes, *, is_masked: bool = True) -> None:
        """Send a frame as told, right or wrong. `first`: the final bit, the reserved bits, the opcode."""
        size, bit = len(payload), 0x80 if is_masked else 0
        if size < 126:
            head = bytes((first, bit | size))
        elif size < 1 << 16:
            head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
        if is_masked:
            mask = os.urandom(4)
            repeated = (mask * (size // 4 + 1))[:size]
            masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
            head, payload = head + mask, masked
        async with asyncio.timeout(DEADLINE):
            await asyncio.get_running_loop().sock_sendall(self._socket, head + payload)

    async def send_text(self, text: str) -> None:
        """Send a text message, compressed if that was negotiated."""
        if self.deflate is None:
            await self.send_frame(0x80 | TEXT, text.encode())
        else:
            await self.send_frame(0xC0 | TEXT, self.deflate.deflate(text.encode()))

    async def ping(self, payload: bytes) -> None:
        await self.send_frame(0x80 | PING, payload)

    async def close(self, code: int) -> None:
        await self.send_frame(0x80 | CLOSE, code.to_bytes(2, "big"))

    async def read(self) -> bool:
        """Read what is there, wait for something if nothing is; False when the server has ended the connection."""
        before = len(self.received)
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            self._parser.end()
            return False
        self._parser.feed(data)
        if self.answers_pings and self.close_frame is None:
            for one in self.received[before:]:
                if one.kind == "ping":
                    await self.send_frame(0x80 | PONG, one.data)
        return True

    async def read_until(self, fact: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not fact():
                _check(await self.read(), "the server has ended the connection too early")

    async def read_to_close(self) -> tuple[int, str]:
        """Read up to the close frame, answer it, and read on: nothing may come any more."""
        await self.read_until(lambda: self.close_frame)
        with contextlib.suppress(ConnectionError):
            await self.send_frame(0x80 | CLOSE, self.close_frame[0].to_bytes(2, "big"))
        await self.read_to_end()
        return self.close_frame

    async def read_to_end(self) -> None:
        async with asyncio.timeout(DEADLINE):
            while await self.read():
                pass


def _request(port: int, path: str, key: str, offer: str | None) -> str:
    extensions = "" if offer is None else f"Sec-WebSocket-Extensions: {offer}\r\n"
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{extensions}\r\n"
    )


def _negotiated(head: str, key: str, offer: str | None) -> Deflate | None:
    status, *lines = head.rstrip().split("\r\n")
    _check(re.match(r"HTTP/1.1 101 ", status), f"the handshake was refused: {status}")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    accept = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    _check(headers["sec-websocket-accept"] == base64.b64encode(accept).decode(), "a wrong Sec-WebSocket-Accept")
    answer = headers.get("sec-websocket-extensions")
    _check(answer is None or offer is not None, f"extensions that were not offered: {answer}")
    return None if answer is None else Deflate(answer)


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Violation(f"not UTF-8: {error}") from error


def _check(is_right: Any, complaint: str) -> None:
    if not is_right:
        raise Violation(complaint)
