"""What nodes share for a time, as keys of Redis with a time to live. See `SupportsStore`.

The commands go by the publishing line, as publishes do: each is sent once, in order, and has an answer or
`BackendUnavailable` by the deadline. Because of `GETDEL`, which Redis has since 6.2, only one of two takers gets the
value.
"""

import asyncio
from collections.abc import Iterator, Sequence
from math import ceil
from typing import TypeVar, cast

from fastapi_rooms.backends.redis.topology import Topology

T = TypeVar("T")

COMMANDS_PER_BATCH = 500
"""How many commands of one `peek` are under way at once. A publish waits for these at most."""


def put(topology: Topology, key: bytes, value: bytes, seconds: float) -> asyncio.Future[object]:
    """Keep a value for a time, in seconds."""
    return topology.send(b"SET", key, value, b"PX", b"%d" % ceil(seconds * 1000))


async def take(topology: Topology, key: bytes) -> bytes | None:
    """Return a value and forget it."""
    return cast("bytes | None", await topology.send(b"GETDEL", key))


async def peek(topology: Topology, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return the values of keys, in their order."""
    commands = list(_batches(keys, topology.keys_per_command))
    values: list[bytes | None] = []
    for batch in _batches(commands, COMMANDS_PER_BATCH):
        for answer in await asyncio.gather(*(topology.send(b"MGET", *command) for command in batch)):
            values += cast("list[bytes | None]", answer)
    return values


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
