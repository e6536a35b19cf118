"""Redis is restarted again and again while rooms open and close, and nothing is left of it."""

import asyncio
import json
import random
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from support import until
from websockets.asyncio.client import connect

from faults.nodes import connected, member, running

RESTARTS = 20
WALKERS = 4  # per node
ROOMS = [f"room-{number}" for number in range(40)]


class Walker:
    """A client that joins and leaves rooms as fast as it is answered."""

    def __init__(self, websocket):
        self._websocket = websocket
        self._is_over = False

    async def walk(self):
        while not self._is_over:
            await self.go(random.choice(["join", "leave"]), random.choice(ROOMS))

    async def go(self, *step):
        await self._websocket.send(json.dumps(step))
        return json.loads(await self._websocket.recv())

    def stop(self):
        self._is_over = True


@asynccontextmanager
async def walker(node):
    async with connect(node.server.url("/walk")) as websocket:
        yield Walker(websocket)


async def come_and_go(nodes, is_over):
    while not is_over.is_set():
        async with member(random.choice(nodes), random.choice(ROOMS), "?user=ann"):
            pass


def expected(nodes):
    """The channels that have to be subscribed."""
    rooms = {room for node in nodes for room in node.manager.active_rooms}
    nodes_own = {f"rooms:node:{node.manager.node_id}:0" for node in nodes}
    return {"rooms:all", *nodes_own, *(f"rooms:room:{room}" for room in rooms)}


def what_is_held(nodes, broker):
    """What could leak."""
    tasks = [task.get_name() for node in nodes for task in asyncio.all_tasks(node.server.loop)]
    return {
        "connections": (len(broker.clients("pubsub")), len(broker.clients("normal"))),
        "file descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": sorted(name for name in tasks if str(broker.port) in name),
    }


def is_at_rest(node):
    """Whether nothing is noted that is only needed on the way."""
    link = node.manager._backend._topology._link
    listener, line = link.listener, link.line
    passing = (
        listener._changed,
        listener._under_way,
        listener._busy,
        listener.lapses._catching_up,
        listener.lapses._late,
        listener._waiting,
        line._unanswered,
        line._unwritten,
    )
    return not any(passing) and listener._wanted == listener._confirmed and link._probe is None


async def check_rest(nodes, broker):
    await until(lambda: all(map(is_at_rest, nodes)), "rest")
    assert broker.channels() == expected(nodes)
    for node in nodes:
        backend = node.manager._backend
        wanted = backend._topology._link.listener._wanted
        own = f"rooms:node:{node.manager.node_id}:0"
        assert {channel.decode() for channel in wanted} == expected([node])
        assert {channel.decode() for channel in backend._targets} == expected([node]) - {own}


async def test_after_many_restarts_redis_has_what_is_wanted_and_nothing_is_left_behind(broker):
    with running(broker.url, broker.url) as nodes:
        async with AsyncExitStack() as ends:
            walkers = [await ends.enter_async_context(walker(node)) for node in nodes for _ in range(WALKERS)]
            await check_rest(nodes, broker)
            before = what_is_held(nodes, broker)
            is_over = asyncio.Event()
            moving = [asyncio.create_task(one.walk()) for one in walkers]
            moving += [asyncio.create_task(come_and_go(nodes, is_over)) for _ in range(2)]
            for number in range(RESTARTS):
                if number % 4 == 0:
                    await connected(*nodes)
                else:
                    await asyncio.sleep(random.uniform(0, 0.1))  # connecting, subscribing or probing
                broker.kill()
                await asyncio.sleep(random.uniform(0, 0.05))
                await asyncio.to_thread(broker.start)
            await connected(*nodes)
            is_over.set()
            for one in walkers:
                one.stop()
            await asyncio.gather(*moving)
            await until(lambda: not any(node.manager.get_user_connections("ann") for node in nodes), "guests are gone")

            assert len(expected(nodes)) > 10
            await check_rest(nodes, broker)
            await until(lambda: what_is_held(nodes, broker) == before, "nothing leaks", seconds=3)
            for node in nodes:
                status = node.status
                assert (status.connected, status.degraded_since, status.undelivered) == (True, None, 0)
                assert RESTARTS / 4 <= status.reconnects <= RESTARTS
                assert RESTARTS / 4 <= status.gaps == len(node.gaps)
        await until(lambda: all(not node.manager.active_rooms for node in nodes), "all have left")
        await check_rest(nodes, broker)
        assert len(broker.channels()) == 3
