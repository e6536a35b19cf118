"""What happens to a caller, and to who is here, when other nodes cannot be told."""

import asyncio
import logging

import pytest
from support import DEADLINE

from engine.distributed.calls import EVERY_CALL, KITCHEN, LOG, every_call
from engine.fakes import connected, is_empty, only_this_task, run_clocked, settled, texts
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.testing import LocalCluster


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
    await settled()
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
    await settled()
    sending.cancel()
    await asyncio.wait([sending])
    assert sending.cancelled()
    assert await texts(peer) == [["hi"]]
    assert [envelope.target for envelope in backend.published] == [KITCHEN]


async def test_cancelling_a_close_takes_nothing_back(manager, backend):
    peer, _ = await connected(manager, "kitchen")
    backend.answers = False
    closing = asyncio.create_task(manager.close_room("kitchen", 4000))
    await settled()
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
    await settled()
    assert logging_manager.status.undelivered == 2
    assert [record.getMessage() for record in caplog.records] == [
        "other nodes were not told: no answer (2 so far, said once a minute)"
    ]


async def test_what_succeeds_is_not_logged(logging_manager, backend, caplog):
    assert await logging_manager.broadcast("hi") == 0
    backend.answers = False
    assert await logging_manager.broadcast("hi") == 0
    backend.unanswered[0].cancel()
    await settled()
    assert caplog.records == []


async def test_a_stop_waits_until_it_is_known_what_became_of_what_nobody_waits_for(logging_manager, backend, caplog):
    backend.answers = False
    await logging_manager.broadcast("hi")
    stopping = asyncio.create_task(logging_manager.stop())
    await settled()
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
