"""Publishers, and ready clients of redis-py, over a cluster and over Sentinel."""

import asyncio
import contextlib
from uuid import uuid4

import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel
from support import fair_time

from fastapi_rooms import BackendUnavailable, Publisher, RoomsSettings, SyncPublisher
from fastapi_rooms.domain.envelope import EVERYBODY, room_target, user_target
from faults_groups.nodes import LATE, mended, nodes, rooms_of, slot_in

DEADLINE = 2.0


@contextlib.asynccontextmanager
async def ready_cluster(cluster, *, initialized):
    seeds = [ClusterNode("127.0.0.1", master.port) for master in cluster.masters]
    client = RedisCluster(startup_nodes=seeds, client_name="ready")
    if initialized:
        await client.initialize()
    yield client
    await client.aclose()


@contextlib.asynccontextmanager
async def ready_sentinel(sentinels):
    manager = Sentinel([("127.0.0.1", sentinel.port) for sentinel in sentinels.sentinels])
    client = manager.master_for(sentinels.name, client_name="ready")
    yield client
    await client.aclose()
    for sentinel in manager.sentinels:
        await sentinel.aclose()


@pytest.fixture(params=["cluster", "initialized cluster", "sentinel"])
async def ready(request):
    """A ready client, and the URL of where it leads."""
    place = request.getfixturevalue(request.param.split()[-1].replace("sentinel", "shared_sentinels"))
    make = ready_sentinel(place) if place.url.startswith("redis+sentinel") else None
    async with make or ready_cluster(place, initialized=request.param.startswith("init")) as client:
        yield client, place.url


async def check_publishers(source, node, room):
    """Have both publishers say something in every way, and check that a node hears it."""
    settings = RoomsSettings(key_prefix=node.prefix)
    await node.joins(room, user_target("ann"))
    async with Publisher(source, settings=settings) as publisher:
        await publisher.broadcast("1")
        await publisher.broadcast_to_room(room.name, "2")
        await publisher.send_to_user("ann", "3")
        assert publisher.status.connected
    with SyncPublisher(source, settings=settings) as publisher:
        for publish, *words in (
            (publisher.broadcast, "4"),
            (publisher.broadcast_to_room, room.name, "5"),
            (publisher.send_to_user, "ann", "6"),
        ):
            await asyncio.to_thread(publish, *words)
    await node.received(6)
    heard = {target: node.heard(target) for target in (EVERYBODY, room, user_target("ann"))}
    assert heard == {EVERYBODY: ["1", "4"], room: ["2", "5"], user_target("ann"): ["3", "6"]}


async def test_publishers_reach_nodes_by_url(cluster, shared_sentinels):
    for url in (cluster.url, shared_sentinels.url):
        async with nodes(1, url, uuid4().hex) as (node,):
            await check_publishers(url, node, room_target("kitchen"))


async def test_publishers_and_nodes_take_ready_clients(ready):
    client, url = ready
    prefix = uuid4().hex
    async with nodes(1, client, prefix) as (node,), nodes(1, url, prefix) as (other,):
        await check_publishers(client, node, room_target("kitchen"))
        await other.says(EVERYBODY, "hello")
        await node.hears("hello")


async def test_a_sync_publisher_follows_a_slot(cluster):
    prefix = uuid4().hex
    here, there, _ = cluster.masters
    (room,) = rooms_of(cluster, prefix, here)
    async with nodes(1, cluster.url, prefix) as (node,):
        await node.joins(room)
        with SyncPublisher(cluster.url, settings=RoomsSettings(key_prefix=prefix)) as publisher:
            for number, to in enumerate((here, there, here)):
                cluster.move(slot_in(prefix, room), to)
                await asyncio.to_thread(publisher.broadcast_to_room, room.name, f"moved {number}")
                while f"moved {number}" not in node.heard_at and not node.gaps_of(room):
                    await asyncio.sleep(0.01)
                await node.settles()
                await asyncio.to_thread(publisher.broadcast_to_room, room.name, f"settled {number}")
                await node.hears(f"settled {number}")
                node.gaps.clear()


async def test_a_sync_publisher_fails_in_time_for_a_shard_that_stands_still_and_for_no_other(cluster):
    prefix = uuid4().hex
    lost, other, _ = cluster.masters
    (room,), (untouched,) = (rooms_of(cluster, prefix, master) for master in (lost, other))
    async with nodes(1, cluster.url, prefix) as (node,):
        await node.joins(room, untouched)
        with SyncPublisher(cluster.url, settings=RoomsSettings(key_prefix=prefix)) as publisher:

            async def say(target, text):
                begin = fair_time()
                try:
                    await asyncio.to_thread(publisher.broadcast_to_room, target.name, text)
                finally:
                    took.append(fair_time() - begin)

            took = []
            await say(room, "before")
            with mended(cluster, lost):
                lost.freeze()
                for number in range(3):
                    with pytest.raises(BackendUnavailable, match="were not told, or not for certain"):
                        await say(room, f"lost {number}")
                    await say(untouched, f"meanwhile {number}")
                    await node.hears(f"meanwhile {number}")
            assert max(took) < DEADLINE + LATE
            await node.settles()
            await say(room, "after")
            await node.hears("after")
    assert len(node.heard(room)) == len(set(node.heard(room))), "nothing is said twice"
