"""What others publish to our channels, by mistake or on purpose."""

import json
import pickle
import struct
import time
from uuid import uuid4

from support import until

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, connection_target, room_target, user_target
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.settings import RoomsSettings
from faults.nodes import ROOM, check_hearing, member, running, speaking

LARGEST = RoomsSettings().max_envelope_bytes
KITCHEN, EVERYWHERE, ANN = f"rooms:room:{ROOM}", "rooms:all", "rooms:user:ann"
KIND, ORIGIN, TARGET_KIND, NAME_BYTES, EXCLUDED = 3, slice(4, 20), 20, slice(21, 25), slice(25, 29)


class Trap:
    """Does harm if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def envelope(target, content=None):
    return Envelope(uuid4().hex, target, content or Message(b"rubbish", is_text=True)).encode()


def changed(place, value):
    """A good envelope but for one place."""
    data = bytearray(envelope(room_target(ROOM)))
    data[place] = value
    return bytes(data)


def rubbish(trap):
    """Pairs of a channel and what does not belong there."""
    good = envelope(room_target(ROOM))
    close = envelope(room_target(ROOM), Close(CloseCode.NORMAL, "bye"))
    header = len(good) - len(ROOM) - len(b"rubbish")
    lies = [struct.pack(">I", count) for count in (len(good), 1 << 31, (1 << 32) - 1)]
    for_the_kitchen = [
        *(b"", b"\0", b"hello", b"fr", bytes(1000), "schön".encode("utf-16")),
        *(json.dumps(one).encode() for one in ({"type": "close"}, [], None, {"room": ROOM, "message": "x"})),
        *(pickle.dumps(one, protocol) for one in ({"method": "emit"}, Trap(str(trap))) for protocol in range(6)),
        *(good[:length] for length in range(1, header + len(ROOM))),
        *(b"x" + good, good[1:], b"FR" + good[2:], good.hex().encode(), json.dumps(good.hex()).encode()),
        *(changed(2, version) for version in (0, 2, 255)),
        *(changed(KIND, kind) for kind in (0, 4, 255)),
        *(changed(TARGET_KIND, kind) for kind in (4, 255)),
        *(changed(place, lie) for place in (NAME_BYTES, EXCLUDED) for lie in lies),
        *(changed(-1, byte) for byte in (0x80, 0xFF)),
        *(close[: -len("\x03\xe8bye") + length] for length in range(2)),
        *(close.replace(b"\x03\xe8bye", struct.pack(">H", code)) for code in (0, 1005, 1006, 1015, 65535)),
        close.replace(b"bye", b"\xff"),
        envelope(room_target(ROOM), Message(b"x" * LARGEST, is_text=True)),
        *(envelope(target) for target in (EVERYBODY, room_target("pantry"), user_target("ann"))),
        envelope(connection_target(uuid4().hex)),
    ]
    return [
        *((KITCHEN, payload) for payload in for_the_kitchen),
        *((channel, payload) for channel in (EVERYWHERE, ANN) for payload in (b"", b"hello", pickle.dumps(1), good)),
        (ANN, envelope(EVERYBODY)),
        (EVERYWHERE, envelope(user_target("ann"))),
    ]


async def test_what_is_no_envelope_of_ours_is_dropped_and_counted(broker, tmp_path, caplog):
    trap = tmp_path / "trap"
    with running(broker.url, broker.url) as nodes:
        one, two = nodes
        async with member(one, query="?user=ann") as local, member(two, query="?user=ann") as remote:
            async with speaking(one, per_second=100) as speaker:
                await remote.hears_again(speaker, time.monotonic())
                for count, (channel, payload) in enumerate(rubbish(trap), 1):
                    assert broker.call("PUBLISH", channel, payload) == 2
                    await until(
                        lambda n=count: [node.status.undecodable for node in nodes] == [n, n], repr(payload[:99])
                    )
                await remote.hears_again(speaker, time.monotonic())
            for node in nodes:
                for payload in (b"", b"hello", envelope(EVERYBODY)):
                    assert broker.call("PUBLISH", f"rooms:node:{node.manager.node_id}:0", payload) == 1
                await until(lambda node=node: node.status.undecodable == count + 3, "where a node hears itself, too")
            await one.say("the end")
            await remote.hears("the end")
        assert count > 80
        assert not trap.exists()
        assert set(remote.heard) == {said.text for said in speaker.said} | {"the end"}
        check_hearing(speaker, remote, [])
        check_hearing(speaker, local, [])
        assert speaker.failed == []
        for node in nodes:
            status = node.status
            assert (status.connected, status.reconnects, status.gaps, status.undelivered) == (True, 0, 0, 0)
    lines = [record.getMessage() for record in caplog.records if "no envelope" in record.getMessage()]
    assert len(lines) == len(nodes), "each says it once a minute"
    assert all(line.startswith(f"dropped what is no envelope on {KITCHEN} (") for line in lines)


async def test_a_flood_of_rubbish_keeps_nothing_else_from_coming_through(broker):
    with running(broker.url, broker.url) as (one, two):
        async with member(two) as remote:
            async with speaking(one, per_second=200) as speaker:
                pipeline = broker.client.pipeline(transaction=False)
                for _ in range(20):
                    for number in range(1000):
                        # 7 MB in all: with more, Redis may cut a node off whose machine is busy, rightly.
                        pipeline.publish(KITCHEN, b"rubbish" * (number % 100))
                    pipeline.execute()
                await remote.hears_again(speaker, time.monotonic())
            await one.say("the end")
            await remote.hears("the end")
        check_hearing(speaker, remote, [])
        assert (two.status.undecodable, two.status.reconnects, two.gaps) == (20_000, 0, [])
