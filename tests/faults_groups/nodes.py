"""Nodes of which nothing is there but the backend, and what they say to each other."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from brokers.groups import Cluster, eventually, known
from brokers.server import Broker
from support import fair_time, until

from fastapi_rooms import BackendUnavailable, Gap, RoomsSettings
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.backends.redis.slots import slot_of
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, Target, room_target
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.testing import Recorder

SLOW_ON_REDIS = ["valkey", pytest.param("redis", marks=pytest.mark.slow)]

_running: set["Node"] = set()

LATE = 0.3
"""How much later than promised something may be seen to be done: two cores, many servers, other tests."""


class Node(Recorder):
    """A started backend, and what it heard.

    Attributes:
        heard_at: When each text came first.
    """

    def __init__(self, source: Any, settings: RoomsSettings) -> None:
        super().__init__()
        self.id = uuid4().hex
        self.prefix = settings.key_prefix
        self.backend = RedisBackend(source, settings)
        self.heard_at: dict[str, float] = {}
        self._heard: dict[Target, list[str]] = {}

    def receive(self, envelope: Envelope) -> None:
        super().receive(envelope)
        text = envelope.content.payload.decode()
        self.heard_at.setdefault(text, fair_time())
        self._heard.setdefault(envelope.target, []).append(text)

    @property
    def connected(self) -> bool:
        return self.backend.status.connected

    def heard(self, target: Target) -> list[str]:
        return self._heard.get(target, [])

    def gaps_of(self, target: Target) -> list[Gap]:
        return [gap for gap in self.gaps if target in gap.targets]

    async def joins(self, *targets: Target) -> None:
        await asyncio.wait_for(self.backend.subscribe(targets), 5)

    async def says(self, target: Target, text: str) -> None:
        await asyncio.wait_for(self.backend.publish(Envelope(self.id, target, Message(text.encode(), is_text=True))), 5)

    async def hears(self, text: str, seconds: float = 5.0) -> None:
        await until(lambda: text in self.heard_at, f"{text!r} is heard", seconds)

    async def settles(self) -> None:
        await until(self.backend.is_settled, "it is settled")


@contextlib.asynccontextmanager
async def nodes(
    count: int, source: Any, prefix: str, *, required: bool = True, **settings: Any
) -> AsyncIterator[list[Node]]:
    """Start nodes, and stop them at the end: then no task is left of them, nor of others that began later."""
    before = {task for task in asyncio.all_tasks() if not task.get_name().startswith("fastapi_rooms")}
    made = [Node(source, RoomsSettings(key_prefix=prefix, **settings)) for _ in range(count)]
    try:
        for node in made:
            node.backend.subscribe((EVERYBODY,))
            _running.add(node)
            await node.backend.start(node.id, node, required=required)
        yield made
    finally:
        for node in made:
            await asyncio.wait_for(node.backend.stop(), 10)
            _running.discard(node)
    left = asyncio.all_tasks() - before
    assert _running or not left, f"tasks are left behind: {left}"


@contextlib.contextmanager
def mended(cluster: Cluster, broker: Broker) -> Iterator[None]:
    """Have a server run at the end, whatever was done to it, and the cluster be well."""
    try:
        yield
    finally:
        if broker.is_running:
            broker.thaw()
        else:
            broker.start()
        eventually(
            lambda: not any("fail" in row for one in cluster.masters for row in known(one)), "all see each other"
        )


class Speaker:
    """Says one number after the other to one target, many a second, whatever becomes of them.

    Attributes:
        said: What was said when, in its order.
        failed: What raised, and what.
        slowest: How long it took at most to know what became of one, in seconds.
    """

    def __init__(self, node: Node, target: Target) -> None:
        self.node = node
        self.target = target
        self.said: dict[str, datetime] = {}
        self.failed: dict[str, BackendUnavailable] = {}
        self.slowest = 0.0
        self._word = uuid4().hex[:8]
        self._is_over = False

    def stop(self) -> None:
        self._is_over = True

    async def run(self, pause: float) -> None:
        async with asyncio.TaskGroup() as group:
            while not self._is_over:
                text = f"{self._word} {len(self.said)}"
                self.said[text] = datetime.now(UTC)
                group.create_task(self._say(text, fair_time()))
                await asyncio.sleep(pause)

    async def _say(self, text: str, begin: float) -> None:
        try:
            await self.node.says(self.target, text)
        except BackendUnavailable as error:
            self.failed[text] = error
        self.slowest = max(self.slowest, fair_time() - begin)

    async def is_heard_by(self, node: Node, seconds: float = 5.0) -> float:
        """Wait until something is heard that is said from now on; return when it was."""
        known = len(self.said)

        def first() -> float | None:
            return next((node.heard_at[text] for text in list(self.said)[known:] if text in node.heard_at), None)

        return await until(first, f"{self.target} is heard", seconds)

    async def check(self, node: Node) -> list[str]:
        """Check what a node heard of a speaker who is silent now: nothing twice, and what it missed lies in a gap.

        In order, too, but for what has failed: a server that stood still may have taken that, and says it late. Returns
        what it missed.
        """
        end = uuid4().hex
        await self.node.says(self.target, end)
        await node.hears(end)
        heard = node.heard(self.target)
        order = {text: number for number, text in enumerate(self.said)}
        numbers = [order[text] for text in heard if text in order]
        assert len(numbers) == len(set(numbers)), "nothing is heard twice"
        numbers = [order[text] for text in heard if text in order and text not in self.failed]
        assert numbers == sorted(numbers), "what did not fail is heard in order"
        missed = [text for text in self.said if text not in node.heard_at and text not in self.failed]

        def unexplained() -> list[datetime]:
            gaps = node.gaps_of(self.target)
            times = (self.said[text] for text in missed)
            return [time for time in times if not any(gap.since <= time <= gap.until for gap in gaps)]

        with contextlib.suppress(TimeoutError):
            await until(lambda: not unexplained(), seconds=1)  # gaps are collected for a moment
        assert unexplained() == [], f"missed, and in no gap: {node.gaps_of(self.target)}"
        return missed


@contextlib.asynccontextmanager
async def speaking(node: Node, *targets: Target, pause: float = 0.005) -> AsyncIterator[list[Speaker]]:
    """Have a node speak to targets; at the end all that was said has an answer."""
    speakers = [Speaker(node, target) for target in targets]
    tasks = [asyncio.create_task(speaker.run(pause)) for speaker in speakers]
    try:
        yield speakers
    finally:
        for speaker in speakers:
            speaker.stop()
        await asyncio.gather(*tasks)


def rooms_of(cluster: Cluster, prefix: str, broker: Broker, count: int = 1) -> list[Target]:
    """Rooms in different slots of a server of a cluster."""
    owners = cluster.owners()
    assert broker in owners.values(), "it has slots"
    rooms: dict[int, Target] = {}
    for number in itertools.count():
        room = room_target(f"room {number}")
        slot = slot_in(prefix, room)
        if owners.get(slot) is broker:
            rooms.setdefault(slot, room)
        if len(rooms) == count:
            return list(rooms.values())
    raise AssertionError("there are enough names")


def slot_in(prefix: str, target: Target) -> int:
    return slot_of(Channels(prefix).of(target))
