"""Where the tests of a backend are done: nodes, their making and ending, and waiting for facts."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from unittest import SkipTest
from uuid import uuid4

from fastapi_rooms.backends.contract import Backend
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, Target
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.move import Move
from fastapi_rooms.testing.recorder import Recorder, until

MARK = b"\0mark of the bench\0"


def text(value: str) -> Message:
    """Make a text message."""
    return Message(value.encode(), is_text=True)


class Node(Recorder):
    """A node of which nothing is there but the backend, and a memory."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.node_id = uuid4().hex
        self.marks: set[bytes] = set()  # what the bench itself had others say

    def receive(self, envelope: Envelope) -> None:
        """Keep an envelope, or the mark that it is."""
        if isinstance(envelope.content, Message) and envelope.content.payload.startswith(MARK):
            self.marks.add(envelope.content.payload)
        else:
            super().receive(envelope)

    async def start(self, *, required: bool = False) -> None:
        """Start the backend, for this node."""
        await self.backend.start(self.node_id, self, required=required)

    def say(
        self,
        target: Target,
        content: Message | Close | Move | str,
        excluded: Collection[str] = (),
        excluded_user: str | None = None,
    ) -> Awaitable[object]:
        """Publish."""
        message = text(content) if isinstance(content, str) else content
        envelope = Envelope(self.node_id, target, message, frozenset(excluded), excluded_user=excluded_user)
        return self.backend.publish(envelope)

    def heard(self, target: Target) -> list[str]:
        """Return the texts that were received for a target, in their order."""
        return [
            envelope.content.payload.decode()
            for envelope in self.envelopes
            if envelope.target == target and isinstance(envelope.content, Message)
        ]


class Bench(ABC):
    """What is needed to test a backend."""

    deadline: float = 5.0
    """How long anything may take while the broker is there, in seconds."""
    outage_deadline: float = 30.0
    """How long it may take a backend to notice that it was cut off, or restored, in seconds. No test takes longer than
    three times that."""

    @abstractmethod
    async def make_backend(self) -> Backend:
        """Make the backend of one more node, not started, on the same broker as the others of the test."""

    async def cut(self, backend: Backend) -> None:  # noqa: ARG002 - for those who can
        """Take the broker away from this backend alone, started or not. Optional, with `restore`."""
        raise SkipTest("this broker cannot be cut off: override cut() and restore()")

    async def restore(self, backend: Backend) -> None:
        """Give the broker back to this backend. Called after `cut`."""
        raise NotImplementedError("a broker that can be cut off must be restored: override restore()")

    @asynccontextmanager
    async def nodes(self, count: int, *, started: bool = True) -> AsyncIterator[list[Node]]:
        """Make nodes that are subscribed to everybody, as managers are, and stop them at the end."""
        async with AsyncExitStack() as ends, asyncio.timeout(3 * self.outage_deadline):
            made = []
            for _ in range(count):
                node = Node(await self.make_backend())
                ends.push_async_callback(node.backend.stop)
                made.append(node)
                node.backend.subscribe((EVERYBODY,))
                if started:
                    await node.start()
                    await self.connected(node)
            yield made

    @asynccontextmanager
    async def cut_off(self, node: Node) -> AsyncIterator[None]:
        """Cut a node off, wait until it knows, and restore it at the end."""
        await self.cut(node.backend)
        try:
            await until(
                lambda: not node.backend.status.connected, self.outage_deadline, lambda: "a node knows that it is cut"
            )
            yield
        finally:
            await self.restore(node.backend)

    async def connected(self, node: Node) -> None:
        """Wait until a node is connected."""
        await until(
            lambda: node.backend.status.connected, self.outage_deadline, lambda: f"connected: {node.backend.status}"
        )

    async def within(self, awaitable: Awaitable[object]) -> None:
        """Wait for something that must not take longer than the deadline."""
        await asyncio.wait_for(awaitable, self.deadline)

    async def settle(self, *nodes: Node) -> None:
        """Have every node hear every other: what was published before has arrived by then, or never will."""
        for node in nodes:
            mark = MARK + uuid4().bytes
            await self.within(node.say(EVERYBODY, Message(mark, is_text=False)))
            for other in nodes:
                if other is not node:
                    await self.eventually(partial(other.marks.__contains__, mark), "nodes hear each other")

    async def is_heard(self, speaker: Node, listener: Node, target: Target) -> bool:
        """Return whether what one node publishes to a target now arrives at another."""
        token = uuid4().hex
        await self.within(speaker.say(target, token))
        await self.settle(speaker, listener)
        return token in listener.heard(target)

    async def eventually(self, fact: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Wait until something is true."""
        await until(fact, self.deadline, lambda: what)


async def fails(awaitable: Awaitable[object]) -> bool:
    """Return whether something raises `BackendUnavailable`."""
    try:
        await awaitable
    except BackendUnavailable:
        return True
    return False
