"""The manager of many nodes: several in one process, sockets in memory, and backends that do what a test tells them."""

import asyncio
import logging
from uuid import uuid4

import pytest
from support import counted

from engine.fakes import DEADLINE, Peer, connected, is_empty, run_clocked, texts, ticks, until
from engine.scripted import ScriptedBackend
from fastapi_rooms.domain.connection import Phase
from fastapi_rooms.domain.envelope import (
    EVERYBODY,
    Envelope,
    connection_target,
    room_target,
    user_target,
)
from fastapi_rooms.domain.errors import BackendUnavailable, ConfigurationError, ManagerNotStarted, MessageError
from fastapi_rooms.domain.messages import Close, Message, MessageType
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.testing import LocalCluster

KITCHEN, ANN = room_target("kitchen"), user_target("ann")
OTHER_NODE = "0123456789abcdef0123456789abcdef"
LOG = RoomsSettings(publish_failure="log")

EVERY_CALL = {
    "broadcast": lambda manager: manager.broadcast("hi"),
    "broadcast_to_room": lambda manager: manager.broadcast_to_room("kitchen", "hi"),
    "send_to_user": lambda manager: manager.send_to_user("ann", "hi"),
    "send_personal": lambda manager: manager.send_personal(uuid4().hex, "hi"),
    "close_user": lambda manager: manager.close_user("ann"),
    "close_room": lambda manager: manager.close_room("kitchen"),
    "close": lambda manager: manager.close(uuid4().hex),
}
every_call = pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)


def only_this_task() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


def text(payload: str, target=EVERYBODY, excluded=()) -> Envelope:
    """What another node says."""
    return Envelope(OTHER_NODE, target, Message(payload.encode(), is_text=True), frozenset(excluded))


@pytest.fixture
def cluster():
    return LocalCluster(3)


@pytest.fixture
async def nodes(cluster):
    """Three started managers, of which nothing is left at the end."""
    managers = [DistributedWebSocketManager(backend) for backend in cluster]
    for manager in managers:
        await manager.start(required=True)
    yield managers
    for manager in managers:
        await manager.stop()
    assert only_this_task()
    assert all(is_empty(manager) for manager in managers)


@pytest.fixture
def backend():
    return ScriptedBackend()


@pytest.fixture
async def manager(backend):
    """A started manager on a scripted backend."""
    manager = DistributedWebSocketManager(backend)
    await manager.start()
    yield manager
    backend.starts.set()
    backend.stops.set()
    backend.confirm()
    backend.answer()
    await manager.stop()
    assert only_this_task()
    assert backend.faults == []


# Before the first start


@every_call
async def test_before_the_first_start_whatever_reaches_others_says_how_to_start(backend, call):
    manager = DistributedWebSocketManager(backend)
    with pytest.raises(ManagerNotStarted, match=r"`await manager\.start\(\)` when the app starts.*RoomsExtension"):
        await call(manager)
    assert backend.published == []


async def test_before_the_first_start_nobody_can_connect_and_nothing_is_left_of_who_tries(backend):
    manager, peer = DistributedWebSocketManager(backend), Peer()
    with pytest.raises(ManagerNotStarted):
        await manager.connect(peer.websocket, "kitchen", "ann")
    assert peer.events == []
    assert is_empty(manager)
    assert backend.wanted == set()


async def test_before_the_first_start_it_can_be_looked_at(backend):
    manager = DistributedWebSocketManager(backend)
    assert (manager.active_connections, manager.active_rooms) == (0, [])
    assert not manager.status.connected
    assert repr(manager) == f"<DistributedWebSocketManager connections=0 rooms=0 degraded node={manager.node_id[:8]}>"


async def test_a_start_that_failed_is_no_start(backend):
    manager = DistributedWebSocketManager(backend)
    backend.start_error = BackendUnavailable("Redis is away")
    with pytest.raises(BackendUnavailable, match="Redis is away"):
        await manager.start(required=True)
    with pytest.raises(ManagerNotStarted):
        await manager.broadcast("hi")
    backend.start_error = None
    await manager.start(required=True)
    assert await manager.broadcast("hi") == 0


def test_a_url_that_leads_nowhere_is_refused():
    with pytest.raises(ConfigurationError, match="redis://host:6379"):
        DistributedWebSocketManager("http://localhost")


# Start and stop


async def test_starting_again_changes_nothing(nodes):
    one, two, _ = nodes
    peer, _ = await connected(two, "kitchen")
    for _ in range(3):
        await two.start(required=True)
    await one.broadcast_to_room("kitchen", "hi")
    await one.broadcast("all")
    assert await texts(peer) == [["hi", "all"]]


