"""Several managers in one process: before the first start, starting and stopping."""

import asyncio

import pytest
from support import DEADLINE, counted, until

from engine.distributed.calls import every_call
from engine.fakes import Peer, connected, is_empty, only_this_task, settled, texts
from engine.scripted import ScriptedBackend
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.domain.errors import BackendUnavailable, ConfigurationError, ManagerNotStarted
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.testing import LocalCluster

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
    await settled()
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
    await settled()
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
    await settled()
    stopping = asyncio.create_task(manager.stop())
    await settled()
    assert not stopping.done()
    backend.starts.set()
    await asyncio.gather(starting, stopping)
    assert backend.told == ["start", "start is over", "stop", "stop is over"]
    assert backend.receiver is None


async def test_a_start_during_the_stop_starts_what_was_stopped(manager, backend):
    backend.stops.clear()
    stopping = asyncio.create_task(manager.stop())
    await settled()
    starting = asyncio.create_task(manager.start())
    await settled()
    assert not starting.done()
    backend.stops.set()
    await asyncio.gather(starting, stopping)
    assert backend.told[-4:] == ["stop", "stop is over", "start", "start is over"]
    assert backend.receiver is not None


async def test_a_start_that_is_cancelled_leaves_the_next_one_free(backend):
    manager = DistributedWebSocketManager(backend)
    backend.starts.clear()
    call = asyncio.create_task(manager.start())
    await settled()
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
    await settled()
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
    await settled()
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
    await settled()
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


async def test_who_comes_to_the_end_of_the_handshake_when_the_node_was_stopped_is_refused_and_counted(backend):
    told = []
    manager = DistributedWebSocketManager(
        backend, settings=RoomsSettings(send_timeout=0.05), hooks=Hooks(refused=told.append)
    )
    await manager.start()
    backend.confirms = False
    peer = Peer()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "kitchen", "ann"))
    await settled()
    await manager.stop()
    backend.confirm()
    with pytest.raises(HandshakeRefused) as refusal:
        await connecting
    assert (refusal.value.status_code, refusal.value.headers["Retry-After"]) == (503, "5")
    await settled()
    assert [(one.reason, one.user_id) for one in told] == [("draining", "ann")]
    assert counted(manager.stats().refused) == {"draining": 1}
    assert counted(manager.stats().closed) == {}, "it is counted once"
    assert peer.events == []


async def test_the_id_of_a_node_is_made_by_each_start(manager, backend):
    first = manager.node_id
    assert len(bytes.fromhex(first)) == 16
    await manager.start()
    assert manager.node_id == first, "it was running"
    await manager.stop()
    assert manager.node_id == first
    await manager.start()
    assert manager.node_id != first
    await manager.broadcast("hi")
    assert [envelope.origin for envelope in backend.published] == [manager.node_id]


def test_before_the_first_start_a_node_has_no_id_that_a_fork_could_copy(backend):
    assert DistributedWebSocketManager(backend).node_id == ""


def test_a_node_whose_loop_has_ended_without_a_stop_gets_another_id(cluster):
    manager = DistributedWebSocketManager(cluster.backends[0])
    ids = set()
    for _ in range(3):
        asyncio.run(manager.start())
        ids.add(manager.node_id)
    assert len(ids) == 3
    asyncio.run(manager.stop())


async def test_its_repr_shows_counts_and_its_state(cluster, nodes):
    one, *_ = nodes
    await connected(one, "secret room", "ann")
    node = one.node_id[:8]
    assert repr(one) == f"<DistributedWebSocketManager connections=1 rooms=1 connected node={node}>"
    cluster.cut(0)
    assert repr(one) == f"<DistributedWebSocketManager connections=1 rooms=1 degraded node={node}>"
    assert len({node.node_id for node in nodes}) == 3
