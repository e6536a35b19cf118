"""Managers that share a real broker."""

import asyncio
from uuid import uuid4

import pytest
from support import until

from engine.fakes import connected, only_this_task, ticks
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager


async def test_managers_with_different_prefixes_on_one_redis_do_not_hear_each_other(shared_broker):
    prefixes = [f"t{uuid4().hex[:12]}{end}" for end in ("", ":room", ":room:kitchen")]
    managers = [
        DistributedWebSocketManager(shared_broker.url, settings=RoomsSettings(key_prefix=prefix))
        for prefix in prefixes
        for _ in range(2)
    ]
    await asyncio.gather(*(manager.start(required=True) for manager in managers))
    peers = [(await connected(manager, "kitchen", "ann"))[0] for manager in managers]
    for manager, prefix in zip(managers[::2], prefixes, strict=True):
        await manager.broadcast_to_room("kitchen", f"room {prefix}")
        await manager.send_to_user("ann", f"user {prefix}")
        await manager.broadcast(f"all {prefix}")
    expected = [[f"{kind} {prefix}" for kind in ("room", "user", "all")] for prefix in prefixes for _ in range(2)]
    await until(lambda: [peer.texts for peer in peers] == expected)
    assert [manager.status.undecodable for manager in managers] == [0] * 6
    await asyncio.gather(*(manager.stop() for manager in managers))
    assert only_this_task()


@pytest.mark.parametrize("is_stopped_again", [True, False])
async def test_a_stop_that_is_cancelled_wherever_it_is_leaves_nothing_that_hears_twice(shared_broker, is_stopped_again):
    settings = RoomsSettings(key_prefix=f"t{uuid4().hex[:12]}")
    one, two = (DistributedWebSocketManager(shared_broker.url, settings=settings) for _ in range(2))
    await one.start(required=True)
    before = len(asyncio.all_tasks())
    for count in range(100):
        await two.start(required=True)
        stopping = asyncio.create_task(two.stop())
        await ticks(count)
        if stopping.done():
            break
        stopping.cancel()
        await asyncio.wait([stopping])
        if is_stopped_again:
            await two.stop()
            assert len(asyncio.all_tasks()) == before
        await two.start(required=True)
        peer, connection = await connected(two)
        await one.broadcast("once")
        await one.send_personal(connection.connection_id, "over")
        await until(lambda: "over" in peer.texts)  # noqa: B023 - waited for within the loop
        assert peer.texts == ["once", "over"]
        two.disconnect(connection)
    assert count > 5
    for manager in (one, two):
        await manager.stop()
    assert only_this_task()


async def test_a_start_that_is_cancelled_wherever_it_is_leaves_nothing_running(shared_broker):
    settings = RoomsSettings(key_prefix=f"t{uuid4().hex[:12]}")
    manager = DistributedWebSocketManager(shared_broker.url, settings=settings)
    cancelled = 0
    for count in range(2000):
        starting = asyncio.create_task(manager.start(required=True))
        await ticks(count)
        if starting.done():
            break
        starting.cancel()
        await asyncio.wait([starting])
        cancelled += 1
        assert only_this_task()
        assert not manager.status.connected
    assert cancelled > 5
    await manager.start(required=True)
    await manager.stop()
    assert only_this_task()
