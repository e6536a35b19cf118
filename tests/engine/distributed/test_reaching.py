"""What one node says reaches the connections of all, each once and in order."""

import asyncio
from uuid import uuid4

import pytest
from support import until

from engine.distributed.calls import KITCHEN, LOG
from engine.fakes import connected, is_empty, settled, texts
from engine.scripted import OTHER_NODE, text
from fastapi_rooms.domain.envelope import Envelope, connection_target, room_target, user_target
from fastapi_rooms.domain.errors import BackendUnavailable, ConfigurationError, InvalidName, MessageError
from fastapi_rooms.domain.messages import Close, MessageType
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager


async def test_every_way_to_send_reaches_all_nodes_and_each_connection_once(nodes):
    one, *_ = nodes
    peers = []
    for node in nodes:
        for _ in range(2):
            peer, connection = await connected(node, "kitchen", "ann")
            await node.join_room(connection, "hall")
            peers.append(peer)
    strangers = [(await connected(node, "attic", "bob"))[0] for node in nodes]
    assert await one.broadcast_to_room("kitchen", "room") == 2
    assert await one.send_to_user("ann", "user") == 2
    assert await one.broadcast("all") == 3
    assert await texts(*peers) == [["room", "user", "all"]] * 6
    assert await texts(*strangers) == [["all"]] * 3


@pytest.mark.parametrize("node", range(3))
async def test_one_connection_is_reached_wherever_it_is(nodes, node):
    peers = [await connected(each) for each in nodes]
    peer, connection = peers[node]
    reached = await nodes[0].send_personal(connection.connection_id, {"n": 1})
    assert reached is (node == 0), "what is elsewhere is not counted"
    assert await texts(peer) == [['{"n":1}']]
    await nodes[0].close(connection.connection_id, 4000, "bye")
    await until(lambda: peer.close_codes)
    assert peer.close_codes == [4000]
    assert [p.texts + p.close_codes for p, _ in peers if p is not peer] == [[], []]


async def test_who_is_nowhere_gets_nothing(nodes):
    one, two, _ = nodes
    peer, _ = await connected(two)
    for unknown in (uuid4().hex, "no id", "", "\ud800"):
        assert await one.send_personal(unknown, "hi") is False
        await one.close(unknown)
    assert await one.send_to_user("nobody", "hi") == 0
    assert await one.broadcast_to_room("nowhere", "hi") == 0
    assert await one.close_user("nobody") == await one.close_room("nowhere") == 0
    assert await texts(peer) == [[]]
    assert peer.close_codes == []


async def test_what_is_meant_for_a_connection_of_this_node_is_not_published(manager, backend):
    peer, connection = await connected(manager)
    assert await connection.send("by connection")
    assert await manager.send_personal(connection.connection_id, "by id")
    assert await manager.send_personal(peer.websocket, "by socket")
    await manager.close(connection.connection_id)
    await manager.close(connection)
    assert await texts(peer) == [["by connection", "by id", "by socket"]]
    assert backend.published == []


async def test_a_connection_that_has_ended_is_not_looked_for_elsewhere_unless_by_its_id(manager, backend):
    _, connection = await connected(manager)
    await connection.close()
    assert await manager.send_personal(connection, "too late") is False
    await manager.close(connection)
    assert backend.published == []
    assert await manager.send_personal(connection.connection_id, "maybe there") is False
    assert [envelope.target for envelope in backend.published] == [connection_target(connection.connection_id)]


@pytest.mark.parametrize(
    ("form", "is_here"),
    [
        (lambda peer, connection: connection, True),
        (lambda peer, connection: connection.connection_id, True),
        (lambda peer, connection: [peer.websocket], True),
        (lambda peer, connection: {connection.connection_id, "no id", uuid4().hex}, False),
        (lambda peer, connection: [connection.connection_id], False),
    ],
)
async def test_who_is_left_out_is_left_out_on_every_node(nodes, form, is_here):
    one, two, three = nodes
    peers = [await connected(node, "kitchen") for node in (one, two, three)]
    left_out = peers[0 if is_here else 1]
    assert await one.broadcast_to_room("kitchen", "room", exclude=form(*left_out)) == (0 if is_here else 1)
    assert await one.broadcast("all", exclude=form(*left_out)) == (0 if is_here else 1)
    assert await texts(*(peer for peer, _ in peers)) == [
        [] if peer is left_out[0] else ["room", "all"] for peer, _ in peers
    ]


