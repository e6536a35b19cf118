"""What lives on one event loop and is used on another: a backend, a manager, a publisher."""

import asyncio

import pytest
from redis_nodes import ROOM, Node, running_nodes, some_settings
from support import DEADLINE

from fastapi_rooms import BackendUnavailable, ConfigurationError, DistributedWebSocketManager, Publisher

ELSEWHERE = "not the event loop that it lives on"


async def elsewhere(function):
    """Run a coroutine function on another loop, in a thread, while this one goes on."""

    async def main():
        return await function()

    return await asyncio.wait_for(asyncio.to_thread(asyncio.run, main()), DEADLINE)


@pytest.mark.parametrize(
    "call",
    [
        lambda node: node.say("hi"),
        lambda node: node.backend.subscribe([ROOM]),
        lambda node: node.backend.put("key", b"value", 1),
        lambda node: node.backend.take("key"),
        lambda node: node.backend.peek(["key"]),
        lambda node: node.start(),
        lambda node: node.backend.stop(),
    ],
    ids=["publish", "subscribe", "put", "take", "peek", "start", "stop"],
)
async def test_a_backend_is_on_no_two_loops_that_run(each_broker, call):
    async with running_nodes(each_broker.url, 2, ROOM) as (one, two):

        async def main():
            await call(one)

        with pytest.raises(ConfigurationError, match=f"{ELSEWHERE}.*two loops that run at once need one each"):
            await elsewhere(main)
        await one.say("still here")
        await two.received(1)


def test_a_backend_whose_loop_has_ended_is_stopped_for_the_next_loop_and_nobody_waits(each_broker):
    node = Node(each_broker.url, settings=some_settings())
    asyncio.run(node.start(required=True))

    async def main():
        with pytest.raises(BackendUnavailable, match="the backend is stopped"):
            await node.say("hi")
        with pytest.raises(BackendUnavailable, match="the backend is stopped"):
            await node.backend.put("key", b"value", 1)
        with pytest.raises(BackendUnavailable, match="the backend is stopped"):
            await node.backend.peek(["key"])
        await node.backend.subscribe([ROOM])
        await node.backend.stop()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


async def test_a_manager_is_on_no_two_loops_that_run(each_broker):
    manager = DistributedWebSocketManager(each_broker.url, settings=some_settings())
    await manager.start(required=True)
    for call in (lambda: manager.broadcast("hi"), manager.start, manager.stop):
        with pytest.raises(ConfigurationError, match=rf"{ELSEWHERE}.*anyio\.from_thread\.run"):
            await elsewhere(call)
    assert await manager.broadcast("hi") == 0
    await manager.stop()


async def test_a_publisher_is_on_no_two_loops_that_run(each_broker):
    async with running_nodes(each_broker.url, 1, ROOM) as (node,):
        async with Publisher(each_broker.url, settings=node.settings) as publisher:
            for call in (lambda: publisher.broadcast_to_room("kitchen", "hi"), publisher.start, publisher.stop):
                with pytest.raises(ConfigurationError, match=f"{ELSEWHERE}.*SyncPublisher"):
                    await elsewhere(call)
            await publisher.broadcast_to_room("kitchen", "hi")
            await node.received(1)
        await elsewhere(lambda: publisher.broadcast_to_room("kitchen", "stopped, and used elsewhere"))
        await node.received(2)
    await publisher.stop()
