"""Connections are cut, and Redis goes and comes back."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from faults.nodes import AT_ONCE, ROOM, SLACK, check_hearing, connected, degraded, member, running, speaking

from fastapi_rooms import BackendUnavailable, DistributedWebSocketManager

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
                    await connected(one, two)
                    for node in nodes:
                        status = node.status
                        assert (status.connected, status.degraded_since) == (True, None)
                        assert (status.reconnects, status.gaps, len(node.gaps)) == (count, count, count)
            await one.say("the end")
            await remote.hears("the end")
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
                await connected(one, two)
            await one.say("the end")
            await remote.hears("the end")
            check_hearing(speaker, remote, two.gaps)
            assert speaker.missed_by(local) == []
            assert all(said.seconds < AT_ONCE for said in speaker.failed)
            for node, undelivered in ((one, len(speaker.failed)), (two, 0)):
                status = node.status
                assert (status.reconnects, status.gaps, status.undelivered) == (1, 0, undelivered)


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(120)])])
async def test_redis_goes_and_comes_back(broker, proxy, seconds):
    with running(broker.url, proxy.url) as nodes:
        one, two = nodes
        late = DistributedWebSocketManager(broker.url)
        async with member(one) as local, member(two) as remote:
            async with speaking(one, per_second=50) as speaker:
                await remote.hears_again(speaker, time.monotonic())
                killed, killed_at = time.monotonic(), datetime.now(UTC)
                broker.kill()
                await degraded(one, two, seconds=AT_ONCE)
                noticed = time.monotonic()
                attempts = proxy.accepted
                since = [node.status.degraded_since for node in nodes]
                assert all(timedelta() <= one - killed_at < timedelta(seconds=AT_ONCE) for one in since)

                await local.say("from a client")
                await local.hears("from a client")
                await local.hears(UNAVAILABLE)
                before = asyncio.all_tasks()
                begin = time.monotonic()
                with pytest.raises(BackendUnavailable, match="start it, or start with required=False"):
                    await late.start(required=True)
                assert asyncio.all_tasks() == before, "nothing is left running"
                await late.start()
                assert time.monotonic() - begin < 2 * START_WITHIN
                assert not late.status.connected
                with pytest.raises(BackendUnavailable):
                    await late.broadcast("nobody")

                begin = time.monotonic()
                async with member(one, "pantry") as newcomer, member(two, "pantry"):
                    assert time.monotonic() - begin < AT_ONCE, "joining waits for nothing"
                    await asyncio.sleep(killed + seconds - time.monotonic())
                    assert [node.status.degraded_since for node in nodes] == since
                    attempts = proxy.accepted - attempts
                    await asyncio.to_thread(broker.start)
                    returned = time.monotonic()
                    assert await remote.hears_again(speaker, returned) <= HEARS_AGAIN_AFTER_RETURN
                    await connected(one, two, late, seconds=returned + HEARS_AGAIN_AFTER_RETURN - time.monotonic())
                    await two.say("what joined meanwhile hears, too", "pantry")
                    await newcomer.hears("what joined meanwhile hears, too")
                await local.say("once more")
                await remote.hears("once more")
                await late.broadcast("from who started without Redis")
                await remote.hears("from who started without Redis")
            await one.say("the end")
            await remote.hears("the end")
        # Two sides of a node, each of which waits half a second on average, and less at first.
        assert 2 * seconds < attempts < 10 * seconds + 20
        check_hearing(speaker, remote, two.gaps)
        assert speaker.missed_by(local) == []
        check_hearing(speaker, local, [])
        assert local.heard.count(UNAVAILABLE) == 1
        assert any(noticed < said.at for said in speaker.failed)
        assert all(said.seconds < AT_ONCE for said in speaker.failed)
        for node, undelivered in ((one, len(speaker.failed) + 1), (two, 0)):
            status = node.status
            assert (status.connected, status.degraded_since) == (True, None)
            assert (status.reconnects, status.gaps, status.undelivered) == (1, 1, undelivered)
            (gap,) = node.gaps
            assert (gap.rooms, gap.everybody) == ({ROOM, "pantry"}, True)
            assert gap.since <= killed_at < killed_at + timedelta(seconds=seconds) <= gap.until
        assert (late.status.reconnects, late.status.undelivered) == (0, 1)
        await late.stop()
