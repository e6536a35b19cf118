"""Which messages go through a client's compressor, and what is taken for one."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.websockets import WebSocket

from engine.fakes import FakeTransport
from fastapi_rooms.domain.messages import encode
from fastapi_rooms.engine.outbound.batch import Batch
from fastapi_rooms.engine.outbound.uvicorn_wire import MODULE, NAME, UvicornWire, find_compressor
from fastapi_rooms.engine.outbound.wire_choice import choose_wire

SMALL, LARGE, LARGE_BYTES = encode("small"), encode("x" * 10), encode(b"y" * 11)
DEFLATE = SimpleNamespace(name="permessage-deflate")


class FakeFraming:
    """The sans-I/O connection of uvicorn's protocol: makes frames that tell how they were made."""

    def __init__(self, *extensions):
        self.extensions = list(extensions)
        self._made = []

    def send_text(self, data):
        self._made += [b"<text ", data, b">"]

    def send_binary(self, data):
        self._made += [b"<binary ", data, b">"]

    def data_to_send(self):
        made, self._made = self._made, []
        return made


class Server:
    """uvicorn's protocol, as far as our wire looks at it."""

    def __init__(self, **attributes):
        self.transport = FakeTransport()
        self.writable = asyncio.Event()
        self.writable.set()
        self.close_sent = self.disconnected = False
        vars(self).update(attributes)

    async def send(self, event):
        """Nothing is sent through ASGI here."""


Known = type(NAME, (Server,), {"__module__": MODULE})


async def _receive():
    return {"type": "websocket.connect"}


def wire_to(server, compress_min_bytes):
    socket = WebSocket({"type": "websocket", "path": "/", "headers": []}, _receive, server.send)
    wire = choose_wire(socket, "auto", compress_min_bytes)
    assert isinstance(wire, UvicornWire)
    return wire


def written(server, wire, *messages):
    assert wire.write_now(Batch.of(messages))
    (data,) = server.transport.written
    server.transport.written.clear()
    return data


async def test_large_messages_are_framed_for_the_client_and_small_ones_are_ready_made_all_in_one_write():
    server = Known(conn=FakeFraming(DEFLATE))
    wire = wire_to(server, 10)
    large, large_bytes = b"<text " + LARGE.payload + b">", b"<binary " + LARGE_BYTES.payload + b">"
    assert written(server, wire, LARGE) == large
    assert written(server, wire, SMALL, LARGE, SMALL, LARGE_BYTES, LARGE) == (
        SMALL.frame() + large + SMALL.frame() + large_bytes + large
    )


async def test_small_ones_share_the_bytes_of_everybody():
    server = Known(conn=FakeFraming(DEFLATE))
    wire = wire_to(server, 10)
    batch = Batch.of([SMALL, SMALL])
    assert wire.write_now(batch)
    assert server.transport.written[0] is batch.frames()


async def test_an_empty_message_is_never_compressed():
    server = Known(conn=FakeFraming(DEFLATE))
    wire = wire_to(server, 1)
    assert written(server, wire, encode(""), encode("a"), encode(b"")) == (
        encode("").frame() + b"<text a>" + encode(b"").frame()
    )


async def test_a_peer_that_is_behind_costs_no_compression():
    server = Known(conn=FakeFraming(DEFLATE))
    wire = wire_to(server, 10)
    server.transport.held = 100_000
    server.writable.clear()
    assert not wire.write_now(Batch.of([LARGE]))
    server.transport.closing = True
    with pytest.raises(ConnectionResetError):
        wire.write_now(Batch.of([LARGE]))
    assert server.conn.data_to_send() == []


async def test_what_was_written_counts_by_its_size_before_compression_where_nobody_else_tells():
    server = Known(conn=FakeFraming(DEFLATE))
    wire = wire_to(server, 10)
    before = wire.taken()
    wire.write_now(Batch.of([SMALL, LARGE]))
    assert wire.taken() - before == SMALL.size + LARGE.size


METHODS = ("send_text", "send_binary", "data_to_send")


def framing_with(*extensions, **changed):
    """One of another class; None: it has no such method."""
    known = FakeFraming()
    attributes = {"extensions": extensions, **{name: getattr(known, name) for name in METHODS}, **changed}
    return SimpleNamespace(**{name: value for name, value in attributes.items() if value is not None})


UNKNOWN = {
    "no framing": {},
    "None": {"conn": None},
    "nothing negotiated": {"conn": FakeFraming()},
    "another extension": {"conn": FakeFraming(SimpleNamespace(name="permessage-zstd"))},
    "an extension without a name": {"conn": FakeFraming(object())},
    "no extensions": {"conn": framing_with(extensions=None)},
    **{f"no {name}": {"conn": framing_with(DEFLATE, **{name: None})} for name in METHODS},
    **{f"{name} is no method": {"conn": framing_with(DEFLATE, **{name: 1})} for name in METHODS},
}


def test_one_of_another_class_that_has_all_of_it_would_do():
    conn = framing_with(DEFLATE)
    assert find_compressor(SimpleNamespace(conn=conn)) is conn


@pytest.mark.parametrize("attributes", UNKNOWN.values(), ids=UNKNOWN)
async def test_what_is_not_as_we_know_it_is_simply_not_compressed(attributes):
    server = Known(**attributes)
    wire = wire_to(server, 1)
    assert find_compressor(server) is None
    assert written(server, wire, LARGE, SMALL, LARGE_BYTES) == LARGE.frame() + SMALL.frame() + LARGE_BYTES.frame()


async def test_who_is_not_asked_to_compress_is_not_looked_at():
    class Looked(FakeFraming):
        @property
        def extensions(self):
            raise AssertionError("nobody asked")

        @extensions.setter
        def extensions(self, value):
            pass

    server = Known(conn=Looked())
    wire = wire_to(server, None)
    assert written(server, wire, LARGE) == LARGE.frame()
