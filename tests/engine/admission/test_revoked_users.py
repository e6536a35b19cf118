"""Users who were closed on all nodes, and nodes that could not hear it."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import until

from engine.fakes import Peer, connected, is_empty, settled
from engine.scripted import ScriptedBackend
from fastapi_rooms import (
    BackendUnavailable,
    ConnectionManager,
    DistributedWebSocketManager,
    HandshakeRefused,
    NotConnectedError,
    Publisher,
    RoomsSettings,
)
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.revocation import Revocation, UnreadableError, decode_revocation, revocation_keys
from fastapi_rooms.testing import LocalCluster


@pytest.fixture
def cluster():
    return LocalCluster(2)


@pytest.fixture
async def nodes(cluster):
    managers = [DistributedWebSocketManager(backend) for backend in cluster]
    for manager in managers:
        await manager.start(required=True)
    yield managers
    for manager in managers:
        await manager.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert all(is_empty(manager) for manager in managers)


# As bytes


@given(
    at=st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - has a zone
    code=st.sampled_from([1000, 1008, 4000, 4999]),
    reason=st.text(max_size=30).filter(lambda text: text.isprintable()),
)
def test_a_revocation_is_read_as_it_was_written(at, code, reason):
    read = decode_revocation(Revocation(at, Close(code, reason)).encode())
    assert abs(read.at - at) < timedelta(milliseconds=1)
    assert (read.close.code, read.close.reason) == (code, reason)


@given(st.binary(max_size=40))
def test_whatever_bytes_there_are_it_is_one_or_it_is_none(value):
    try:
        decode_revocation(value)
    except UnreadableError:
        return
    assert len(value) >= 10


# Between nodes


async def test_a_node_that_was_cut_off_closes_when_it_is_back_who_was_closed_meanwhile(cluster, nodes):
    here, there = nodes
    ann, of_ann = await connected(there, "kitchen", "ann")
    _, of_bob = await connected(there, "kitchen", "bob")
    cluster.cut(1)
    assert await here.close_user("ann", 4501, "logged out") == 0
    await settled()
    assert of_ann.is_open, "it cannot know yet"
    cluster.restore(1)
    await until(lambda: not of_ann.is_open)
    await until(lambda: ann.close_codes == [4501])
    assert (of_ann.close_code, of_ann.close_reason) == (4501, "logged out")
    assert of_bob.is_open


async def test_who_logged_in_again_since_stays(cluster, nodes):
    here, there = nodes
    cluster.cut(1)
    await here.close_user("ann")
    _, connection = await connected(there, "kitchen", "ann")
    cluster.restore(1)
    await settled()
    assert connection.is_open


async def test_it_is_kept_only_for_so_long(cluster):
    settings = RoomsSettings(revocation_seconds=None)
    here, there = (DistributedWebSocketManager(backend, settings=settings) for backend in cluster)
    await here.start()
    await there.start()
    _, connection = await connected(there, "kitchen", "ann")
    cluster.cut(1)
    await here.close_user("ann")
    assert await cluster.backends[0].peek([revocation_keys("ann")[0]]) == [None]
    cluster.restore(1)
    await settled()
    assert connection.is_open
    await here.stop()
    await there.stop()


async def test_if_it_cannot_be_kept_the_caller_is_told_and_connections_here_are_closed(cluster, nodes):
    here, _ = nodes
    _, connection = await connected(here, "kitchen", "ann")
    cluster.cut(0)
    with pytest.raises(BackendUnavailable):
        await here.close_user("ann")
    assert not connection.is_open
    cluster.restore(0)


async def test_what_is_kept_and_cannot_be_read_harms_nobody_and_is_said(cluster, nodes, caplog):
    _, there = nodes
    _, of_ann = await connected(there, "kitchen", "ann")
    _, of_bob = await connected(there, "kitchen", "bob")
    await cluster.backends[0].put(revocation_keys("ann")[0], b"what is this", 60)
    later = Revocation(datetime.now(UTC) + timedelta(seconds=5), Close(4000))
    await cluster.backends[0].put(revocation_keys("bob")[0], later.encode(), 60)
    cluster.cut(1)
    cluster.restore(1)
    await until(lambda: not of_bob.is_open)
    assert of_ann.is_open
    assert "cannot be read" in caplog.text


async def test_if_it_cannot_be_looked_up_that_is_said_and_done_again(cluster, nodes, caplog):
    here, there = nodes
    _, connection = await connected(there, "kitchen", "ann")
    cluster.cut(1)
    await here.close_user("ann")
    cluster.restore(1)
    cluster.cut(1)  # before anything was asked
    await until(lambda: "could not look up who was closed" in caplog.text)
    assert connection.is_open
    cluster.restore(1)
    await until(lambda: not connection.is_open)


async def test_a_backend_without_a_store_closes_who_can_hear_it():
    backend = ScriptedBackend()
    manager = DistributedWebSocketManager(backend, settings=RoomsSettings(publish_failure="log"))
    await manager.start()
    _, connection = await connected(manager, "kitchen", "ann")
    assert await manager.close_user("ann") == 1
    assert not connection.is_open
    backend.answer()
    await manager.stop()


# Who is only being connected


async def test_who_is_asked_about_while_the_user_is_closed_does_not_come_in():
    asked, answer = asyncio.Event(), asyncio.Event()

    async def ask(connection, room):
        asked.set()
        await answer.wait()
        return True

    manager = ConnectionManager(authorize_join=ask)
    connecting = asyncio.create_task(manager.connect(Peer().websocket, "kitchen", "ann"))
    await asked.wait()
    assert await manager.close_user("ann") == 0
    answer.set()
    with pytest.raises(HandshakeRefused, match="401"):
        await connecting
    assert is_empty(manager)
    await manager.connect(Peer().websocket, "kitchen", "ann")
    assert manager.active_connections == 1, "who comes afterwards is let in"
    await manager.stop()


async def test_who_is_forgotten_while_the_app_is_asked_does_not_come_in():
    asked, answer = asyncio.Event(), asyncio.Event()

    async def ask(connection, room):
        asked.set()
        await answer.wait()
        return True

    manager, peer = ConnectionManager(authorize_join=ask), Peer()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await asked.wait()
    assert manager.disconnect(peer.websocket) is None
    answer.set()
    with pytest.raises(NotConnectedError):
        await connecting
    assert is_empty(manager)


async def test_who_waits_for_a_subscription_while_the_user_is_closed_elsewhere_does_not_come_in(cluster, nodes):
    here, there = nodes
    backend = cluster.backends[1]
    subscribe, confirmed = backend.subscribe, asyncio.Event()

    def subscribe_late(targets):
        async def confirm():
            await confirmed.wait()
            await subscribe(targets)

        return confirm()

    backend.subscribe = subscribe_late
    connecting = asyncio.create_task(there.connect(Peer().websocket, "kitchen", "ann"))
    await settled()
    await here.close_user("ann", 4501)
    confirmed.set()
    with pytest.raises(HandshakeRefused, match="401"):
        await connecting
    assert is_empty(there)
    backend.subscribe = subscribe
    _, connection = await connected(there, "kitchen", "ann")
    assert connection.is_open


async def test_who_logs_in_again_before_redis_has_answered_stays(cluster, nodes):
    here, there = nodes
    backend = cluster.backends[0]
    publish, answered = backend.publish, asyncio.Event()

    def publish_slowly(envelope):
        told = publish(envelope)

        async def wait():
            await answered.wait()
            await told

        return wait()

    backend.publish = publish_slowly
    closing = asyncio.create_task(here.close_user("ann"))
    await settled()
    _, again = await connected(there, "kitchen", "ann")
    answered.set()
    await closing
    cluster.cut(1)
    cluster.restore(1)
    await settled()
    assert again.is_open


async def test_a_caller_that_is_cancelled_takes_nothing_back(cluster, nodes):
    here, there = nodes
    cluster.cut(1)
    _, connection = await connected(there, "kitchen", "ann")
    backend = cluster.backends[0]
    publish = backend.publish

    def publish_for_ever(envelope):
        publish(envelope)
        return asyncio.get_running_loop().create_future()

    backend.publish = publish_for_ever
    closing = asyncio.create_task(here.close_user("ann"))
    await settled()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    cluster.restore(1)
    await until(lambda: not connection.is_open)


async def test_if_it_alone_cannot_be_kept_the_caller_is_told_that_and_no_more(cluster, nodes, caplog):
    here, there = nodes
    _, connection = await connected(there, "kitchen", "ann")

    async def put(key, value, seconds):
        raise BackendUnavailable("NOPERM this user has no permissions to run the 'set' command")

    cluster.backends[0].put = put
    with pytest.raises(BackendUnavailable, match=r"closed on all nodes that hear, but that is not kept.*NOPERM"):
        await here.close_user("ann")
    await until(lambda: not connection.is_open)
    assert "is not kept for nodes that are cut off" in caplog.text


async def test_what_is_kept_of_others_is_remembered_only_while_it_counts():
    manager = ConnectionManager(RoomsSettings(revocation_seconds=None))
    made = datetime.now(UTC)
    await manager.close_user("ann")
    assert not manager._parts.revoked.is_revoked("ann", made)
    await manager._parts.revoked.look_up("ann")
    manager._parts.revoked.apply_soon(["ann"])
    await manager._parts.revoked.stop()


async def test_who_is_missed_again_while_he_is_looked_up_is_looked_up_again(cluster, nodes):
    _, there = nodes
    _, connection = await connected(there, "kitchen", "ann")
    backend = cluster.backends[1]
    peek, asked, answer = backend.peek, [], asyncio.Event()

    async def peek_slowly(keys):
        values = await peek(keys)
        asked.append(keys)
        await answer.wait()
        return values

    backend.peek = peek_slowly
    there._parts.revoked.apply_soon(["ann"])
    await until(lambda: asked)
    await cluster.backends[0].put(revocation_keys("ann")[0], Revocation(datetime.now(UTC), Close(4501)).encode(), 60)
    there._parts.revoked.apply_soon(["ann"])  # a second gap, which the first answer knows nothing of
    answer.set()
    await until(lambda: not connection.is_open)
    assert len(asked) == 2


async def test_an_older_one_that_others_keep_does_not_take_the_place_of_a_later_one(cluster, nodes):
    here, _ = nodes
    begun = datetime.now(UTC)
    here._parts.revoked.note("ann", Close(4501))
    older = Revocation(begun - timedelta(seconds=5), Close(4000))
    await cluster.backends[1].put(revocation_keys("ann")[0], older.encode(), 60)
    await here._parts.revoked.look_up("ann")
    assert here._parts.revoked.is_revoked("ann", begun)


# With a store that does what a test tells it


class Keeping(ScriptedBackend):
    """It notes in which order it is told to keep and to publish."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.order = []
        self.keeps = asyncio.Event()  # cleared: what is to be kept hangs
        self.keeps.set()

    def publish(self, envelope):
        self.order.append("publish")
        return super().publish(envelope)

    def put(self, key, value, seconds):
        self.order.append("put")
        self.kept[key] = value
        return asyncio.ensure_future(self.keeps.wait())

    async def take(self, key):
        return self.kept.pop(key, None)

    async def peek(self, keys):
        await asyncio.sleep(0)
        return [self.kept.get(key) for key in keys]


