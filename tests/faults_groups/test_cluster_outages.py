"""A Redis Cluster that loses servers, with default settings."""

import asyncio
import contextlib
from uuid import uuid4

import pytest
from brokers.proxy import Proxy
from brokers.server import Broker, running
from support import fair_time, until

from fastapi_rooms import BackendUnavailable, RoomsSettings, SyncPublisher
from fastapi_rooms.domain.envelope import EVERYBODY
from faults_groups.nodes import LATE, SLOW_ON_REDIS, mended, nodes, rooms_of, slot_in, speaking

FOLLOWS = 1.0
HEARS_AGAIN = 2.0
NOTICED = 5.0
DEADLINE = 2.0


async def are_connected(*members):
    await until(lambda: all(node.connected for node in members), "all is well")


async def are_degraded(*members):
    await until(lambda: not any(node.connected for node in members), "it is noticed")


# Without replicas


async def test_a_master_that_is_down_touches_no_other_shard(each_cluster):
    cluster, prefix = each_cluster, uuid4().hex
    lost, *others = cluster.masters
    room, fresh = rooms_of(cluster, prefix, lost, 2)
    untouched, joined = zip(*(rooms_of(cluster, prefix, master, 2) for master in others), strict=True)
    async with nodes(2, cluster.url, prefix) as (speaker, listener):
        await listener.joins(room, *untouched)
        async with speaking(speaker, room, *untouched) as said:
            await asyncio.gather(*(one.is_heard_by(listener) for one in said))
            with mended(cluster, lost):
                lost.kill()
                await are_degraded(speaker, listener)
                begin = fair_time()
                with pytest.raises(BackendUnavailable):
                    await speaker.says(room, "hello?")
                assert fair_time() - begin < LATE, "publishing fails at once"
                begin = fair_time()
                await listener.joins(fresh, *joined)
                assert fair_time() - begin < LATE, "nobody waits for a server that is away"
                for target in joined:
                    await speaker.says(target, target.name)
                    await listener.hears(target.name)
                for _ in range(50):
                    for one in said[1:]:
                        await one.is_heard_by(listener)
                lost.start()
                begin = fair_time()
                assert await said[0].is_heard_by(listener) - begin < HEARS_AGAIN
                await are_connected(speaker, listener)
                await speaker.says(fresh, "fresh")
                await listener.hears("fresh")
        await until(lambda: listener.gaps_of(room), "the gap is reported")
        for one in said:
            await one.check(listener)
        assert {target for gap in listener.gaps for target in gap.targets} - {EVERYBODY} == {room, fresh}
        assert not any(one.failed for one in said[1:]), "publishing to the others did not fail"
        assert listener.backend.status.reconnects == 1


async def test_a_master_that_stands_still_touches_no_other_shard(cluster):
    prefix = uuid4().hex
    frozen, *others = cluster.masters
    (room,) = rooms_of(cluster, prefix, frozen)
    untouched = [rooms_of(cluster, prefix, master)[0] for master in others]
    async with nodes(2, cluster.url, prefix) as (speaker, listener):
        await listener.joins(room, *untouched)
        async with speaking(speaker, room, *untouched) as said:
            await asyncio.gather(*(one.is_heard_by(listener) for one in said))
            with mended(cluster, frozen):
                frozen.freeze()
                begin = fair_time()
                await are_degraded(speaker, listener)
                assert fair_time() - begin < NOTICED
            begin = fair_time()
            assert await said[0].is_heard_by(listener) - begin < HEARS_AGAIN
        for one in said:
            await one.check(listener)
        assert {target for gap in listener.gaps for target in gap.targets} - {EVERYBODY} <= {room}
        assert not any(one.failed for one in said[1:])
        assert max(one.slowest for one in said[1:]) < 1
        assert said[0].slowest < DEADLINE + LATE


