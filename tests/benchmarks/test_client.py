"""The measuring side notices what a server gets wrong."""

import socket
import zlib

import pytest

from benchmarks.client.frames import client_frame, server_frame, split
from benchmarks.client.member import Member, WrongMessage
from benchmarks.client.messages import payload
from benchmarks.client.room import Latencies, Room, Tally

ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
COMPRESSING = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
SIZE = 200


class Served:
    """A room with one member, and the server's end of its socket."""

    def __init__(self, answer=ACCEPTED):
        self.tally = Tally()
        self.room = Room("r", self.tally)
        ours, self.server = socket.socketpair()
        ours.settimeout(0)
        self.member = Member(ours, self.room, self.tally, node=0, sampled=True)
        self.room.members.append(self.member)
        self.receive(answer)
        self.room.begin(SIZE)

    def receive(self, data):
        self.server.sendall(data)
        self.member.on_readable()


@pytest.fixture
def served():
    made = Served()
    yield made
    made.member.socket.close()
    made.server.close()


def frame(number):
    return server_frame(payload(number, SIZE))


def test_messages_have_their_size_and_differ():
    messages = {payload(number, SIZE) for number in range(100)}
    assert len(messages) == 100
    assert {len(message) for message in messages} == {SIZE}


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frames_are_split_where_they_were_joined(size):
    data = server_frame(b"x" * size) + server_frame(b"y") + b"\x81"
    assert [(body, end) for _, body, end in split(data)] == [(b"x" * size, len(data) - 4), (b"y", len(data) - 1)]


def test_messages_are_counted_in_whatever_pieces_they_come(served):
    served.room.publish(3)
    stream = frame(0) + frame(1) + frame(2)
    for start in range(0, len(stream), 70):
        served.receive(stream[start : start + 70])
    assert (served.member.received, served.tally.deliveries, served.tally.completed) == (3, 3, 3)


def test_a_ping_in_between_is_answered_and_not_counted(served):
    served.room.publish(2)
    served.server.recv(1 << 16)
    served.receive(frame(0)[:50])
    served.receive(frame(0)[50:] + b"\x89\x02hi" + frame(1)[:10])
    served.receive(frame(1)[10:])
    assert served.tally.deliveries == 2
    assert served.server.recv(100) == client_frame(b"hi", 0xA)


def test_compressed_messages_are_compared_after_inflating():
    served = Served(COMPRESSING)
    deflater = zlib.compressobj(wbits=-15)
    served.room.publish(2)
    for number in range(2):
        body = (deflater.compress(payload(number, SIZE)) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
        data = bytearray(server_frame(body))
        data[0] |= 0x40
        served.receive(bytes(data))
    assert served.tally.completed == 2
    served.member.socket.close()
    served.server.close()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [([], 1), ([0], 0), ([0], 2)],
    ids=["lost", "twice", "out of order"],
)
def test_what_is_lost_repeated_or_reordered_is_an_error(served, right, wrong):
    served.room.publish(3)
    for number in right:
        served.receive(frame(number))
    with pytest.raises(WrongMessage):
        served.receive(frame(wrong))


def test_latency_counts_from_when_the_message_was_due(served):
    served.room.publish(at=0.0)
    served.receive(frame(0))
    latencies = Latencies()
    latencies.add(served.room)
    [(_, arrived, _, _)] = served.room.arrivals
    assert latencies.summary() == {"p50_ms": arrived * 1000, "p99_ms": arrived * 1000}
    assert latencies.summary(node=1) == {}