async def test_whoever_starts_concurrently_waits_until_it_is_started(backend):
    manager = DistributedWebSocketManager(backend)
    backend.starts.clear()
    calls = [asyncio.create_task(manager.start()) for _ in range(3)]
    await ticks()
    assert not any(call.done() for call in calls)
    with pytest.raises(ManagerNotStarted):
        await manager.broadcast("too early")
    backend.starts.set()
    await asyncio.gather(*calls)
    assert await manager.broadcast("hi") == 0
    assert backend.faults == []


async def test_stopping_is_idempotent_also_concurrently_and_before_the_first_start(backend):
    manager = DistributedWebSocketManager(backend)
    await manager.stop()
    await manager.start()
    backend.stops.clear()
    calls = [asyncio.create_task(manager.stop()) for _ in range(3)]
    await ticks()
    assert not any(call.done() for call in calls)
    backend.stops.set()
    await asyncio.gather(*calls)
    await manager.stop()
    assert backend.receiver is None
    assert backend.faults == []
    assert only_this_task()


async def test_the_hooks_of_a_node_that_stops_still_reach_the_other_nodes():
    async def tell(end):
        await asyncio.sleep(0.01)  # a database
        await leaving.broadcast_to_room("kitchen", f"{end.connection.user_id} has left")

    one, other = LocalCluster(2)
    leaving = DistributedWebSocketManager(one, hooks=Hooks(disconnected=tell))
    staying = DistributedWebSocketManager(other)
    await leaving.start(required=True)
    await staying.start(required=True)
    await connected(leaving, "kitchen", "ann")
    peer, _ = await connected(staying, "kitchen")
    await leaving.stop()
    await until(lambda: peer.texts == ["ann has left"])
    await staying.stop()
    assert only_this_task()


async def test_a_stop_during_the_start_ends_what_was_started(backend):
    manager = DistributedWebSocketManager(backend)
    backend.starts.clear()
    starting = asyncio.create_task(manager.start())
    await ticks()
    stopping = asyncio.create_task(manager.stop())
    await ticks()
    assert not stopping.done()
    backend.starts.set()
    await asyncio.gather(starting, stopping)
    assert backend.told == ["start", "start is over", "stop", "stop is over"]
    assert backend.receiver is None


async def test_a_start_during_the_stop_starts_what_was_stopped(manager, backend):
    backend.stops.clear()
    stopping = asyncio.create_task(manager.stop())
    await ticks()
    starting = asyncio.create_task(manager.start())
    await ticks()
    assert not starting.done()
    backend.stops.set()
    await asyncio.gather(starting, stopping)
    assert backend.told[-4:] == ["stop", "stop is over", "start", "start is over"]
    assert backend.receiver is not None


async def test_a_start_that_is_cancelled_leaves_the_next_one_free(backend):
    manager = DistributedWebSocketManager(backend)
    backend.starts.clear()
    call = asyncio.create_task(manager.start())
    await ticks()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    with pytest.raises(ManagerNotStarted):
        await manager.broadcast("hi")
    backend.starts.set()
    await manager.start()
    assert await manager.broadcast("hi") == 0


async def test_a_stop_that_is_cancelled_can_be_called_again(manager, backend):
    backend.stops.clear()
    call = asyncio.create_task(manager.stop())
    await ticks()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    backend.stops.set()
    await manager.stop()
    assert backend.receiver is None


async def test_after_a_stop_it_can_be_started_again_and_hears_what_is_said_from_then_on(nodes):
    one, two, _ = nodes
    await two.stop()
    await one.broadcast("missed")
    await two.start(required=True)
    peer, _ = await connected(two, "kitchen")
    await one.broadcast_to_room("kitchen", "hi")
    await one.broadcast("all")
    assert await texts(peer) == [["hi", "all"]]


async def test_while_it_is_stopped_others_are_out_of_reach(nodes):
    one, two, _ = nodes
    peer, _ = await connected(two)
    await one.stop()
    with pytest.raises(BackendUnavailable, match="not started"):
        await one.broadcast("hi")
    assert await texts(peer) == [[]]


async def test_stopping_closes_everybody_with_1012_after_the_last_words_which_reach_all_nodes(nodes):
    one, two, _ = nodes
    here, _ = await connected(one, "kitchen", "ann")
    there, _ = await connected(two, "kitchen", "ann")
    await one.broadcast("last words")
    await one.stop()
    assert await texts(here, there) == [["last words"], ["last words"]]
    assert (here.close_codes, there.close_codes) == ([1012], [])
    assert is_empty(one)
    assert not one.status.connected


async def test_connections_are_closed_before_the_others_are_out_of_reach(manager, backend):
    peer, _ = await connected(manager)
    backend.stops.clear()
    stopping = asyncio.create_task(manager.stop())
    await until(lambda: "stop" in backend.told)
    assert peer.close_codes == [1012]
    backend.stops.set()
    await stopping