async def test_it_connects_when_the_cluster_comes(each_cluster):
    cluster, prefix = each_cluster, uuid4().hex
    proxy = Proxy(cluster.masters[0].port)
    with proxy.running():
        proxy.cut()
        through_proxy = f"redis+cluster://127.0.0.1:{proxy.port}"
        async with (
            nodes(1, cluster.url, prefix) as (speaker,),
            nodes(1, through_proxy, prefix, required=False) as (late,),
        ):
            assert not late.connected
            with pytest.raises(BackendUnavailable, match="cannot be reached"):
                await late.says(EVERYBODY, "hello?")
            proxy.restore()
            await are_connected(late)
            await speaker.says(EVERYBODY, "hello")
            await late.hears("hello")
            await until(lambda: late.gaps_of(EVERYBODY), "the gap is reported")


# Seeds


async def test_a_seed_that_does_not_answer_does_not_hold_up_the_start(cluster):
    prefix = uuid4().hex
    proxy = Proxy(cluster.masters[0].port)
    with proxy.running():
        proxy.stall()
        url = cluster.url.replace("://", f"://127.0.0.1:{proxy.port},")
        begin = fair_time()
        async with nodes(1, url, prefix) as (node,):
            assert fair_time() - begin < DEADLINE / 2
            assert node.connected


async def test_a_seed_that_is_in_no_cluster_is_passed_over(cluster, tmp_path):
    alone = [Broker("valkey", tmp_path), Broker("valkey", tmp_path, "cluster-enabled yes")]
    with running(*alone):
        url = cluster.url.replace("://", "://" + "".join(f"127.0.0.1:{broker.port}," for broker in alone))
        async with nodes(1, url, uuid4().hex) as (node,):
            assert node.connected
        seeds = ",".join(f"127.0.0.1:{broker.port}" for broker in alone)
        with pytest.raises(BackendUnavailable, match="start with required=False") as caught:
            async with nodes(1, f"redis+cluster://{seeds}", uuid4().hex):
                pass
        assert "cluster support disabled" in str(caught.value.__cause__)
        assert "is in no cluster" in str(caught.value.__cause__)


# Replicas


async def test_rooms_follow_to_the_replica_of_a_master_that_dies(replicated_cluster):
    cluster, prefix = replicated_cluster, uuid4().hex
    lost, other, _ = cluster.masters
    (room,), (untouched,) = (rooms_of(cluster, prefix, master) for master in (lost, other))
    async with nodes(2, cluster.url, prefix) as (speaker, listener):
        await listener.joins(room, untouched)
        with SyncPublisher(cluster.url, settings=RoomsSettings(key_prefix=prefix)) as publisher:
            await asyncio.to_thread(publisher.broadcast_to_room, room.name, "before")
            async with speaking(speaker, room, untouched) as said:
                await asyncio.gather(*(one.is_heard_by(listener) for one in said))
                lost.kill()
                with pytest.raises(BackendUnavailable):
                    await asyncio.to_thread(publisher.broadcast_to_room, room.name, "lost")
                await until(lambda: cluster.replicas[0] in cluster.owners(other).values(), "its replica takes over")
                begin = fair_time()
                assert await said[0].is_heard_by(listener) - begin < FOLLOWS
                await are_connected(speaker, listener)
                with contextlib.suppress(BackendUnavailable):  # this failure tells it that there is another master
                    await asyncio.to_thread(publisher.broadcast_to_room, room.name, "after")
                await asyncio.to_thread(publisher.broadcast_to_room, room.name, "long after")
                await listener.hears("long after")
                lost.start()
                await until(lambda: lost.client.info("replication")["role"] == "slave", "it comes back as a replica")
                await said[0].is_heard_by(listener)
        assert "lost" not in listener.heard_at
        await until(lambda: listener.gaps_of(room), "the gap is reported")
        for one in said:
            await one.check(listener)
        assert said[1].failed == {}
        assert listener.gaps_of(untouched) == []