@pytest.mark.parametrize("ends", [False, True])
async def test_a_user_is_left_out_on_every_node_whatever_connections_there_are(nodes, ends):
    one, *_ = nodes
    ann = [(await connected(node, "kitchen", "ann"))[0] for node in nodes for _ in range(2)]
    bob = [(await connected(node, "kitchen", "bob"))[0] for node in nodes]
    peer, left_out = await connected(one, "kitchen")
    if ends:
        assert await one.broadcast_to_room("kitchen", 4000, "close", exclude=left_out, exclude_user="ann") == 1
        await until(lambda: all(peer.close_codes == [4000] for peer in bob))
        assert [peer.close_codes for peer in ann] == [[]] * 6
    else:
        assert await one.broadcast("all", exclude_user="ann") == 2
        assert await one.broadcast_to_room("kitchen", "room", exclude_user="ann", exclude=left_out) == 1
        assert await one.broadcast_to_room("kitchen", "room", exclude_user="nobody") == 4
        assert await texts(*ann) == [["room"]] * 6
        assert await texts(*bob) == [["all", "room", "room"]] * 3
    assert await texts(peer) == [[] if ends else ["all", "room"]]
    for user, error in (("", InvalidName), (7, ConfigurationError)):
        with pytest.raises(error, match="exclude_user"):
            await one.broadcast("all", exclude_user=user)
        with pytest.raises(error, match="exclude_user"):
            await one.broadcast_to_room("kitchen", "all", exclude_user=user)


async def test_many_can_be_left_out_wherever_they_are(nodes):
    peers = [await connected(node, "kitchen") for node in nodes for _ in range(40)]
    left_out = [connection.connection_id for _, connection in peers[::2]]
    assert await nodes[1].broadcast_to_room("kitchen", "hi", exclude=left_out) == 20
    assert await texts(*(peer for peer, _ in peers)) == [[], ["hi"]] * 60


async def test_what_one_node_sends_arrives_everywhere_in_its_order(nodes):
    one, *_ = nodes
    peers = [(await connected(node, "kitchen", "ann"))[0] for node in nodes]
    calls = []
    for number in range(0, 300, 3):
        calls += [
            asyncio.create_task(one.broadcast_to_room("kitchen", str(number))),
            asyncio.create_task(one.send_to_user("ann", str(number + 1))),
            asyncio.create_task(one.broadcast(str(number + 2))),
        ]
    await asyncio.gather(*calls)
    assert await texts(*peers) == [[str(number) for number in range(300)]] * 3


PAYLOADS = {
    "text": ("héllo \U0001f986\0\n", None, "héllo \U0001f986\0\n"),
    "nothing": ("", None, ""),
    "all bytes": (bytes(range(256)), None, bytes(range(256))),
    "no bytes": (b"", None, b""),
    "an object": ({"a": [1, None, "é", 1.5]}, None, '{"a":[1,null,"é",1.5]}'),
    "ready JSON": ('{ "a" :\n1.0 }', MessageType.JSON, '{ "a" :\n1.0 }'),
    "text as bytes": ("é", MessageType.BYTES, "é".encode()),
    "a ping": (None, MessageType.PING, '{"type":"ping"}'),
    "a pong": (7, MessageType.PONG, '{"type":"pong","data":7}'),
    "a megabyte": ("x" * (1 << 20), None, "x" * (1 << 20)),
}


@pytest.mark.parametrize(("message", "kind", "received"), PAYLOADS.values(), ids=PAYLOADS)
async def test_every_kind_of_message_crosses_unchanged(nodes, message, kind, received):
    one, two, _ = nodes
    peers = [(await connected(node, "kitchen"))[0] for node in (one, two)]
    await one.broadcast_to_room("kitchen", message, kind)
    await settled()
    key = "text" if isinstance(received, str) else "bytes"
    assert [peer.events for peer in peers] == [[{"type": "websocket.send", key: received}]] * 2


CLOSES = {
    "a room": lambda manager: manager.close_room("kitchen", 4001, "é" * 80),
    "a user": lambda manager: manager.close_user("ann", 4001, "é" * 80),
    "a room, as a message": lambda manager: manager.broadcast_to_room("kitchen", (4001, "é" * 80), "close"),
    "a user, as a message": lambda manager: manager.send_to_user("ann", (4001, "é" * 80), "close"),
    "everybody": lambda manager: manager.broadcast((4001, "é" * 80), MessageType.CLOSE),
}


@pytest.mark.parametrize("close", CLOSES.values(), ids=CLOSES)
async def test_every_way_to_close_closes_on_all_nodes_behind_what_was_sent(nodes, close):
    one, two, _ = nodes
    peers = [(await connected(node, "kitchen", "ann"))[0] for node in (one, two)]
    await one.broadcast_to_room("kitchen", "before")
    assert await close(one) == 1
    assert is_empty(one)
    await settled()
    assert is_empty(two)
    for peer in peers:
        assert [event["type"] for event in peer.events] == ["websocket.send", "websocket.close"]
        assert (peer.events[-1]["code"], peer.events[-1]["reason"]) == (4001, "é" * 61)


async def test_closing_leaves_out_whom_it_is_told_to(nodes):
    one, two, _ = nodes
    (here, _), (there, kept) = await connected(one, "kitchen"), await connected(two, "kitchen")
    await one.broadcast_to_room("kitchen", 4000, "close", exclude=kept.connection_id)
    await settled()
    assert (here.close_codes, there.close_codes) == ([4000], [])


