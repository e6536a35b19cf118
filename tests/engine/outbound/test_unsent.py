"""Where only the newest counts, little waits in the kernel and in the server."""

import socket

import pytest

from engine.fakes import FakeTransport, Peer
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound import unsent
from fastapi_rooms.engine.outbound.unsent import UNSENT_BYTES, bound_unsent

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="there is no such option on this platform"
)


class Adjustable(FakeTransport):
    """A transport that knows what it stands on, and notes its limits."""

    def __init__(self, sock, **facts):
        super().__init__()
        self.facts = {"socket": sock, "sockname": ("127.0.0.1", 1), **facts}
        self.limits = None

    def get_extra_info(self, name):
        return self.facts.get(name)

    def set_write_buffer_limits(self, high):
        self.limits = high


@pytest.fixture
def sock():
    with socket.socket() as made:
        yield made


def lowat(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)


def test_kernel_and_server_hold_little(sock):
    transport = Adjustable(sock)
    assert bound_unsent(transport)
    assert (lowat(sock), transport.limits) == (UNSENT_BYTES, UNSENT_BYTES)


@pytest.mark.parametrize("facts", [{"sockname": "/run/app.sock"}, {"sockname": None}, {"sslcontext": object()}])
def test_what_is_no_tcp_or_is_encrypted_is_left_alone(sock, facts):
    before = lowat(sock)
    transport = Adjustable(sock, **facts)
    assert not bound_unsent(transport)
    assert (lowat(sock), transport.limits) == (before, None)


def test_where_there_is_no_such_option_nothing_is_done(sock, monkeypatch):
    monkeypatch.setattr(unsent, "_LOWAT", None)
    transport = Adjustable(sock)
    assert not bound_unsent(transport)
    assert transport.limits is None


def test_a_transport_that_is_another_or_whose_socket_has_gone_is_left_alone(sock):
    assert not bound_unsent(None)
    assert not bound_unsent(FakeTransport())
    assert not bound_unsent(Adjustable(None))
    sock.close()
    assert not bound_unsent(Adjustable(sock))


@pytest.mark.parametrize("overflow", ["close", "drop_newest", "drop_oldest"])
async def test_only_where_the_newest_counts(sock, overflow):
    peer = Peer()
    peer.transport = Adjustable(sock)
    manager = ConnectionManager(RoomsSettings(overflow=overflow))
    await manager.connect(peer.websocket, "a")
    assert peer.transport.limits == (UNSENT_BYTES if overflow == "drop_oldest" else None)
    await manager.stop()
