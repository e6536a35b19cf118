"""A node hears of what its connections are in, from before the first is open until the last is gone."""

import asyncio

import pytest
from support import DEADLINE, until

from engine.distributed.calls import ANN, KITCHEN
from engine.fakes import Peer, connected, is_empty, run_clocked, settled, texts
from engine.scripted import OTHER_NODE, ScriptedBackend, text
from fastapi_rooms.domain.connection import Phase
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, room_target, user_target
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.distributed import DistributedWebSocketManager


async def test_a_handshake_is_answered_when_its_subscriptions_are_confirmed(manager, backend):
    backend.confirms = False
    peer = Peer()
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await settled()
    assert backend.wanted == {EVERYBODY, KITCHEN, ANN}
    backend.confirm(KITCHEN)
    await settled()
    assert peer.events == []
    assert manager.active_connections == 0
    backend.confirm(ANN)
    await call
    assert [event["type"] for event in peer.events] == ["websocket.accept"]


async def test_what_other_nodes_say_meanwhile_waits_for_the_answer_to_the_handshake(manager, backend):
    backend.confirms = False
    peer = Peer()
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await settled()
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
    await settled()
    assert len(manager.get_room_members("kitchen")) == 3, "it hears the room from the first moment"
    assert not any(call.done() for call in calls)
    backend.confirm()
    assert await asyncio.gather(*calls) == [True] * 3


async def test_a_socket_that_is_connected_again_waits_for_its_new_room(manager, backend):
    peer, connection = await connected(manager, "kitchen")
    backend.confirms = False
    call = asyncio.create_task(manager.connect(peer.websocket, "hall"))
    await settled()
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
    await settled()
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
    await settled()
    impatient.cancel()
    await asyncio.wait([impatient])
    assert not patient.done()
    backend.confirm()
    assert await patient is True


async def test_a_connection_that_is_cancelled_while_it_waits_leaves_nothing_behind(manager, backend):
    backend.confirms = False
    peer = Peer()
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await settled()
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
    await settled()
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
    await settled()
    result = end(manager, peer, backend)
    if asyncio.iscoroutine(result):
        assert await result == 1
    assert is_empty(manager)
    assert backend.wanted == {EVERYBODY}
    backend.confirm()
    connection = await call
    await settled()
    assert not connection.is_open
    assert peer.close_codes == close_codes
    assert is_empty(manager)
    assert backend.wanted == {EVERYBODY}


async def test_a_client_that_goes_while_its_subscription_is_confirmed_leaves_nothing_behind(manager, backend):
    backend.confirms = False
    peer = Peer()
    peer.accept_error = ConnectionResetError("the client is gone")
    call = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await settled()
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
    await settled()
    assert await manager.leave_room(connection, "kitchen")
    assert backend.wanted == {EVERYBODY}
    second = asyncio.create_task(manager.join_room(connection, "kitchen"))
    await settled()
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
        await until(lambda: peer.transport.aborted)
        assert backend.wanted == {EVERYBODY}
        await manager.stop()

    run_clocked(main)


async def test_a_user_is_heard_of_until_the_last_device_is_gone(nodes):
    one, two, _ = nodes
    (phone, first), (laptop, _) = await connected(two, user_id="ann"), await connected(two, user_id="ann")
    await one.send_to_user("ann", "both")
    await settled()
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