async def test_it_is_kept_at_the_call_and_before_it_is_told():
    """Otherwise the one can leave long before the other, and who begins to listen in between misses both."""
    backend = Keeping()
    manager = DistributedWebSocketManager(backend)
    await manager.start()
    closing = manager.close_user("ann")
    closing.send(None)
    assert backend.order == ["put", "publish"]
    closing.close()
    await manager.stop()


@pytest.mark.parametrize("first_goes", ["cancelled", "disconnected", "stays"])
async def test_a_second_device_is_looked_up_too_while_nobody_vouches_for_the_first(first_goes):
    backend = Keeping()
    manager = DistributedWebSocketManager(backend)
    await manager.start()
    backend.confirms = False
    peers = [Peer(), Peer()]
    first, second = (asyncio.create_task(manager.connect(peer.websocket, None, "ann")) for peer in peers)
    await settled()
    # Published elsewhere before this node listens, so that it is only kept.
    backend.kept[revocation_keys("ann")[0]] = Revocation(datetime.now(UTC), Close(4501)).encode()
    if first_goes == "cancelled":
        first.cancel()
    elif first_goes == "disconnected":
        manager.disconnect(peers[0].websocket)
    await settled()
    backend.confirm()
    await asyncio.wait([first, second])
    assert isinstance(second.exception(), HandshakeRefused)
    assert first.cancelled() == (first_goes == "cancelled")
    assert manager.active_connections == 0
    assert peers[1].events == []
    await manager.stop()
    assert is_empty(manager)


async def test_who_waits_until_it_is_kept_is_told_that_the_manager_was_stopped():
    backend = Keeping()
    backend.keeps.clear()
    manager = DistributedWebSocketManager(backend)
    await manager.start()
    closing = asyncio.create_task(manager.close_user("ann"))
    await settled()
    await manager.stop()
    with pytest.raises(BackendUnavailable, match="the manager was stopped"):
        await closing


async def test_a_cancelled_close_by_a_publisher_ends_as_cancelled():
    """And not as failed, so that whoever tries again until it succeeds can be ended."""
    backend = Keeping()
    backend.keeps.clear()
    publisher = Publisher(backend)
    closing = asyncio.create_task(publisher.close_user("ann"))
    await settled()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert backend.order == ["put"]
    await publisher.stop()
