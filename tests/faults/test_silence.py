"""Connections that stay while nothing comes through: Redis stands still, or the network holds everything back."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from support import fair_time, until

from fastapi_rooms import BackendUnavailable, DistributedWebSocketManager
from faults.nodes import (
    AT_ONCE,
    SLACK,
    UNDISTURBED,
    check_hearing,
    connected,
    degraded,
    member,
    running,
    speaking,
)

NOTICED_WITHIN = 5.0
PUBLISH_DEADLINE = 2.0


async def how_long(awaitable):
    """Wait for something that fails; return how long that took."""
    begin = fair_time()
    with pytest.raises(BackendUnavailable):
        await awaitable
    return fair_time() - begin


async def joining(node, room):
    """Return how long a client waits for its handshake."""
    begin = fair_time()
    async with member(node, room):
        return fair_time() - begin


async def is_silent(busy, idle, speaker):
    """Check what two nodes do about a silence that begins now; return when they know."""
    began, began_at = time.monotonic(), datetime.now(UTC)
    early_join = asyncio.create_task(joining(busy, "early"))
    await degraded(busy, idle, seconds=NOTICED_WITHIN)
    for node in (busy, idle):
        assert timedelta() < node.status.degraded_since - began_at < timedelta(seconds=NOTICED_WITHIN)
        assert await joining(node, "late") < AT_ONCE
        assert await how_long(node.say("nobody", "pantry")) < AT_ONCE
    assert await early_join < PUBLISH_DEADLINE + SLACK
    (first, *_) = speaker.failed
    assert first.at < began + SLACK
    assert first.seconds > PUBLISH_DEADLINE - SLACK
    assert all(said.fair_seconds < PUBLISH_DEADLINE + SLACK for said in speaker.failed)
    knew = began + (busy.status.degraded_since - began_at).total_seconds()
    after = [said for said in speaker.failed if said.at > knew]
    assert after
    assert all(said.fair_seconds < AT_ONCE for said in after)
    assert all(said.error or said.at < began or said.fair_seconds < 0 for said in speaker.said), "nothing succeeds"


async def test_redis_stands_still(broker):
    with running(broker.url, broker.url) as (busy, idle):
        async with member(busy) as local, member(idle) as remote:
            async with speaking(busy, per_second=50) as speaker:
                await remote.hears_again(speaker, time.monotonic())
                broker.freeze()
                late = DistributedWebSocketManager(broker.url)
                starting = asyncio.create_task(how_long(late.start(required=True)))
                await is_silent(busy, idle, speaker)
                assert await starting < PUBLISH_DEADLINE + SLACK
                broker.thaw()
                await connected(busy, idle)
                await remote.hears_again(speaker, time.monotonic())
            await busy.say("the end")
            await remote.hears("the end")
            await local.hears("the end")
        check_hearing(speaker, remote, idle.gaps)
        check_hearing(speaker, local, [])
        assert speaker.missed_by(local) == []
        for node, undelivered in ((busy, len(speaker.failed) + 1), (idle, 1)):
            status = node.status
            assert (status.degraded_since, status.reconnects, status.undelivered) == (None, 1, undelivered)
            assert status.gaps == len(node.gaps)


async def test_a_half_open_connection(broker, proxy):
    with running(proxy.url, proxy.url, broker.url) as (busy, idle, far):
        async with member(busy) as local, member(far) as remote, member(busy, "afar") as listener:
            async with speaking(busy, per_second=50) as speaker, speaking(far, per_second=50, room="afar") as other:
                await remote.hears_again(speaker, time.monotonic())
                await listener.hears_again(other, time.monotonic())
                proxy.stall()
                await is_silent(busy, idle, speaker)
                assert far.status == UNDISTURBED
                async with member(idle, "afar") as newcomer:
                    joined = time.monotonic()
                    await until(lambda: other.said[-1].at > joined, "the newcomer misses something")
                    proxy.restore()
                    await connected(busy, idle)
                    await remote.hears_again(speaker, time.monotonic())
                    await listener.hears_again(other, time.monotonic())
                    await newcomer.hears_again(other, time.monotonic())
                    await until(lambda: idle.gaps, "the gap is reported")
                    other.stop()
                    await far.say("the newcomer leaves", "afar")
                    await newcomer.hears("the newcomer leaves")
            await busy.say("the end")
            await remote.hears("the end")
            await local.hears("the end")
            await far.say("the end", "afar")
            await listener.hears("the end")
        check_hearing(speaker, remote, [])
        check_hearing(speaker, local, [])
        check_hearing(other, listener, busy.gaps)
        check_hearing(other, newcomer, idle.gaps, joined)
        assert speaker.missed_by(local) == other.failed == []
        assert far.status == UNDISTURBED
        for node, undelivered in ((busy, len(speaker.failed) + 1), (idle, 1)):
            status = node.status
            assert (status.degraded_since, status.reconnects, status.undelivered) == (None, 1, undelivered)
            assert status.gaps == len(node.gaps)
