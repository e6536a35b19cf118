"""A master that Sentinel watches, and replaces, with default settings."""

import asyncio
from uuid import uuid4

import pytest
from brokers.groups import Sentinels
from support import fair_time, until

from fastapi_rooms import BackendUnavailable, RoomsSettings, SyncPublisher
from fastapi_rooms.domain.envelope import room_target
from faults_groups.nodes import LATE, SLOW_ON_REDIS, nodes, speaking

ROOM = room_target("kitchen")
DEADLINE = 2.0
NOTICED = 5.0
FOLLOWS = 2.0


@pytest.fixture
def sentinels(broker_kind, tmp_path):
    with Sentinels(broker_kind, tmp_path).running() as made:
        yield made


@pytest.fixture
def valkey_sentinels(tmp_path):
    with Sentinels("valkey", tmp_path).running() as made:
        yield made


def connections(broker, name):
    return sum(row["name"] == name for row in broker.clients())


def gets_through(publisher, text):
    try:
        publisher.broadcast_to_room(ROOM.name, text)
    except BackendUnavailable:
        return False
    return True


async def is_replaced(sentinels):
    await until(lambda: sentinels.master_port() == sentinels.replica.port, "the replica takes over", 20)
    return fair_time()


async def gives_in(broker):
    await until(lambda: broker.client.info("replication")["role"] == "slave", "it is a replica", 30)


async def test_a_new_master_is_followed_when_the_old_one_is_killed(sentinels):
    prefix = uuid4().hex
    async with nodes(2, sentinels.url, prefix) as (speaker, listener):
        await listener.joins(ROOM)
        with SyncPublisher(sentinels.url, settings=RoomsSettings(key_prefix=prefix)) as publisher:
            await asyncio.to_thread(publisher.broadcast_to_room, ROOM.name, "before")
            async with speaking(speaker, ROOM) as (said,):
                await said.is_heard_by(listener)
                sentinels.master.kill()
                with pytest.raises(BackendUnavailable):
                    await asyncio.to_thread(publisher.broadcast_to_room, ROOM.name, "lost")
                at = await is_replaced(sentinels)
                assert await said.is_heard_by(listener) - at < FOLLOWS
                await until(lambda: listener.connected and speaker.connected, "all is well")
                await until(lambda: gets_through(publisher, "after"), "the Sentinels agree", FOLLOWS)
                await listener.hears("after")
            await said.check(listener)
            assert "lost" not in listener.heard_at
    (gap,) = listener.gaps
    assert ROOM in gap.targets
    assert [node.backend.status.reconnects for node in (speaker, listener)] == [1, 1]


@pytest.mark.parametrize("broker_kind", SLOW_ON_REDIS, indirect=True)
async def test_a_new_master_is_followed_when_the_old_one_stands_still(sentinels):
    old, name = sentinels.master, uuid4().hex
    prefix = uuid4().hex
    async with nodes(2, f"{sentinels.url}?client_name={name}", prefix) as (speaker, listener):
        await listener.joins(ROOM)
        async with speaking(speaker, ROOM) as (said,):
            await said.is_heard_by(listener)
            old.freeze()
            begin = fair_time()
            await is_replaced(sentinels)
            assert await said.is_heard_by(listener) - begin < NOTICED + LATE
            await until(lambda: listener.connected and speaker.connected, "all is well")
            old.thaw()
            await until(lambda: connections(old, name) == 0, "nobody is left at the old one")
            async with nodes(1, sentinels.url, prefix) as (newcomer,):
                await newcomer.joins(ROOM)
                await said.is_heard_by(newcomer)
                await newcomer.says(ROOM, "hello")
                await listener.hears("hello")
        await said.check(listener)
    assert said.slowest < DEADLINE + LATE
    (gap,) = listener.gaps
    assert ROOM in gap.targets
    assert [node.backend.status.reconnects for node in (speaker, listener)] == [1, 1]


