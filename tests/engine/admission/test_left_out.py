"""Connections that are left out when their user is closed, here and on other nodes."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import until

from engine.fakes import Peer, connected, settled
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.revocation import (
    Revocation,
    UnreadableError,
    decode_revocation,
    decode_revocations,
    revocation_keys,
)
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.references import connection_of
from fastapi_rooms.testing import LocalCluster

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWN, OTHER = "0" * 31 + "1", "0" * 31 + "2"

WAYS = {
    "the connection": connection_of,
    "its WebSocket": lambda websocket: websocket,
    "its id": lambda websocket: connection_of(websocket).connection_id,
    "several": lambda websocket: ["no id", OTHER, websocket],
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def said_in(revocation):
    return revocation.close.code, revocation.close.reason


@pytest.fixture
def cluster():
    return LocalCluster()


@pytest.fixture
async def nodes(cluster):
    managers = [DistributedWebSocketManager(backend) for backend in cluster]
    for manager in managers:
        await manager.start()
    yield managers
    for manager in managers:
        await manager.stop()


@pytest.fixture(params=["one node", "many nodes"])
async def manager(request, nodes):
    if request.param == "many nodes":
        return nodes[0]
    return ConnectionManager()


@every_way
async def test_a_handshake_that_closes_its_user_is_let_in_and_the_others_end(manager, way):
    old, of_old = await connected(manager, "kitchen", "ann")
    slow, newest = Peer(), Peer()
    connection_of(slow.websocket)  # its dependencies are still being asked
    assert await manager.close_user("ann", 4009, "elsewhere", exclude=way(newest.websocket)) == 1
    connection = await manager.connect(newest.websocket, "kitchen", "ann")
    assert connection.is_open
    with pytest.raises(HandshakeRefused):
        await manager.connect(slow.websocket, "kitchen", "ann")
    await settled()
    assert (old.close_codes, of_old.close_code) == ([4009], 4009)
    assert manager.get_user_connections("ann") == [connection]
    manager.disconnect(connection)
    await manager.stop()


@every_way
async def test_a_handler_may_close_all_but_its_own_connection(manager, way):
    here, own = await connected(manager, "kitchen", "ann")
    _, other = await connected(manager, "kitchen", "ann")
    assert await manager.close_user("ann", exclude=way(own.websocket)) == 1
    await settled()
    assert own.is_open
    assert not other.is_open
    assert here.close_codes == []
    await manager.stop()


async def test_who_was_forgotten_is_nobody_to_leave_out(manager):
    peer, connection = await connected(manager, "kitchen", "ann")
    manager.disconnect(connection)
    _, other = await connected(manager, "kitchen", "ann")
    assert await manager.close_user("ann", exclude=[peer.websocket, "no id"]) == 1
    assert not other.is_open
    await manager.stop()


async def test_it_is_left_out_on_the_node_that_holds_it_and_the_others_there_are_closed(nodes):
    here, there = nodes
    _, own = await connected(there, "kitchen", "ann")
    _, other = await connected(there, "kitchen", "ann")
    handshake = Peer()
    spared = connection_of(handshake.websocket)
    await here.close_user("ann", 4009, exclude=[own, spared.connection_id])
    await until(lambda: not other.is_open)
    assert (await there.connect(handshake.websocket, None, "ann")).is_open
    await settled()
    assert own.is_open


async def test_a_node_that_was_cut_off_leaves_it_out_when_it_is_back(cluster, nodes):
    here, there = nodes
    _, own = await connected(there, "kitchen", "ann")
    _, other = await connected(there, "kitchen", "ann")
    cluster.cut(1)
    await here.close_user("ann", 4009, exclude=own.connection_id)
    cluster.restore(1)
    await until(lambda: not other.is_open)
    await settled()
    assert other.close_code == 4009
    assert own.is_open


async def test_who_closes_everybody_closes_it_too_whatever_was_left_out_before_or_since(manager):
    for first, second in (("all", "others"), ("others", "all")):
        peer = Peer()
        connection = connection_of(peer.websocket)
        for what in (first, second):
            await manager.close_user("ann", exclude=connection if what == "others" else ())
        with pytest.raises(HandshakeRefused):
            await manager.connect(peer.websocket, None, "ann")
    await manager.stop()


async def test_a_close_of_everybody_that_this_node_did_not_hear_is_found_behind_one_that_leaves_it_out(nodes):
    here, there = nodes
    peer = Peer()
    connection = connection_of(peer.websocket)
    await there.close_user("ann", 4501)  # nobody of hers is here, so this node hears nothing of it
    await here.close_user("ann", 4009, exclude=connection)
    with pytest.raises(HandshakeRefused):
        await here.connect(peer.websocket, None, "ann")


async def test_of_two_that_leave_out_different_ones_the_later_counts(manager):
    first, second = Peer(), Peer()
    for peer in (first, second):
        connection_of(peer.websocket)
    for peer in (first, second):
        await manager.close_user("ann", exclude=peer.websocket)
    assert (await manager.connect(second.websocket, None, "ann")).is_open
    with pytest.raises(HandshakeRefused):
        await manager.connect(first.websocket, None, "ann")
    await manager.stop()


async def test_an_older_one_that_others_keep_does_not_take_the_place_of_a_later_one(cluster, nodes):
    here, _ = nodes
    begun = datetime.now(UTC)
    here._parts.revoked.note("ann", Close(4501), frozenset([OWN]))
    older = Revocation(begun - timedelta(seconds=5), Close(4000), frozenset([OTHER]))
    await cluster.backends[1].put(older.key_for("ann"), older.encode(), 60)
    await here._parts.revoked.look_up("ann")
    assert here._parts.revoked.is_revoked("ann", begun, OTHER)
    assert not here._parts.revoked.is_revoked("ann", begun, OWN)
    assert here._parts.revoked.is_revoked("ann", begun), "a ticket is no connection"


async def test_nodes_that_know_one_key_find_there_what_they_always_found(cluster, nodes):
    here, _ = nodes
    plain, others = revocation_keys("ann")
    await here.close_user("ann", 4501, "bye")
    (before,) = await cluster.backends[1].peek([plain])
    await here.close_user("ann", 4009, "elsewhere", exclude=OWN)
    after, kept = await cluster.backends[1].peek([plain, others])
    assert after == before
    assert said_in(decode_revocation(after)) == (4501, "bye")
    assert decode_revocations([None, kept])[0].excluded == {OWN}


async def test_a_broadcast_leaves_out_a_socket_that_is_only_being_connected(manager):
    peer = Peer()
    assert await manager.broadcast("hi", exclude=peer.websocket) == 0
    connection = await manager.connect(peer.websocket, "kitchen")
    assert isinstance(connection, Connection)
    assert connection.is_open
    await manager.stop()


# Its form

times = st.datetimes(timezones=st.just(UTC), min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1))  # noqa: DTZ001
ids = st.frozensets(st.binary(min_size=16, max_size=16).map(bytes.hex), max_size=5)


@given(times, ids, st.text(max_size=20))
def test_what_is_kept_is_what_was_said(at, excluded, reason):
    revocation = Revocation(at, Close(4000, reason), excluded)
    values = [revocation.encode() if revocation.key_for("ann") == key else None for key in revocation_keys("ann")]
    (read,) = decode_revocations(values)
    assert abs(read.at - at) < timedelta(milliseconds=1)
    assert (said_in(read), read.excluded) == ((4000, reason), excluded)


@given(st.binary(max_size=80))
def test_whatever_is_kept_is_read_or_refused(value):
    try:
        decode_revocation(value, leaves_out=True)
    except UnreadableError:
        return
    assert len(value) >= 14


def test_what_is_no_id_leaves_out_nobody():
    revocation = Revocation(NOW, Close(4000), frozenset(["ann's phone", ""]))
    assert revocation.key_for("ann") == revocation_keys("ann")[0]
    assert decode_revocation(revocation.encode()).excluded == frozenset()


def test_nothing_runs_into_a_user_of_another_name():
    keys = {key for user in ("a", "a:b", "others:a", "-others:a") for key in revocation_keys(user)}
    assert len(keys) == 8