@pytest.mark.parametrize("broker_kind", SLOW_ON_REDIS, indirect=True)
async def test_rooms_follow_to_the_replica_of_a_master_that_stands_still(replicated_cluster):
    cluster, prefix = replicated_cluster, uuid4().hex
    _, frozen, other = cluster.masters
    (room,), (untouched,) = (rooms_of(cluster, prefix, master) for master in (frozen, other))
    async with nodes(2, cluster.url, prefix) as (speaker, listener):
        await listener.joins(room, untouched)
        async with speaking(speaker, room, untouched) as said:
            await asyncio.gather(*(one.is_heard_by(listener) for one in said))
            for _ in range(3):
                # What it has not told its replica yet it tells it when it goes on, and that one would say it again.
                frozen.call("PING")
            frozen.freeze()
            begin = fair_time()
            await until(lambda: cluster.replicas[1] in cluster.owners(other).values(), "its replica takes over")
            assert await said[0].is_heard_by(listener) - begin < NOTICED
            await are_connected(speaker, listener)
            frozen.thaw()
            await until(lambda: frozen.client.info("replication")["role"] == "slave", "it gives in")
            await said[0].is_heard_by(listener)
        await until(lambda: listener.gaps_of(room), "the gap is reported")
        for one in said:
            await one.check(listener)
        assert said[0].slowest < DEADLINE + LATE
        assert said[1].failed == {}
        assert listener.gaps_of(untouched) == []


# Stopping in the middle


async def test_it_can_be_stopped_while_slots_move(cluster):
    prefix, name = uuid4().hex, uuid4().hex
    here, there, _ = cluster.masters
    rooms = rooms_of(cluster, prefix, here, 5)
    for _ in range(10):
        async with nodes(2, f"{cluster.url}?client_name={name}", prefix) as (speaker, listener):
            await listener.joins(*rooms)
            told = []
            for room in rooms:
                cluster.move(slot_in(prefix, room), there)
                told += [asyncio.ensure_future(speaker.says(room, str(number))) for number in range(50)]
                listener.backend.subscribe(rooms)
            here, there = there, here
            await asyncio.sleep(0)
            await speaker.backend.stop()
            assert all(one.done() for one in told), "each has an answer"
        await until(
            lambda: not any(row["name"] == name for one in cluster.masters for row in one.clients()), "all is over"
        )


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_it_can_be_stopped_and_started_while_a_master_is_away(cluster, fault):
    prefix = uuid4().hex
    lost, reached, _ = cluster.masters
    (room, other), (reached,) = rooms_of(cluster, prefix, lost, 2), rooms_of(cluster, prefix, reached)
    with mended(cluster, lost):
        async with nodes(2, cluster.url, prefix, publish_timeout=0.5, required=False) as (speaker, listener):
            await are_connected(speaker, listener)
            await listener.joins(room)
            getattr(lost, fault)()
            told = [asyncio.ensure_future(speaker.says(room, str(number))) for number in range(50)]
            joining = asyncio.ensure_future(listener.backend.subscribe([other]))
            await asyncio.sleep(0)
            begin = fair_time()
            await asyncio.gather(speaker.backend.stop(), listener.backend.stop())
            assert fair_time() - begin < 0.5 + LATE
            await asyncio.wait([joining], timeout=LATE)
            assert joining.done(), "nobody waits for a backend that is stopped"
            assert all(
                isinstance(one, BackendUnavailable) for one in await asyncio.gather(*told, return_exceptions=True)
            )

        with pytest.raises(BackendUnavailable, match=r"was not there within 0\.5 s"):
            async with nodes(1, cluster.url, prefix, publish_timeout=0.5):
                pass
        async with nodes(2, cluster.url, prefix, publish_timeout=0.5, required=False) as (speaker, listener):
            assert not speaker.connected
            await listener.joins(room, reached)
            await speaker.says(reached, "hello")
            await listener.hears("hello")
            lost.thaw() if fault == "freeze" else lost.start()
            await are_connected(speaker, listener)
            await speaker.says(room, "at last")
            await listener.hears("at last")
            await until(lambda: listener.gaps_of(room), "the gap is reported")