async def test_a_stop_does_not_wait_for_a_handshake_whose_subscription_is_not_confirmed():
    manager = DistributedWebSocketManager(backend := ScriptedBackend(), settings=RoomsSettings(send_timeout=0.1))
    await manager.start()
    backend.confirms = False
    peer = Peer()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "kitchen"))
    await ticks()
    async with asyncio.timeout(DEADLINE):
        await manager.stop()
    assert is_empty(manager)
    assert backend.wanted == {EVERYBODY}
    backend.confirm()
    with pytest.raises(HandshakeRefused, match="503"):
        await connecting
    assert peer.events == []


async def test_it_starts_degraded_serves_its_own_and_connects_when_it_can(cluster):
    cluster.cut(0)
    one, two, _ = (DistributedWebSocketManager(backend) for backend in cluster)
    for manager in (one, two):
        await manager.start()
    assert (one.status.connected, two.status.connected) == (False, True)
    here, _ = await connected(one, "kitchen")
    there, _ = await connected(two, "kitchen")
    with pytest.raises(BackendUnavailable):
        await one.broadcast_to_room("kitchen", "for us")
    cluster.restore(0)
    await one.broadcast_to_room("kitchen", "for all")
    await ticks()
    await two.broadcast_to_room("kitchen", "for all, too")
    assert await texts(here, there) == [["for us", "for all", "for all, too"], ["for all", "for all, too"]]
    assert one.status.connected
    for manager in (one, two):
        await manager.stop()


async def test_if_others_are_required_it_does_not_start_without_them(cluster):
    cluster.cut(0)
    manager = DistributedWebSocketManager(cluster.backends[0])
    with pytest.raises(BackendUnavailable, match="cut off"):
        await manager.start(required=True)
    assert only_this_task()
    cluster.restore(0)
    await manager.start(required=True)
    assert manager.status.connected
    await manager.stop()


def test_it_works_on_one_loop_after_the_other(cluster):
    one, two, _ = (DistributedWebSocketManager(backend) for backend in cluster)

    async def main():
        await asyncio.gather(*(manager.start() for manager in (one, two, one, two)))
        peer, _ = await connected(two, "kitchen", "ann")
        await one.broadcast_to_room("kitchen", "hi")
        assert await texts(peer) == [["hi"]]
        await asyncio.gather(*(manager.stop() for manager in (one, two, one, two)))

    for _ in range(3):
        asyncio.run(main())


def test_after_a_loop_that_ended_without_a_stop_it_can_be_started_on_another(cluster):
    one, two, _ = (DistributedWebSocketManager(backend) for backend in cluster)

    async def main():
        for manager in (one, two):
            await manager.start(required=True)
        peer, connection = await connected(two, "kitchen")
        await one.broadcast_to_room("kitchen", "hi")
        assert await texts(peer) == [["hi"]]
        two.disconnect(connection)

    for _ in range(3):
        asyncio.run(main())


# Reaching others


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
    assert await connection.send("too late") is False
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
    await ticks(20)
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
    await ticks()
    assert is_empty(two)
    for peer in peers:
        assert [event["type"] for event in peer.events] == ["websocket.send", "websocket.close"]
        assert (peer.events[-1]["code"], peer.events[-1]["reason"]) == (4001, "é" * 61)


async def test_closing_leaves_out_whom_it_is_told_to(nodes):
    one, two, _ = nodes
    (here, _), (there, kept) = await connected(one, "kitchen"), await connected(two, "kitchen")
    await one.broadcast_to_room("kitchen", 4000, "close", exclude=kept.connection_id)
    await ticks()
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
        await ticks()
    assert quick.texts == [str(number) for number in range(30)]
    assert not connection.is_open
    assert (one.stats().closed["slow_consumer"], two.stats().closed["slow_consumer"]) == (0, 1)
    for manager in (one, two):
        await manager.stop()


# Subscriptions


async def test_a_handshake_is_answered_when_its_subscriptions_are_confirmed(manager, backend):
    backend.confirms = False
    peer = Peer()
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await ticks()
    assert backend.wanted == {EVERYBODY, KITCHEN, ANN}
    backend.confirm(KITCHEN)
    await ticks()
    assert peer.events == []
    assert manager.active_connections == 0
    backend.confirm(ANN)
    await call
    assert [event["type"] for event in peer.events] == ["websocket.accept"]


async def test_what_other_nodes_say_meanwhile_waits_for_the_answer_to_the_handshake(manager, backend):
    backend.confirms = False
    peer = Peer()
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await ticks()
    backend.confirm(KITCHEN)
    backend.receiver.receive(text("room", KITCHEN))
    backend.confirm(ANN)
    backend.receiver.receive(text("user", ANN))
    await call
    assert await texts(peer) == [["room", "user"]]


async def test_a_connection_without_room_and_user_waits_for_nothing(manager, backend):
    backend.confirms = False
    async with asyncio.timeout(DEADLINE):
        await connected(manager)
    assert backend.wanted == {EVERYBODY}


