"""Nodes of which nothing is there but the backend over Redis."""

import contextlib
from uuid import uuid4

from support import until

from fastapi_rooms import RoomsSettings
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, room_target
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.testing import Recorder

ROOM = room_target("kitchen")


def some_settings(**options):
    """Settings for tests that share a broker."""
    return RoomsSettings(**{"key_prefix": uuid4().hex, **options})


def text(value):
    return Message(value.encode(), is_text=True)


class Node(Recorder):
    def __init__(self, source, *targets, settings=None):
        super().__init__()
        self.settings = some_settings() if settings is None else settings
        self.backend = RedisBackend(source, self.settings)
        self.node_id = uuid4().hex
        self.backend.subscribe(targets)

    async def start(self, **options):
        await self.backend.start(self.node_id, self, **options)

    def say(self, content, target=ROOM):
        message = text(content) if isinstance(content, str) else content
        return self.backend.publish(Envelope(self.node_id, target, message))

    @property
    def heard(self):
        return [envelope.content.payload.decode() for envelope in self.envelopes]

    async def connected(self):
        await until(lambda: self.backend.status.connected, "connected")

    async def settled(self):
        await until(self.backend.is_settled, "Redis has what is wanted")


@contextlib.asynccontextmanager
async def running_nodes(source, count, *targets, **options):
    """Nodes that are connected, and are stopped at the end."""
    settings = some_settings(**options)
    nodes = [Node(source, EVERYBODY, *targets, settings=settings) for _ in range(count)]
    try:
        for node in nodes:
            await node.start(required=True)
            await node.settled()
        yield nodes
    finally:
        for node in nodes:
            await node.backend.stop()