@pytest.mark.parametrize("code", [1005, 1006, 999, 5000])
async def test_a_code_that_may_not_be_sent_closes_nobody_anywhere(manager, backend, code):
    peer, _ = await connected(manager, "kitchen", "ann")
    for call in (manager.close_room("kitchen", code), manager.close_user("ann", code), manager.close("a" * 32, code)):
        with pytest.raises(ConfigurationError):
            await call
    assert (peer.close_codes, backend.published) == ([], [])


ENDINGS = {
    "waits for Redis": (RoomsSettings(), False),
    "does not wait": (LOG, False),
    "fails at once": (RoomsSettings(), True),
    "fails at once, and that is logged": (LOG, True),
}


@pytest.mark.parametrize("close", CLOSES.values(), ids=CLOSES)
@pytest.mark.parametrize(("settings", "is_cut"), ENDINGS.values(), ids=ENDINGS)
async def test_when_a_close_returns_the_close_frames_of_this_node_are_out(cluster, settings, is_cut, close):
    """An endpoint that returns right behind it would have the server close its socket with a code of its own."""
    manager = DistributedWebSocketManager(cluster.backends[0], settings=settings)
    await manager.start()
    peer, _ = await connected(manager, "kitchen", "ann")
    if is_cut:
        cluster.cut(0)
    try:
        await close(manager)
    except BackendUnavailable:
        assert is_cut
    assert peer.close_codes == [4001]
    await manager.stop()


async def test_a_slow_consumer_of_another_node_is_closed_there_and_not_the_senders_problem(cluster):
    settings = RoomsSettings(outbox_messages=5, send_timeout=0.2)
    one, two, _ = (DistributedWebSocketManager(backend, settings=settings) for backend in cluster)
    for manager in (one, two):
        await manager.start()
    slow, connection = await connected(two, "kitchen")
    quick, _ = await connected(two, "kitchen")
    slow.reads.clear()
    for number in range(30):
        assert await one.broadcast_to_room("kitchen", number) == 0
        await settled()
    assert quick.texts == [str(number) for number in range(30)]
    assert not connection.is_open
    assert (one.stats().closed["slow_consumer"], two.stats().closed["slow_consumer"]) == (0, 1)
    for manager in (one, two):
        await manager.stop()


# What arrives


async def test_what_arrives_for_nobody_here_is_nothing(manager, backend):
    peer, connection = await connected(manager, "kitchen")
    for target in (room_target("hall"), user_target("bob"), connection_target(uuid4().hex)):
        backend.receiver.receive(text("hi", target))
        backend.receiver.receive(Envelope(OTHER_NODE, target, Close(4000)))
    assert await texts(peer) == [[]]
    assert connection.is_open


async def test_what_arrives_after_a_close_goes_to_who_is_left(manager, backend):
    (closed, one), (left, _) = await connected(manager, "kitchen"), await connected(manager, "kitchen")
    backend.receiver.receive(Envelope(OTHER_NODE, connection_target(one.connection_id), Close(4000, "bye")))
    backend.receiver.receive(text("hi", KITCHEN))
    assert await texts(closed, left) == [[], ["hi"]]
    assert closed.close_codes == [4000]


# Messages that cannot go


SMALL = RoomsSettings(max_envelope_bytes=100)


@pytest.mark.parametrize("settings", [SMALL, SMALL.model_copy(update={"publish_failure": "log"})])
async def test_a_message_that_is_too_large_for_others_goes_to_nobody(backend, settings):
    manager = DistributedWebSocketManager(backend, settings=settings)
    await manager.start()
    peer, connection = await connected(manager, "kitchen", "ann")
    for call in (
        manager.broadcast("x" * 72),
        manager.broadcast_to_room("kitchen", "x" * 65),
        manager.send_to_user("ann", b"x" * 69),
        manager.send_personal(uuid4().hex, "x" * 72),
        manager.broadcast("x", exclude=[uuid4().hex for _ in range(5)]),
    ):
        with pytest.raises(MessageError, match=r"more than max_envelope_bytes \(100\)"):
            await call
    assert (await texts(peer), backend.published) == ([[]], [])
    assert await manager.send_personal(connection, "x" * 1000) is True, "it does not leave this node"
    assert await manager.broadcast("x" * 71) == 1
    assert [len(envelope.encode()) for envelope in backend.published] == [100]
    await manager.stop()


@pytest.mark.parametrize("message", [object(), "\ud800"])
async def test_what_cannot_be_encoded_goes_to_nobody(manager, backend, message):
    peer, _ = await connected(manager, "kitchen", "ann")
    for call in (
        manager.broadcast(message),
        manager.broadcast_to_room("kitchen", message),
        manager.send_to_user("ann", message),
        manager.send_personal(uuid4().hex, message),
    ):
        with pytest.raises(MessageError):
            await call
    assert (await texts(peer), backend.published) == ([[]], [])