async def test_a_join_returns_when_it_is_confirmed_for_whoever_joins_meanwhile_too(manager, backend):
    connections = [(await connected(manager))[1] for _ in range(3)]
    backend.confirms = False
    calls = [asyncio.create_task(manager.join_room(connection, "kitchen")) for connection in connections]
    await ticks()
    assert len(manager.get_room_members("kitchen")) == 3, "it hears the room from the first moment"
    assert not any(call.done() for call in calls)
    backend.confirm()
    assert await asyncio.gather(*calls) == [True] * 3


async def test_a_socket_that_is_connected_again_waits_for_its_new_room(manager, backend):
    peer, connection = await connected(manager, "kitchen")
    backend.confirms = False
    call = asyncio.create_task(manager.connect(peer.websocket, "hall"))
    await ticks()
    assert not call.done()
    backend.confirm()
    assert await call is connection
    assert connection.rooms == {"kitchen", "hall"}


async def test_while_degraded_connecting_and_joining_wait_for_nothing(cluster, nodes):
    one, two, _ = nodes
    cluster.cut(1)
    async with asyncio.timeout(DEADLINE):
        peer, connection = await connected(two, "kitchen", "ann")
        await two.join_room(connection, "hall")
    cluster.restore(1)
    await one.broadcast_to_room("hall", "hi")
    await one.send_to_user("ann", "you")
    assert await texts(peer) == [["hi", "you"]], "the subscriptions have followed"


async def test_a_join_that_is_cancelled_while_it_waits_has_joined(manager, backend):
    peer, connection = await connected(manager)
    backend.confirms = False
    call = asyncio.create_task(manager.join_room(connection, "kitchen"))
    await ticks()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert connection.rooms == {"kitchen"}
    assert backend.wanted == {EVERYBODY, KITCHEN}, "membership and what is wanted agree"
    backend.confirm()
    backend.receiver.receive(text("hi", KITCHEN))
    assert await texts(peer) == [["hi"]]
    assert await manager.leave_room(connection, "kitchen")
    assert backend.wanted == {EVERYBODY}


async def test_a_join_that_is_cancelled_leaves_the_others_waiting_for_the_same_room(manager, backend):
    connections = [(await connected(manager))[1] for _ in range(2)]
    backend.confirms = False
    impatient, patient = [asyncio.create_task(manager.join_room(each, "kitchen")) for each in connections]
    await ticks()
    impatient.cancel()
    await asyncio.wait([impatient])
    assert not patient.done()
    backend.confirm()
    assert await patient is True


async def test_a_connection_that_is_cancelled_while_it_waits_leaves_nothing_behind(manager, backend):
    backend.confirms = False
    peer = Peer()
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await ticks()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert peer.events == []
    assert is_empty(manager)
    assert backend.wanted == {EVERYBODY}


async def test_a_connection_that_is_cancelled_leaves_what_others_have_in_common_with_it(manager, backend):
    _, kept = await connected(manager, "kitchen", "ann")
    backend.confirms = False
    call = asyncio.create_task(manager.connect(Peer().websocket, "kitchen", "ann"))
    await ticks()
    call.cancel()
    await asyncio.wait([call])
    assert manager.get_room_members("kitchen") == [kept]
    assert backend.wanted == {EVERYBODY, KITCHEN, ANN}


ENDS_MEANWHILE = {
    "forgotten": (lambda manager, peer, backend: manager.disconnect(peer.websocket), []),
    "its room is closed": (lambda manager, peer, backend: manager.close_room("kitchen", 4001), [4001]),
    "its user is closed": (lambda manager, peer, backend: manager.close_user("ann", 4001), [4001]),
    "closed by another node": (
        lambda manager, peer, backend: backend.receiver.receive(Envelope(OTHER_NODE, KITCHEN, Close(4001))),
        [4001],
    ),
}


@pytest.mark.parametrize(("end", "close_codes"), ENDS_MEANWHILE.values(), ids=ENDS_MEANWHILE)
async def test_a_connection_that_ends_while_its_subscription_is_confirmed_is_not_opened(
    manager, backend, end, close_codes
):
    backend.confirms = False
    peer = Peer()
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await ticks()
    result = end(manager, peer, backend)
    if asyncio.iscoroutine(result):
        assert await result == 1
    assert is_empty(manager)
    assert backend.wanted == {EVERYBODY}
    backend.confirm()
    connection = await call
    await ticks()
    assert not connection.is_open
    assert peer.close_codes == close_codes
    assert is_empty(manager)
    assert backend.wanted == {EVERYBODY}


async def test_a_client_that_goes_while_its_subscription_is_confirmed_leaves_nothing_behind(manager, backend):
    backend.confirms = False
    peer = Peer()
    peer.accept_error = ConnectionResetError("the client is gone")
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await ticks()
    backend.receiver.receive(text("lost", KITCHEN))
    backend.confirm()
    with pytest.raises(ConnectionResetError):
        await call
    assert is_empty(manager)
    assert backend.wanted == {EVERYBODY}
    assert manager.stats().dropped["lost"] == 1


