"""What breaks: Redis, the network between it and a node, and the nodes."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import redis
from brokers.server import Broker

from soak.history import History
from soak.nodes import Node, noted

Break = Callable[[], Awaitable[None]]


class Faults:
    """Breaks one thing after the other in two places at once: Redis here; networks and nodes there.

    Args:
        broker: What all stand on.
        nodes: The nodes.
        chance: In which order, and for how long.
    """

    def __init__(self, broker: Broker, nodes: list[Node], chance: Random) -> None:
        self._broker = broker
        self._chance = chance
        self._mortal: Node  # set by `go_on`: the node that is restarted and killed
        self._history: History  # set by `go_on`: where it is noted
        self._is_over = asyncio.Event()
        self._decks: dict[int, list[Break]] = {}  # what is left of each list, so that all of it happens in turn
        self._of_redis: list[Break] = [
            self._kill_redis,
            self._kill_redis,
            self._freeze_redis,
            self._freeze_redis,
            self._kill_listeners,
            self._kill_all_connections,
        ]
        self._of_the_rest: list[Break] = [self._restart, self._restart, self._kill_node]
        for node in nodes:
            self._of_the_rest += [
                lambda node=node: self._cut(node),
                lambda node=node: self._drop(node),
                lambda node=node: self._stall(node),
                lambda node=node: self._swallow(node),
                lambda node=node: self._delay(node),
                lambda node=node: self._freeze_node(node),
            ]

    async def go_on(self, mortal: Node, history: History) -> None:
        """Break things until `stop` was called; then everything is mended."""
        self._mortal, self._history = mortal, history
        self._is_over.clear()
        # Redis is well for longer: while it is not, whatever else goes wrong is in a gap.
        await asyncio.gather(self._one_by_one(self._of_redis, 5), self._one_by_one(self._of_the_rest, 1.5))

    def stop(self) -> None:
        self._is_over.set()

    async def _one_by_one(self, faults: list[Break], pause: float) -> None:
        deck = self._decks.setdefault(id(faults), [])
        while not self._is_over.is_set():
            await self._for(0.2, pause)
            if not deck:
                deck += self._chance.sample(faults, len(faults))
            await deck.pop()()

    async def _for(self, least: float, most: float) -> None:
        """Let some time pass, less if it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(least, most)):
                await self._is_over.wait()

    # Redis

    async def _kill_redis(self) -> None:
        with noted(self._history, "Redis was killed"):
            self._broker.kill()
            await self._for(0, 4)
            await asyncio.to_thread(self._broker.start)

    async def _freeze_redis(self) -> None:
        with noted(self._history, "Redis stood still"):
            self._broker.freeze()
            await self._for(0.2, 7)
            self._broker.thaw()

    async def _kill_listeners(self) -> None:
        with noted(self._history, "Redis hung up on the listeners"):
            await asyncio.to_thread(self._broker.kill_listeners)

    async def _kill_all_connections(self) -> None:
        with noted(self._history, "Redis hung up on everybody"), suppress(redis.RedisError):
            for kind in ("normal", "pubsub"):
                await asyncio.to_thread(self._broker.call, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    # The network of a node

    async def _cut(self, node: Node) -> None:
        with noted(self._history, f"{node} was cut off from Redis"):
            node.proxy.cut()
            await self._for(0, 4)
            node.proxy.restore()

    async def _drop(self, node: Node) -> None:
        with noted(self._history, f"the connections of {node} to Redis were cut"):
            node.proxy.drop()

    async def _stall(self, node: Node) -> None:
        with noted(self._history, f"the network between {node} and Redis held everything back"):
            node.proxy.stall()
            await self._for(0.5, 8)
            node.proxy.restore()

    async def _swallow(self, node: Node) -> None:
        with noted(self._history, f"the network between {node} and Redis swallowed everything"):
            node.proxy.stall()
            await self._for(0.2, 4)
            node.proxy.drop()
            node.proxy.restore()

    async def _delay(self, node: Node) -> None:
        with noted(self._history, f"the network between {node} and Redis was slow"):
            node.proxy.delay(self._chance.uniform(0.02, 0.4))
            await self._for(1, 4)
            node.proxy.delay(0)

    # Nodes

    async def _freeze_node(self, node: Node) -> None:
        with noted(self._history, f"{node} stood still"):
            node.freeze()
            await self._for(0.2, 2.5)
            node.thaw()

    async def _restart(self) -> None:
        with noted(self._history, f"{self._mortal} was told to stop, and started again"):
            await self._mortal.stop()
            await self._for(0, 1)
            await self._mortal.start()

    async def _kill_node(self) -> None:
        with noted(self._history, f"{self._mortal} was killed, and started again"):
            await self._mortal.kill()
            await self._for(0, 1)
            await self._mortal.start()
