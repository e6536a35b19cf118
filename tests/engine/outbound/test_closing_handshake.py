"""What is read of a socket after the close frame, in front of a transport that does nothing."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.websockets import WebSocketState
from support import until

from fastapi_rooms.engine.outbound import closing_handshake
from fastapi_rooms.engine.outbound.closing_handshake import (
    UNREAD_BYTES,
    ClosingHandshake,
    closed_by_server,
    limit_reading,
    protocol_of,
)


class Noting(asyncio.Protocol):
    """A server's protocol that notes what it is told."""

    def __init__(self) -> None:
        self.told = []

    def data_received(self, data):
        self.told.append(len(data))

    def eof_received(self):
        self.told.append("eof")
        return True

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")

    def connection_lost(self, exc):
        self.told.append(exc)


class FakeTransport:
    """What is asked of a transport."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.closing = False
        self.pauses = self.aborts = 0
        self.helds = []  # the size of its buffer, look by look; then 0

    def get_protocol(self):
        return self.protocol

    def set_protocol(self, protocol):
        self.protocol = protocol

    def is_closing(self):
        return self.closing

    def pause_reading(self):
        self.pauses += 1

    def abort(self):
        self.aborts += 1

    def get_write_buffer_size(self):
        return self.helds.pop(0) if self.helds else 0


@pytest.fixture
def server():
    return Noting()


@pytest.fixture
def transport(server):
    made = FakeTransport(server)
    limit_reading(made)
    assert isinstance(made.protocol, ClosingHandshake)
    return made


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(closing_handshake, "HANG_UP_SECONDS", 0.0)


async def test_a_closing_handshake_passes(transport, server):
    assert transport.protocol.eof_received() is True
    transport.protocol.pause_writing()
    transport.protocol.resume_writing()
    for size in (UNREAD_BYTES - 1, 1):
        transport.protocol.data_received(bytes(size))
    transport.protocol.connection_lost(None)
    assert server.told == ["eof", "pause", "resume", UNREAD_BYTES - 1, 1, None]
    assert transport.pauses == 0


async def test_more_is_neither_read_nor_passed_on_and_the_socket_is_aborted_once(transport, server, at_once):
    for _ in range(3):  # the server's protocol may resume reading, and what comes then pauses it again
        transport.protocol.data_received(bytes(UNREAD_BYTES + 1))
    assert transport.pauses == 3
    assert transport.aborts == 0, "it may still take its close frame"
    await until(lambda: transport.aborts)
    transport.protocol.connection_lost(None)
    assert (server.told, transport.aborts) == ([None], 1)


async def test_who_takes_what_was_sent_is_not_aborted_meanwhile(transport, at_once):
    """Where the kernel does not tell, the buffer of the transport does."""
    transport.helds = [100, 60, 20, 20]  # at each look
    transport.protocol.data_received(bytes(UNREAD_BYTES + 1))
    await until(lambda: transport.aborts)
    assert transport.helds == [], "the look that sees nothing taken is the last"


async def test_who_leaves_in_time_is_not_aborted(transport, server):
    transport.protocol.data_received(bytes(UNREAD_BYTES + 1))
    error = ConnectionResetError()
    hang_up = transport.protocol._hang_up  # nothing else shows that a timer is gone
    transport.protocol.connection_lost(error)
    assert hang_up.cancelled()
    assert server.told == [error]


@pytest.mark.parametrize(
    "transport",
    [
        None,
        SimpleNamespace(),
        FakeTransport(None),
        FakeTransport(asyncio.BufferedProtocol()),
        FakeTransport(ClosingHandshake(None, Noting())),
        SimpleNamespace(get_protocol=Noting, is_closing=lambda: False, pause_reading=lambda: None),
    ],
    ids=["out of reach", "unknown", "closed", "buffered", "limited already", "of another kind"],
)
def test_other_transports_are_left_alone(transport):
    before = protocol_of(transport)
    limit_reading(transport)
    after = protocol_of(transport)
    assert type(after) is type(before)


def test_a_transport_that_is_closed_is_left_alone(server):
    transport = FakeTransport(server)
    transport.closing = True
    limit_reading(transport)
    assert transport.protocol is server


OPEN = SimpleNamespace(application_state=WebSocketState.CONNECTED)
CLOSED = SimpleNamespace(application_state=WebSocketState.DISCONNECTED)
FRAME = SimpleNamespace(code=1011, reason="keepalive ping timeout")


def said(frame, *, asked=None):
    return SimpleNamespace(close_sent=frame, close_rcvd_then_sent=asked)


@pytest.mark.parametrize(
    ("websocket", "protocol", "expected"),
    [
        (OPEN, said(FRAME), (1011, "keepalive ping timeout")),
        (OPEN, said(FRAME, asked=False), (1011, "keepalive ping timeout")),
        (OPEN, SimpleNamespace(conn=said(FRAME), close_sent=True), (1011, "keepalive ping timeout")),
        (OPEN, said(FRAME, asked=True), None),
        (CLOSED, said(FRAME), None),
        (OPEN, said(None), None),
        (OPEN, said(SimpleNamespace(code=1011)), None),
        (OPEN, None, None),
    ],
    ids=["sent", "answered", "sansio", "asked for", "by the app", "none", "unknown", "out of reach"],
)
def test_whose_close_frame_it_was(websocket, protocol, expected):
    assert closed_by_server(websocket, protocol) == expected
