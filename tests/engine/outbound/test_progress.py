"""Whether a peer takes anything: asked of the kernel where it tells, guessed from the buffer where it does not."""

import asyncio
import socket
import sys

import pytest

from engine.fakes import DEADLINE, FakeTransport, Peer
from fastapi_rooms.engine.outbound.transport import Progress, acknowledged, buffer_size
from fastapi_rooms.engine.outbound.wire import AsgiWire


@pytest.fixture
async def tcp():
    """A transport and the socket of a peer that reads only when it is told to."""
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    peer = socket.create_connection(server.sockets[0].getsockname())
    writer = await accepted
    yield writer.transport, peer
    peer.close()
    writer.transport.abort()
    server.close()
    await server.wait_closed()


async def acked_at_least(transport, count):
    """Wait until the kernel has heard of its peer: the acknowledgement comes after the data."""
    async with asyncio.timeout(DEADLINE):
        while (acked := acknowledged(transport)) < count:
            await asyncio.sleep(0.001)
    return acked


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much was acknowledged")
async def test_the_kernel_tells_what_the_peer_has_taken(tcp):
    transport, peer = tcp
    before = acknowledged(transport)
    transport.write(b"x" * 1000)
    assert await acked_at_least(transport, before + 1000) == before + 1000
    assert len(peer.recv(2000)) == 1000
    assert acknowledged(transport) == before + 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much was acknowledged")
async def test_a_peer_that_reads_nothing_makes_no_progress_once_its_kernel_is_full_and_some_when_it_reads(tcp):
    transport, peer = tcp
    progress = Progress(transport)
    transport.write(b"x" * 20_000_000)  # more than any kernel holds
    taken = -1
    async with asyncio.timeout(DEADLINE):
        while progress.taken(0) != taken:
            taken = progress.taken(0)
            await asyncio.sleep(0.25)  # longer than the kernel delays an acknowledgement
    assert 0 < taken < 20_000_000
    peer.settimeout(0)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE):
        while progress.taken(0) == taken:
            await loop.sock_recv(peer, 1 << 20)


async def test_asking_leaves_the_socket_as_it_was(tcp):
    transport, peer = tcp
    peer.settimeout(0)
    for _ in range(100):
        acknowledged(transport)
    transport.write(b"still here")
    assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer, 100), DEADLINE) == b"still here"


class Below:
    """A transport over something else than TCP."""

    def __init__(self, below):
        self.below = below

    def get_extra_info(self, name):
        return self.below


def test_what_is_not_tcp_or_has_no_socket_tells_nothing():
    assert acknowledged(FakeTransport()) is None
    assert acknowledged(Below(None)) is None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert acknowledged(Below(ours)) is None
    assert acknowledged(Below(ours)) is None, "it is closed"


def test_a_transport_that_was_taken_apart_holds_nothing():
    class Broken(FakeTransport):
        def get_write_buffer_size(self):
            return self._ssl_protocol._transport.get_write_buffer_size()

    assert buffer_size(Broken()) == 0


def test_without_the_kernel_a_buffer_that_shrinks_is_progress_and_one_that_grows_is_not():
    transport = FakeTransport()
    progress = Progress(transport)
    seen = []
    for transport.held in (0, 100, 100, 60, 80, 0):
        seen.append(progress.taken(0))
    assert seen == [0, 0, 0, 40, 40, 120]
    assert progress.taken(7) == 127


def test_without_a_transport_what_the_server_has_taken_is_all_that_is_known():
    progress = Progress(None)
    assert progress.taken(0) == 0
    assert progress.taken(7) == 7


async def test_a_wire_without_a_transport_is_done_with_its_socket_at_once():
    wire = AsgiWire(Peer().websocket, None)
    assert (wire.buffered(), wire.has_left(), wire.is_closing()) == (0, True, False)


async def test_a_wire_with_a_transport_is_done_when_that_is_closed_and_empty():
    transport = FakeTransport()
    wire = AsgiWire(Peer().websocket, transport)
    assert (wire.has_left(), wire.is_closing()) == (False, False)
    transport.closing, transport.held = True, 10
    assert (wire.has_left(), wire.is_closing()) == (False, True)
    transport.held = 0
    assert wire.has_left()


def test_where_the_kernel_stops_telling_nothing_is_held_against_the_peer(monkeypatch):
    answers = [100, 100, None, None, 100]
    monkeypatch.setattr("fastapi_rooms.engine.outbound.transport.acknowledged", lambda transport: answers.pop(0))
    progress = Progress(object())
    assert [progress.taken(0) for _ in range(5)] == [100, 100, 101, 102, 100]