async def test_a_room_that_is_left_and_joined_again_while_it_is_confirmed_is_wanted(manager, backend):
    _, connection = await connected(manager)
    backend.confirms = False
    first = asyncio.create_task(manager.join_room(connection, "kitchen"))
    await ticks()
    assert await manager.leave_room(connection, "kitchen")
    assert backend.wanted == {EVERYBODY}
    second = asyncio.create_task(manager.join_room(connection, "kitchen"))
    await ticks()
    assert backend.wanted == {EVERYBODY, KITCHEN}
    backend.confirm()
    assert await asyncio.gather(first, second) == [True, True]
    assert connection.rooms == {"kitchen"}


async def test_the_last_member_who_leaves_ends_the_subscription(manager, backend):
    (_, one), (_, two) = await connected(manager, "kitchen"), await connected(manager, "kitchen")
    assert await manager.leave_room(one, "kitchen") is True
    assert KITCHEN in backend.wanted
    assert await manager.leave_room(two, "kitchen") is True
    assert backend.wanted == {EVERYBODY}
    assert await manager.leave_room(two, "kitchen") is False
    assert await manager.join_room(one, "kitchen")
    assert backend.wanted == {EVERYBODY, KITCHEN}


async def gone(manager, peer, connection):
    peer.send_error = OSError("reset")
    await connection.send("into the void")
    await until(lambda: connection._phase is Phase.ENDED)


LEAVES = {
    "disconnect": lambda manager, peer, connection: manager.disconnect(connection),
    "close": lambda manager, peer, connection: manager.close(connection),
    "close by id": lambda manager, peer, connection: manager.close(connection.connection_id),
    "close_user": lambda manager, peer, connection: manager.close_user("ann"),
    "close_room": lambda manager, peer, connection: manager.close_room("kitchen"),
    "found gone": gone,
    "stop": lambda manager, peer, connection: manager.stop(),
}


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
async def test_whatever_ends_a_connection_ends_its_subscriptions(manager, backend, leave):
    peer, connection = await connected(manager, "kitchen", "ann")
    await manager.join_room(connection, "hall")
    await connected(manager, "attic", "bob")
    assert backend.wanted == {EVERYBODY, KITCHEN, ANN, room_target("hall"), room_target("attic"), user_target("bob")}
    result = leave(manager, peer, connection)
    if asyncio.iscoroutine(result):
        await result
    rest = {room_target("attic"), user_target("bob")} if manager.active_connections else set()
    assert backend.wanted == {EVERYBODY, *rest}


def test_a_peer_that_takes_nothing_loses_its_subscriptions_with_its_socket():
    async def main():
        backend = ScriptedBackend()
        manager = DistributedWebSocketManager(backend, settings=RoomsSettings(send_timeout=1))
        await manager.start()
        peer, connection = await connected(manager, "kitchen", "ann")
        peer.reads.clear()
        await connection.send("x")
        await until(lambda: peer.transport.aborted, pause=0.1)
        assert backend.wanted == {EVERYBODY}
        await manager.stop()

    run_clocked(main)


async def test_a_user_is_heard_of_until_the_last_device_is_gone(nodes):
    one, two, _ = nodes
    (phone, first), (laptop, _) = await connected(two, user_id="ann"), await connected(two, user_id="ann")
    await one.send_to_user("ann", "both")
    await ticks()
    two.disconnect(first)
    await one.send_to_user("ann", "one")
    assert await texts(phone, laptop) == [["both"], ["both", "one"]]


async def test_members_who_leave_and_come_back_at_once_miss_nothing_afterwards(nodes):
    one, two, _ = nodes
    peer, connection = await connected(two, "kitchen")
    for number in range(20):
        await two.leave_room(connection, "kitchen")
        await two.join_room(connection, "kitchen")
        await one.broadcast_to_room("kitchen", number)
    assert await texts(peer) == [[str(number) for number in range(20)]]


async def test_nobody_comes_while_it_stops_and_everybody_may_when_it_has_started_again(manager, backend):
    _, connection = await connected(manager)
    backend.stops.clear()
    stopping = asyncio.create_task(manager.stop())
    await until(lambda: "stop" in backend.told)
    with pytest.raises(HandshakeRefused, match="503"):
        await connected(manager, "kitchen", "ann")
    backend.stops.set()
    await stopping
    await manager.start()
    late, _ = await connected(manager, "kitchen", "ann")
    assert backend.wanted == {EVERYBODY, KITCHEN, ANN}
    backend.receiver.receive(text("hi", ANN))
    assert await texts(late) == [["hi"]]
    assert not connection.is_open


# When others are out of reach