async def test_an_old_master_that_goes_on_before_anybody_missed_it_keeps_nobody(valkey_sentinels):
    # Until Sentinel tells it, 10 s later, it goes on as a master, and whoever is connected to it hears nobody else.
    sentinels, prefix = valkey_sentinels, uuid4().hex
    async with nodes(2, sentinels.url, prefix) as (speaker, listener):
        await listener.joins(ROOM)
        sentinels.master.freeze()
        await is_replaced(sentinels)
        sentinels.master.thaw()
        at = fair_time()
        async with nodes(1, sentinels.url, prefix) as (newcomer,):
            async with speaking(newcomer, ROOM) as (said,):
                assert await said.is_heard_by(listener) - at < NOTICED
                await until(lambda: listener.connected and speaker.connected, "all is well")
                await said.is_heard_by(listener)
            await said.check(listener)


@pytest.mark.long
async def test_an_old_master_that_comes_back_disturbs_nobody(sentinels):
    old = sentinels.master
    async with nodes(2, sentinels.url, uuid4().hex) as (speaker, listener):
        await listener.joins(ROOM)
        async with speaking(speaker, ROOM) as (said,):
            await said.is_heard_by(listener)
            old.kill()
            at = await is_replaced(sentinels)
            assert await said.is_heard_by(listener) - at < FOLLOWS
            old.start()
            await gives_in(old)
            await said.is_heard_by(listener)
        await said.check(listener)
    assert [node.backend.status.reconnects for node in (speaker, listener)] == [1, 1]


async def test_one_sentinel_out_of_three_is_enough_to_start_and_none_to_stay_connected(valkey_sentinels):
    silent, dead, last = valkey_sentinels.sentinels
    silent.freeze()
    dead.kill()
    begin = fair_time()
    async with nodes(2, valkey_sentinels.url, uuid4().hex, probe_interval=0.1) as (speaker, listener):
        assert fair_time() - begin < DEADLINE
        await listener.joins(ROOM)
        async with speaking(speaker, ROOM, pause=0.02) as (said,):
            last.kill()
            await until(lambda: len(said.said) > 60, "many probes were done")
        await said.check(listener)
        assert said.failed == {}
        assert [node.backend.status.reconnects for node in (speaker, listener)] == [0, 0]
    with pytest.raises(BackendUnavailable, match=r"was not there within 0\.5 s"):
        async with nodes(1, valkey_sentinels.url, uuid4().hex, publish_timeout=0.5):
            pass


async def test_it_connects_when_the_sentinels_know_the_master(shared_sentinels):
    name = uuid4().hex
    url = shared_sentinels.url.replace(shared_sentinels.name, name)
    with pytest.raises(BackendUnavailable, match="was not there") as caught:
        async with nodes(1, url, uuid4().hex):
            pass
    assert f"knows no master '{name}'" in str(caught.value.__cause__)
    async with nodes(1, url, uuid4().hex, required=False) as (node,):
        assert not node.connected
        for sentinel in shared_sentinels.sentinels:
            sentinel.call("SENTINEL", "MONITOR", name, "127.0.0.1", shared_sentinels.master.port, 3)
        await until(lambda: node.connected, "it connects")


async def test_a_replica_is_not_taken_for_the_master(shared_sentinels):
    name = uuid4().hex
    for sentinel in shared_sentinels.sentinels:
        sentinel.call("SENTINEL", "MONITOR", name, "127.0.0.1", shared_sentinels.replica.port, 3)
    with pytest.raises(BackendUnavailable, match="was not there") as caught:
        async with nodes(1, shared_sentinels.url.replace(shared_sentinels.name, name), uuid4().hex):
            pass
    assert "is no master any more: b'slave'" in str(caught.value.__cause__)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_it_can_be_stopped_while_the_master_is_away(valkey_sentinels, fault):
    async with nodes(2, valkey_sentinels.url, uuid4().hex, publish_timeout=0.5) as (speaker, listener):
        await listener.joins(ROOM)
        getattr(valkey_sentinels.master, fault)()
        told = [asyncio.ensure_future(speaker.says(ROOM, str(number))) for number in range(50)]
        await asyncio.sleep(0)
        begin = fair_time()
        await asyncio.gather(speaker.backend.stop(), listener.backend.stop())
        assert fair_time() - begin < 0.5 + LATE
        assert all(isinstance(one, BackendUnavailable) for one in await asyncio.gather(*told, return_exceptions=True))
