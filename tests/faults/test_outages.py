"""Connections are cut, and Redis goes and comes back."""

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from support import fair_time, until

from fastapi_rooms import BackendUnavailable, DistributedWebSocketManager
from faults.nodes import AT_ONCE, ROOM, SLACK, check_hearing, connected, degraded, member, running, speaking

HEARS_AGAIN_AFTER_KILL = 0.5
HEARS_AGAIN_AFTER_RETURN = 2.0
START_WITHIN = 2.0
UNAVAILABLE = '{"type":"error","code":"unavailable"}'


async def test_a_killed_listener_hears_again_at_once_and_what_was_lost_is_reported(broker):
    with running(broker.url, broker.url) as nodes:
        one, two = nodes
        async with member(one) as local, member(two) as remote:
            kills = []
            async with speaking(one, per_second=200) as speaker:
                for count in range(1, 6):
                    await remote.hears_again(speaker, time.monotonic())
                    assert broker.kill_listeners() == 2
                    kills.append(time.monotonic())
                    assert await remote.hears_again(speaker, kills[-1]) < HEARS_AGAIN_AFTER_KILL
                    await until(lambda n=count: len(one.gaps) == len(two.gaps) == n, "the gap is reported")
                    for node in nodes:
                        status = node.status
                        assert (status.connected, status.degraded_since) == (True, None)
                        assert (status.reconnects, status.gaps) == (count, count)
            await one.say("the end")
            await remote.hears("the end")
            await local.hears("the end")
            check_hearing(speaker, remote, two.gaps)
            for lost in speaker.missed_by(remote):
                assert any(killed - SLACK < lost.at < killed + HEARS_AGAIN_AFTER_KILL for killed in kills)
            assert speaker.missed_by(local) == speaker.failed == [], "the publishing line was not cut"
            assert all((gap.rooms, gap.everybody) == ({ROOM}, True) for gap in one.gaps + two.gaps)


async def test_a_killed_publishing_line_is_made_again_at_once_and_repeats_nothing(broker):
    with running(broker.url, broker.url) as (one, two):
        async with member(one) as local, member(two) as remote:
            async with speaking(one, per_second=200) as speaker:
                await remote.hears_again(speaker, time.monotonic())
                assert broker.call("CLIENT", "KILL", "TYPE", "normal") == 2
                killed = time.monotonic()
                assert await remote.hears_again(speaker, killed) < HEARS_AGAIN_AFTER_KILL
                await until(lambda: one.status.reconnects == two.status.reconnects == 1, "connected again")
            await one.say("the end")
            await remote.hears("the end")
            await local.hears("the end")
            check_hearing(speaker, remote, two.gaps)
            assert speaker.missed_by(local) == []
            assert all(said.fair_seconds < AT_ONCE for said in speaker.failed)
            for node, undelivered in ((one, len(speaker.failed)), (two, 0)):
                status = node.status
                assert (status.reconnects, status.gaps, status.undelivered) == (1, 0, undelivered)


async def start_without_redis(manager):
    """Start degraded, having tried to start with Redis required."""
    before = asyncio.all_tasks()
    begin = time.monotonic()
    with pytest.raises(BackendUnavailable, match="or start with required=False"):
        await manager.start(required=True)
    assert asyncio.all_tasks() == before, "nothing is left running"
    await manager.start()
    assert time.monotonic() - begin < 2 * START_WITHIN
    assert not manager.status.connected
    with pytest.raises(BackendUnavailable):
        await manager.broadcast("nobody")


class Outage:
    """A time without Redis."""

    def __init__(self, broker, proxy, nodes):
        self._broker = broker
        self._proxy = proxy
        self._nodes = nodes
        self.returned = 0.0  # when Redis answered again

    @asynccontextmanager
    async def lasting(self, seconds):
        """Kill Redis, and start it again when the block has ended, but not before its time."""
        killed, killed_at = time.monotonic(), datetime.now(UTC)
        self._broker.kill()
        await degraded(*self._nodes, seconds=AT_ONCE)
        attempts = self._proxy.accepted
        since = [node.status.degraded_since for node in self._nodes]
        assert all(timedelta() <= noticed - killed_at < timedelta(seconds=AT_ONCE) for noticed in since)
        yield
        await asyncio.sleep(killed + seconds - time.monotonic())
        assert [node.status.degraded_since for node in self._nodes] == since
        # Two sides of a node, each of which waits half a second on average, and less at first.
        assert 2 * seconds < self._proxy.accepted - attempts < 10 * seconds + 20
        await asyncio.to_thread(self._broker.start)
        self.returned, returned_at = time.monotonic(), datetime.now(UTC)
        await connected(*self._nodes, seconds=HEARS_AGAIN_AFTER_RETURN)
        for node in self._nodes:
            (gap,) = await until(lambda node=node: node.gaps)
            assert (gap.rooms, gap.everybody) == ({ROOM, "pantry"}, True)
            assert gap.since < killed_at < returned_at < gap.until + timedelta(seconds=SLACK)


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(120)])])
async def test_redis_goes_and_comes_back(broker, proxy, seconds):
    late = DistributedWebSocketManager(broker.url)
    with running(broker.url, proxy.url) as (one, two):
        async with AsyncExitStack() as ends:
            local, remote = [await ends.enter_async_context(member(node)) for node in (one, two)]
            speaker = await ends.enter_async_context(speaking(one, per_second=50))
            await remote.hears_again(speaker, time.monotonic())
            outage = Outage(broker, proxy, (one, two))
            async with outage.lasting(seconds):
                noticed = time.monotonic()
                await local.say("from a client")
                await local.hears("from a client")
                await local.hears(UNAVAILABLE)
                await start_without_redis(late)
                begin = fair_time()
                pantry = [await ends.enter_async_context(member(node, "pantry")) for node in (one, two)]
                assert fair_time() - begin < AT_ONCE, "joining waits for nothing"
            await connected(late, seconds=outage.returned + HEARS_AGAIN_AFTER_RETURN - time.monotonic())
            assert await remote.hears_again(speaker, outage.returned) <= HEARS_AGAIN_AFTER_RETURN
            await two.say("what joined meanwhile hears, too", "pantry")
            await pantry[0].hears("what joined meanwhile hears, too")
            await local.say("the socket has stayed")
            await remote.hears("the socket has stayed")
            await late.broadcast("from who started without Redis")
            await remote.hears("from who started without Redis")
            speaker.stop()
            await one.say("the end")
            await remote.hears("the end")
            await local.hears("the end")
    await late.stop()
    check_hearing(speaker, remote, two.gaps)
    check_hearing(speaker, local, [])
    assert speaker.missed_by(local) == [], "members here are served all along"
    assert local.heard.count(UNAVAILABLE) == 1
    assert any(noticed < said.at for said in speaker.failed)
    assert all(said.fair_seconds < AT_ONCE for said in speaker.failed)
    assert [node.status.undelivered for node in (one, two)] == [len(speaker.failed) + 1, 0]
    assert [(node.status.reconnects, node.status.gaps) for node in (one, two)] == [(1, 1)] * 2
    assert (late.status.reconnects, late.status.undelivered) == (0, 1)