@pytest.mark.parametrize("call", ["broadcast", "broadcast_to_room", "send_to_user"])
async def test_if_publishing_fails_members_here_were_served_and_the_caller_is_told(manager, backend, call):
    peer, _ = await connected(manager, "kitchen", "ann")
    backend.answers = False
    sending = asyncio.create_task(EVERY_CALL[call](manager))
    assert await texts(peer) == [["hi"]], "nobody here waits for Redis"
    assert not sending.done()
    backend.answer("no answer within 2 s")
    with pytest.raises(BackendUnavailable) as failure:
        await sending
    assert "no answer within 2 s" in str(failure.value)
    assert "Connections of this node were served" in str(failure.value)
    assert "RoomsSettings(publish_failure='log')" in str(failure.value)
    assert isinstance(failure.value.__cause__, BackendUnavailable)
    assert len(backend.published) == 1, "nothing is sent again"


@pytest.mark.parametrize("call", ["close_user", "close_room"])
async def test_if_publishing_a_close_fails_connections_here_are_closed_and_the_caller_is_told(manager, backend, call):
    peer, _ = await connected(manager, "kitchen", "ann")
    backend.answers = False
    closing = asyncio.create_task(EVERY_CALL[call](manager))
    await ticks()
    assert peer.close_codes == [1000]
    backend.answer("gone")
    with pytest.raises(BackendUnavailable, match="gone"):
        await closing


@every_call
async def test_whoever_is_elsewhere_is_out_of_reach_and_the_caller_is_told(cluster, nodes, call):
    cluster.cut(0)
    with pytest.raises(BackendUnavailable, match="cut off"):
        await call(nodes[0])
    assert nodes[0].status.undelivered == 1


async def test_what_failed_is_never_sent_again(cluster, nodes):
    one, two, _ = nodes
    peer, _ = await connected(two, "kitchen")
    cluster.cut(0)
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            await one.broadcast_to_room("kitchen", "lost")
    cluster.restore(0)
    await one.broadcast_to_room("kitchen", "after")
    assert await texts(peer) == [["after"]]


async def test_cancelling_who_waits_takes_nothing_back(manager, backend):
    peer, _ = await connected(manager, "kitchen")
    backend.answers = False
    sending = asyncio.create_task(manager.broadcast_to_room("kitchen", "hi"))
    await ticks()
    sending.cancel()
    await asyncio.wait([sending])
    assert sending.cancelled()
    assert await texts(peer) == [["hi"]]
    assert [envelope.target for envelope in backend.published] == [KITCHEN]


async def test_cancelling_a_close_takes_nothing_back(manager, backend):
    peer, _ = await connected(manager, "kitchen")
    backend.answers = False
    closing = asyncio.create_task(manager.close_room("kitchen", 4000))
    await ticks()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert peer.close_codes == [4000]
    assert is_empty(manager)


async def test_members_of_other_nodes_do_not_wait_for_one_that_is_cut_off(cluster, nodes):
    _, two, three = nodes
    peers = [(await connected(node, "kitchen"))[0] for node in nodes]
    cluster.cut(0)
    await two.broadcast_to_room("kitchen", "hi")
    assert await texts(*peers) == [[], ["hi"], ["hi"]]
    assert (two.status.connected, three.status.connected) == (True, True)


async def test_an_error_that_is_no_outage_is_not_taken_for_one(manager, backend, monkeypatch):
    class BugError(Exception):
        pass

    def publish(envelope):
        future = asyncio.get_running_loop().create_future()
        future.set_exception(BugError())
        return future

    monkeypatch.setattr(backend, "publish", publish)
    with pytest.raises(BugError):
        await manager.broadcast("hi")


# Failures that are logged


@pytest.fixture
async def logging_manager(backend):
    manager = DistributedWebSocketManager(backend, settings=LOG)
    await manager.start()
    yield manager
    backend.answer()
    await manager.stop()
    assert only_this_task()


async def test_if_failures_are_logged_nobody_waits_for_the_others(logging_manager, backend, caplog):
    peer, _ = await connected(logging_manager, "kitchen", "ann")
    backend.answers = False
    assert await logging_manager.broadcast_to_room("kitchen", "hi") == 1
    assert await logging_manager.close_user("ann", 4000) == 1
    assert peer.texts == ["hi"]
    assert peer.close_codes == [4000]
    backend.answer("no answer")
    await ticks()
    assert logging_manager.status.undelivered == 2
    assert [record.getMessage() for record in caplog.records] == [
        "other nodes were not told: no answer (2 so far, said once a minute)"
    ]


async def test_what_succeeds_is_not_logged(logging_manager, backend, caplog):
    assert await logging_manager.broadcast("hi") == 0
    backend.answers = False
    assert await logging_manager.broadcast("hi") == 0
    backend.unanswered[0].cancel()
    await ticks()
    assert caplog.records == []


