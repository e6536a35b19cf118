"""What strangers have at hand: a client that shares no code with the server, and ways to go."""

import asyncio
import base64
import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Self, TypeVar

from support import DEADLINE
from wire.strict_client import PLAIN, StrictClient, Violation, _negotiated, _request

from soak.nodes import Node
from soak.residents import ALL_ROOMS

T = TypeVar("T")


class Treated(AssertionError):  # noqa: N818 - an outcome
    """Treated in another way than it should have been."""


class Stranger(StrictClient):
    """A strict client for a crowd: it may be refused, find nobody there, and has others beside it."""

    @classmethod
    @asynccontextmanager
    async def come(cls, port: int, path: str, offer: str | None, receive_buffer: int | None) -> AsyncIterator[Self]:
        loop = asyncio.get_running_loop()
        with socket.socket() as made:
            if receive_buffer is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            made.settimeout(0)
            data = b""
            async with asyncio.timeout(DEADLINE):
                await loop.sock_connect(made, ("127.0.0.1", port))
                key = base64.b64encode(os.urandom(16)).decode()
                await loop.sock_sendall(made, _request(port, path, key, offer).encode())
                while b"\r\n\r\n" not in data:
                    received = await loop.sock_recv(made, 1 << 16)
                    if not received:
                        raise Violation(f"the handshake was not answered, but for {data!r}")
                    data += received
            head, _, frames = data.partition(b"\r\n\r\n")
            client = cls(made, _negotiated(head.decode(), key, offer))
            client._parser.feed(frames)
            yield client

    async def read(self) -> bool:
        """Read as it does, but let others have their turn: what comes without a pause is read without one."""
        await asyncio.sleep(0)
        return await super().read()


class Notes:
    """What all strangers share.

    Attributes:
        least, most: How often the lives of the nodes must have counted what, and may have.
    """

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.least: Counter[tuple[str, str]] = Counter()
        self.most: Counter[tuple[str, str]] = Counter()
        self._decks: dict[tuple[int, str], list[Any]] = {}

    def draw(self, options: list[T], where: str = "") -> T:
        """Return one of the options; each comes once before any comes again."""
        deck = self._decks.setdefault((id(options), where), [])
        if not deck:
            deck += self.chance.sample(options, len(options))
        return deck.pop()


class Visit:
    """What a stranger has at hand."""

    def __init__(self, node: Node, other: Node, notes: Notes) -> None:
        self.node = node
        self.other = other
        self.chance = notes.chance
        self._notes = notes
        self._life = node.life.name

    @asynccontextmanager
    async def client(
        self, path: str = "/ws", receive_buffer: int | None = None, offer: str | None = PLAIN
    ) -> AsyncIterator[Stranger]:
        async with Stranger.come(self.node.port, path, offer, receive_buffer) as client:
            yield client

    async def pause(self, most: float) -> None:
        await asyncio.sleep(self.chance.uniform(0, most))

    def room(self) -> str:
        return self.chance.choice(ALL_ROOMS)

    def draw(self, options: list[T]) -> T:
        """Return one of these; each comes once on this node before any comes again."""
        return self._notes.draw(options, self.node.name)

    def may(self, counter: str, most: int = 1) -> None:
        """Say before it that something may be counted by the node."""
        self._notes.most[self._life, counter] += most

    def did(self, counter: str, least: int = 1) -> None:
        """Say afterwards that it must have been."""
        self._notes.least[self._life, counter] += least


def reset(client: Stranger) -> None:
    """Go with a RST."""
    client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client._socket.close()


async def vanish(client: Stranger, chance: Random) -> str:
    """Go without a close frame."""
    await asyncio.sleep(0)  # whoever was interrupted stops looking at the socket, before its number is another's
    if chance.random() < 0.5:
        reset(client)
        return "reset"
    client._socket.close()
    return "hung up"


async def be_closed(client: Stranger, *codes: int) -> str:
    """Read until the server closes; it has to do it with one of these codes."""
    code, reason = await client.read_to_close()
    if code not in codes:
        raise Treated(f"closed with {code} {reason!r} instead of {codes}")
    return str(code)


async def read_for(client: Stranger, seconds: float) -> bool:
    """Read for a while; return whether the connection is still there."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while await client.read():
                pass
            return False
    return client.close_frame is None
