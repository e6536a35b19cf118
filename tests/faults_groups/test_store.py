"""What nodes share for a time, where a slot moves with its keys, and where Sentinel says who is master."""

import asyncio
from uuid import uuid4

import pytest
from brokers.groups import Cluster, eventually, info
from brokers.server import Broker
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.backends.redis.slots import slot_of
from faults_groups.nodes import mended, nodes


class Move:
    """A slot that moves from one server to another, step by step."""

    def __init__(self, cluster: Cluster, slot: int) -> None:
        self.source = cluster.owner(slot)
        self.target = next(master for master in cluster.masters if master is not self.source)
        self._cluster = cluster
        self._slot = slot

    def begin(self) -> None:
        self._say(self.target, "IMPORTING", self.source)
        self._say(self.source, "MIGRATING", self.target)

    def take_along(self, name: str) -> None:
        """Move one of its keys."""
        assert self.source.call("MIGRATE", "127.0.0.1", self.target.port, name, 0, 5000) == "OK"

    def end(self) -> None:
        for one in (self.target, self.source, *self._cluster.masters):
            self._say(one, "NODE", self.target)

    def _say(self, broker: Broker, state: str, other: Broker) -> None:
        broker.call("CLUSTER", "SETSLOT", self._slot, state, self._cluster.node_id(other))


def writable(cluster):
    """Wait until a cluster takes writes, which after an outage of another test comes later than all else."""
    eventually(lambda: all("cluster_state:ok" in info(one) for one in cluster.masters), "the cluster takes writes")
    return cluster


def keys_of_one_slot(prefix, count):
    """Keys that lie in the slot of the first of them."""
    slot = slot_of(Channels(prefix).of_key("0"))
    found = (str(number) for number in range(10**6) if slot_of(Channels(prefix).of_key(str(number))) == slot)
    return slot, [next(found) for _ in range(count)]


async def test_values_are_found_while_and_after_their_slot_moves(each_cluster):
    cluster, prefix = writable(each_cluster), uuid4().hex
    slot, (moved, staying, fresh, never) = keys_of_one_slot(prefix, 4)
    move = Move(cluster, slot)
    async with nodes(2, cluster.url, prefix) as (one, two):
        for key in (moved, staying):
            await one.backend.put(key, key.encode(), 60)
        move.begin()
        move.take_along(f"{prefix}:store:{moved}")
        await two.backend.put(fresh, fresh.encode(), 60)
        everything = [moved, never, staying, fresh]
        values = [moved.encode(), None, staying.encode(), fresh.encode()]
        assert await one.backend.peek(everything) == values, "some keys are ahead of their slot"
        assert sorted(await asyncio.gather(*(node.backend.take(moved) for node in (one, two))), key=bool) == [
            None,
            moved.encode(),
        ]
        move.take_along(f"{prefix}:store:{staying}")
        move.end()
        assert await one.backend.peek(everything) == [None, None, staying.encode(), fresh.encode()]
        for key in (staying, fresh):
            assert await two.backend.take(key) == key.encode()
        await until(lambda: one.connected and two.connected, "all is well")
    cluster.move(slot, move.source)


async def test_values_of_a_shard_that_is_down_are_out_of_reach_and_the_others_are_not(each_cluster):
    cluster, prefix = writable(each_cluster), uuid4().hex
    owners = cluster.owners()
    by_owner = {}
    for number in range(100):
        by_owner.setdefault(owners[slot_of(Channels(prefix).of_key(str(number)))], str(number))
    async with nodes(1, cluster.url, prefix) as (node,):
        lost, *others = by_owner
        await asyncio.gather(*(node.backend.put(key, b"kept", 60) for key in by_owner.values()))
        with mended(cluster, lost):
            lost.kill()
            await until(lambda: not node.connected, "it is noticed")
            for call in (node.backend.peek(list(by_owner.values())), node.backend.take(by_owner[lost])):
                with pytest.raises(BackendUnavailable):
                    await call
            for master in others:
                assert await node.backend.take(by_owner[master]) == b"kept"
        await until(lambda: "cluster_state:ok" in info(lost), "it takes keys again")
        await until(lambda: node.connected, "all is well")
        assert await node.backend.take(by_owner[lost]) is None, "it was in memory"


async def test_sentinel_says_where_values_are(shared_sentinels):
    async with nodes(2, shared_sentinels.url, uuid4().hex) as (one, two):
        await one.backend.put("a", b"1", 60)
        assert await two.backend.peek(["b", "a"]) == [None, b"1"]
        assert await two.backend.take("a") == b"1"
        assert await one.backend.take("a") is None