async def test_a_stop_waits_until_it_is_known_what_became_of_what_nobody_waits_for(logging_manager, backend, caplog):
    backend.answers = False
    await logging_manager.broadcast("hi")
    stopping = asyncio.create_task(logging_manager.stop())
    await ticks(20)
    assert not stopping.done()
    backend.answer("too late")
    await stopping
    assert "too late" in caplog.text


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_stop_leaves_no_task_of_a_backend_that_answers_at_once(cluster, is_cut, caplog):
    manager = DistributedWebSocketManager(cluster.backends[0], settings=LOG)
    await manager.start()
    if is_cut:
        cluster.cut(0)
    await manager.broadcast("hi")
    await manager.stop()
    assert only_this_task()
    assert len(caplog.records) == is_cut


async def test_a_stop_leaves_alone_what_nobody_will_answer_on_a_loop_that_is_gone(logging_manager, backend):
    dead = asyncio.new_event_loop()
    lost = dead.create_future()
    logging_manager._unanswered.add(lost)
    dead.close()
    async with asyncio.timeout(DEADLINE):
        await logging_manager.stop()
    logging_manager._unanswered.clear()


def test_failures_are_logged_once_a_minute(caplog):
    async def main():
        cluster = LocalCluster()
        manager = DistributedWebSocketManager(cluster.backends[0], settings=LOG)
        await manager.start()
        cluster.cut(0)
        for _ in range(125):
            await manager.broadcast("lost")
            await asyncio.sleep(1)
        assert manager.status.undelivered == 125
        await manager.stop()

    run_clocked(main)
    counts = [record.args[1] for record in caplog.records]
    assert counts == [1, 61, 121]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


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


# Gaps


async def told_of_a_gap(cluster, on_gap):
    """Start a manager that misses something; return it and its connection."""
    manager = DistributedWebSocketManager(cluster.backends[0], on_gap=on_gap)
    await manager.start()
    _, connection = await connected(manager, "kitchen", "ann")
    cluster.cut(0)
    cluster.restore(0)
    return manager, connection


@pytest.mark.parametrize("kind", ["function", "coroutine function", "callable object", "method"])
async def test_an_app_is_told_what_may_have_missed_something(cluster, kind):
    gaps = []

    async def later(gap):
        await asyncio.sleep(0)
        gaps.append(gap)

    class Called:
        def __call__(self, gap):
            gaps.append(gap)

        async def tell(self, gap):
            gaps.append(gap)

    on_gap = {
        "function": gaps.append,
        "coroutine function": later,
        "callable object": Called(),
        "method": Called().tell,
    }[kind]
    manager, _ = await told_of_a_gap(cluster, on_gap)
    await until(lambda: gaps)
    (gap,) = gaps
    assert (gap.rooms, gap.users, gap.everybody) == ({"kitchen"}, {"ann"}, True)
    assert gap.since <= gap.until
    assert manager.status.gaps == 1
    await manager.stop()
    assert only_this_task()


async def test_a_gap_is_logged_without_the_names_of_rooms(cluster, caplog):
    manager, _ = await told_of_a_gap(cluster, None)
    await ticks()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("may have missed messages between ")
    assert record.getMessage().endswith(" for 1 rooms")
    assert "kitchen" not in record.getMessage()
    await manager.stop()


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_app_that_fails_when_it_is_told_is_logged_and_told_again(cluster, caplog, is_async):
    told = []

    def fail(gap):
        told.append(gap)
        raise RuntimeError("the app failed")

    async def fail_later(gap):
        await asyncio.sleep(0)
        fail(gap)

    manager, _ = await told_of_a_gap(cluster, fail_later if is_async else fail)
    await ticks()
    cluster.cut(0)
    cluster.restore(0)
    await ticks()
    assert len(told) == 2
    failures = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage()[:9] for record in failures] == ["the hook "], "once a minute"
    assert manager.status.connected
    await manager.stop()


async def test_an_app_may_send_when_it_is_told(cluster, nodes):
    holder = []

    async def repair(gap):
        for room in gap.rooms:
            await holder[0].broadcast_to_room(room, "reload, please")

    await nodes[0].stop()
    manager, connection = await told_of_a_gap(cluster, repair)
    holder.append(manager)
    there, _ = await connected(nodes[1], "kitchen")
    await ticks()
    assert connection.is_open
    assert await texts(there) == [["reload, please"]]
    await manager.stop()


async def test_a_stop_ends_an_app_that_is_being_told(cluster):
    ends = []

    async def linger(gap):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append(gap)
            raise

    manager, _ = await told_of_a_gap(cluster, linger)
    await ticks()
    cluster.cut(0)
    cluster.restore(0)
    await ticks()
    await manager.stop()
    assert len(ends) == 2
    assert only_this_task()


async def test_an_app_may_stop_the_manager_when_it_is_told(cluster):
    stopped = []

    async def give_up(gap):
        try:
            await stopped[0].stop()
        finally:
            stopped.append("over")

    manager, connection = await told_of_a_gap(cluster, give_up)
    stopped.append(manager)
    await until(lambda: stopped[1:])
    assert not connection.is_open
    assert not manager.status.connected
    await manager.stop()
    assert only_this_task()


