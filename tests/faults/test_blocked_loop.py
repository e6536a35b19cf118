"""A node whose event loop stands still is late, not deaf; and what it did lose meanwhile is reported."""

import asyncio
import threading
import time

from support import until

from fastapi_rooms.domain.envelope import room_target
from faults.nodes import ROOM, UNDISTURBED, check_hearing, check_order, member, running, speaking

PUBLISH_DEADLINE = 2.0
BLOCKED = (PUBLISH_DEADLINE + 0.02, 3.0)


async def block(manager, seconds):
    """Stand still just after a probe, a publish and a subscription began, with the answers unread."""
    link = manager._backend._topology._link
    link._changed.set()
    while link._probe is None:
        await asyncio.sleep(0)
    under_way = asyncio.gather(
        manager.broadcast_to_room(ROOM, f"said before {seconds} s"), manager._follow([room_target("pantry")])
    )
    await asyncio.sleep(0)
    time.sleep(seconds)
    await under_way


async def test_a_blocked_loop_is_no_false_alarm(broker):
    with running(*[broker.url] * 3) as nodes:
        one, two, three = nodes
        async with member(one) as local, member(two) as listener_two, member(three) as listener_three:
            blocked = [
                asyncio.ensure_future(node.server.call(block, node.manager, seconds))
                for node, seconds in zip((two, three), BLOCKED, strict=True)
            ]
            async with speaking(one, per_second=100) as speaker:
                await asyncio.gather(*blocked)
                await asyncio.gather(
                    *(listener.hears_again(speaker, time.monotonic()) for listener in (listener_two, listener_three))
                )
            for seconds in BLOCKED:
                await local.hears(f"said before {seconds} s")
            await one.say("the end")
            for listener in (listener_two, listener_three):
                await listener.hears("the end")
                check_hearing(speaker, listener, [])
        assert speaker.failed == []
        for node in nodes:
            assert node.status == UNDISTURBED
            assert node.gaps == []


async def test_what_redis_threw_away_for_a_blocked_loop_is_reported(broker):
    broker.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 512kb 1")
    with running(broker.url, broker.url) as (one, two):
        async with member(two) as listener:
            is_over = threading.Event()
            blocked = asyncio.ensure_future(two.server.call(is_over.wait, 10))
            said = []
            try:
                while "overcoming of output buffer limits" not in broker.log:
                    assert len(said) < 10_000, "Redis keeps whatever comes"
                    said.append(f"{len(said)} {'x' * 10_000}")  # Valkey does not count what it need not copy: 16 KB
                    await one.say(said[-1])
                last = time.time()
            finally:
                is_over.set()
            assert await blocked
            await until(lambda: two.gaps, "the gap is noticed", seconds=1.0)
            await one.say("the end")
            await listener.hears("the end")
        lost = set(said) - set(listener.heard)
        assert said[-1] in lost
        check_order(said, listener.heard)
        (gap,) = two.gaps
        assert gap.rooms == {ROOM}
        assert gap.since.timestamp() < last < gap.until.timestamp()
        assert (two.status.connected, two.status.reconnects, two.status.gaps) == (True, 1, 1)
        assert (one.status, one.gaps) == (UNDISTURBED, [])
