"""What is still read of a socket once this side has sent its close frame, and what the server has sent by itself.

RFC 6455 section 5.5.1 has a peer answer a close frame with its own, and say nothing more. Servers wait for that answer
(uvicorn for ten seconds) and read on, without back-pressure, since the app takes nothing any more: one who is thrown
out for flooding, and goes on, would have the loop for himself.
"""

import asyncio
from contextvars import Context
from typing import Any

from starlette.websockets import WebSocket, WebSocketState

from fastapi_rooms.engine.outbound.transport import Progress

UNREAD_BYTES = 64 * 1024
"""How much is read after the close frame: what was on its way, and the answer."""
HANG_UP_SECONDS = 1.0
"""For how long one who sends more may take nothing of what was sent to it, the close frame at the end, before its
socket is aborted."""

_NEEDED = ("pause_reading", "set_protocol")


class ClosingHandshake(asyncio.Protocol):
    """Stands before the server's protocol and lets pass what a closing handshake needs.

    More than `UNREAD_BYTES` are not read: reading pauses, and the socket is aborted as soon as the peer has taken
    nothing for `HANG_UP_SECONDS`. It may be far behind with what it was sent, and it gets all of that.
    """

    __slots__ = ("_hang_up", "_left", "_progress", "_protocol", "_taken", "_transport")

    def __init__(self, transport: Any, protocol: asyncio.Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._left = UNREAD_BYTES
        self._progress = Progress(transport)
        self._taken = 0  # what the peer had taken when it was last looked at
        self._hang_up: asyncio.TimerHandle | None = None  # due once too much has come

    def data_received(self, data: bytes) -> None:
        """Pass on what belongs to the handshake, and pause reading after that."""
        self._left -= len(data)
        if self._left >= 0:
            self._protocol.data_received(data)
            return
        self._transport.pause_reading()  # each time: the server's protocol may resume it once more
        if self._hang_up is None:
            self._look_later()

    def _look_later(self) -> None:
        self._taken = self._progress.taken(0)
        self._hang_up = asyncio.get_running_loop().call_later(HANG_UP_SECONDS, self._look, context=Context())

    def _look(self) -> None:
        if self._progress.taken(0) > self._taken:
            self._look_later()
        else:
            self._transport.abort()

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on: it is over."""
        if self._hang_up is not None:
            self._hang_up.cancel()
        self._protocol.connection_lost(exc)


def protocol_of(transport: Any) -> object:
    """Return the protocol that a transport tells of what it reads; None if it does not say."""
    get = getattr(transport, "get_protocol", None)
    return get() if callable(get) else None


def limit_reading(transport: Any) -> None:
    """Read no more of a socket than its closing handshake needs; call it when the close frame is out.

    Does nothing to a transport that is closed already, or of another kind than asyncio's and uvloop's.
    """
    protocol = protocol_of(transport)
    if not isinstance(protocol, asyncio.Protocol) or isinstance(protocol, ClosingHandshake) or transport.is_closing():
        return
    if all(callable(getattr(transport, name, None)) for name in _NEEDED):
        transport.set_protocol(ClosingHandshake(transport, protocol))


def closed_by_server(websocket: WebSocket, protocol: Any) -> tuple[int, str] | None:
    """Return code and reason of the close frame that a server has sent first, and not for the app.

    None if there is none, or nobody tells.

    To the app uvicorn tells a pong that did not come in time as a lost connection, after a close frame with 1011. What
    it was is known to the package `websockets`, on which both of its usual protocols are built.
    """
    if websocket.application_state is WebSocketState.DISCONNECTED:
        return None
    conn = getattr(protocol, "conn", protocol)
    frame = getattr(conn, "close_sent", None)
    code, reason = getattr(frame, "code", None), getattr(frame, "reason", None)
    if not isinstance(code, int) or not isinstance(reason, str) or getattr(conn, "close_rcvd_then_sent", None):
        return None
    return code, reason