async def test_what_an_app_is_told_of_knows_nothing_of_who_published(cluster):
    import contextvars

    secret = contextvars.ContextVar("secret", default="none")
    seen = []
    secret.set("of the one who cuts")
    manager, _ = await told_of_a_gap(cluster, lambda gap: seen.append(secret.get()))
    await until(lambda: seen)
    assert seen == ["none"]
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


async def test_its_repr_shows_counts_and_its_state(cluster, nodes):
    one, *_ = nodes
    await connected(one, "secret room", "ann")
    node = one.node_id[:8]
    assert repr(one) == f"<DistributedWebSocketManager connections=1 rooms=1 connected node={node}>"
    cluster.cut(0)
    assert repr(one) == f"<DistributedWebSocketManager connections=1 rooms=1 degraded node={node}>"
    assert len({node.node_id for node in nodes}) == 3


# Redis itself


async def test_managers_with_different_prefixes_on_one_redis_do_not_hear_each_other(shared_broker):
    prefixes = [f"t{uuid4().hex[:12]}{end}" for end in ("", ":room", ":room:kitchen")]
    managers = [
        DistributedWebSocketManager(shared_broker.url, settings=RoomsSettings(key_prefix=prefix))
        for prefix in prefixes
        for _ in range(2)
    ]
    await asyncio.gather(*(manager.start(required=True) for manager in managers))
    peers = [(await connected(manager, "kitchen", "ann"))[0] for manager in managers]
    for manager, prefix in zip(managers[::2], prefixes, strict=True):
        await manager.broadcast_to_room("kitchen", f"room {prefix}")
        await manager.send_to_user("ann", f"user {prefix}")
        await manager.broadcast(f"all {prefix}")
    expected = [[f"{kind} {prefix}" for kind in ("room", "user", "all")] for prefix in prefixes for _ in range(2)]
    await until(lambda: [peer.texts for peer in peers] == expected, pause=0.005)
    assert [manager.status.undecodable for manager in managers] == [0] * 6
    await asyncio.gather(*(manager.stop() for manager in managers))
    assert only_this_task()


@pytest.mark.parametrize("is_stopped_again", [True, False])
async def test_a_stop_that_is_cancelled_wherever_it_is_leaves_nothing_that_hears_twice(shared_broker, is_stopped_again):
    settings = RoomsSettings(key_prefix=f"t{uuid4().hex[:12]}")
    one, two = (DistributedWebSocketManager(shared_broker.url, settings=settings) for _ in range(2))
    await one.start(required=True)
    before = len(asyncio.all_tasks())
    for count in range(100):
        await two.start(required=True)
        stopping = asyncio.create_task(two.stop())
        await ticks(count)
        if stopping.done():
            break
        stopping.cancel()
        await asyncio.wait([stopping])
        if is_stopped_again:
            await two.stop()
            assert len(asyncio.all_tasks()) == before
        await two.start(required=True)
        peer, connection = await connected(two)
        await one.broadcast("once")
        await one.send_personal(connection.connection_id, "over")
        await until(lambda: "over" in peer.texts, pause=0.001)  # noqa: B023 - waited for within the loop
        assert peer.texts == ["once", "over"]
        two.disconnect(connection)
    assert count > 5
    for manager in (one, two):
        await manager.stop()
    assert only_this_task()


async def test_a_start_that_is_cancelled_wherever_it_is_leaves_nothing_running(shared_broker):
    settings = RoomsSettings(key_prefix=f"t{uuid4().hex[:12]}")
    manager = DistributedWebSocketManager(shared_broker.url, settings=settings)
    cancelled = 0
    for count in range(2000):
        starting = asyncio.create_task(manager.start(required=True))
        await ticks(count)
        if starting.done():
            break
        starting.cancel()
        await asyncio.wait([starting])
        cancelled += 1
        assert only_this_task()
        assert not manager.status.connected
    assert cancelled > 5
    await manager.start(required=True)
    await manager.stop()
    assert only_this_task()


async def test_who_comes_to_the_end_of_the_handshake_when_the_node_was_stopped_is_refused_and_counted(backend):
    told = []
    manager = DistributedWebSocketManager(
        backend, settings=RoomsSettings(send_timeout=0.05), hooks=Hooks(refused=told.append)
    )
    await manager.start()
    backend.confirms = False
    peer = Peer()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await ticks()
    await manager.stop()
    backend.confirm()
    with pytest.raises(HandshakeRefused) as refusal:
        await connecting
    assert (refusal.value.status_code, refusal.value.headers["Retry-After"]) == (503, "5")
    await ticks()
    assert [(one.reason, one.user_id) for one in told] == [("draining", "ann")]
    assert counted(manager.stats().refused) == {"draining": 1}
    assert peer.events == []
