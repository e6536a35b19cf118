"""Links to all servers of a cluster, without a cluster: what is left of them."""

import asyncio
import contextlib

import pytest
from scripted_redis import ScriptedRedis, bulk
from support import until

from fastapi_rooms.backends.redis import table
from fastapi_rooms.backends.redis.cluster import ClusterLinks
from fastapi_rooms.backends.redis.link import Pace
from fastapi_rooms.backends.redis.places import locate
from fastapi_rooms.backends.redis.slots import SLOTS


class Shard(ScriptedRedis):
    """Knows who has which slot, and says nothing else."""

    def __init__(self):
        super().__init__()
        self.shards = []

    def on_command(self, visit, command):
        if command == [b"CLUSTER", b"SLOTS"]:
            rows = [
                b"*3\r\n:%d\r\n:%d\r\n%s" % (number, SLOTS - 1, bulk(b"127.0.0.1", shard.port))
                for number, shard in enumerate(self.shards)
            ]
            visit.say(b"*%d\r\n%s" % (len(rows), b"".join(rows)))


class Owner:
    def on_health(self):
        pass

    def on_message(self, channel, payload):
        pass

    def on_repaired(self, since, channels):
        pass


@pytest.fixture(autouse=True)
def _asks_often(monkeypatch):
    monkeypatch.setattr(table, "MIN_REFRESH_SECONDS", 0.001)
    monkeypatch.setattr(table, "UNHEALTHY_REFRESH_SECONDS", 0.002)


def our_tasks():
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("fastapi_rooms")}


async def running_links(shards):
    """Links to two servers, and one that is leaving a third, for whose answer it waits."""
    for shard in shards:
        shard.shards = shards
    seeds = locate(f"redis+cluster://127.0.0.1:{shards[0].port}", 5.0)
    links = ClusterLinks(seeds, Pace(5.0, 5.0), Owner(), lambda number: b"probe %d" % number, b"")
    links.start()
    await until(lambda: len(links._addresses) == 3 and all(link.line.is_up for link in links._addresses), "all are up")
    last = links._links["127.0.0.1", shards[2].port]
    last.line.send(b"PING").add_done_callback(asyncio.Future.exception)
    for shard in shards:
        shard.shards = shards[:2]
    links._keeper.expire()
    await until(lambda: last in links._leaving, "one is leaving")
    return links


async def test_a_stop_that_was_cancelled_at_whatever_tick_and_called_again_leaves_nothing():
    async with Shard() as one, Shard() as two, Shard() as three:
        ticks = 0
        has_finished = False
        while not has_finished:
            links = await running_links([one, two, three])
            assert our_tasks()
            stopping = asyncio.create_task(links.stop())
            for _ in range(ticks):
                await asyncio.sleep(0)
            has_finished = stopping.done()
            stopping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stopping
            await asyncio.wait_for(links.stop(), 5)
            assert our_tasks() == set(), f"cancelled after {ticks} ticks"
            ticks += 1 if ticks < 8 else 4  # the first are of the keeper and the links; then it waits for servers
        assert ticks > 6, "it waits for the keeper, for the one that is leaving, and for the sides of each link"


async def test_two_who_stop_it_at_once_leave_nothing():
    async with Shard() as one, Shard() as two, Shard() as three:
        links = await running_links([one, two, three])
        await asyncio.wait_for(asyncio.gather(links.stop(), links.stop()), 5)
        assert our_tasks() == set()
