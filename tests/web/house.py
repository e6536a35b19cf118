"""Two routes that answer with how long a message was, under whatever limits."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from support import RawClient

from fastapi_rooms import (
    ConnectionDep,
    Hooks,
    Incoming,
    RoomsExtension,
    RoomsSettings,
)

RATE_LIMITED = '{"type":"error","code":"rate_limited"}'
PING = b'{"type":"ping"}'


def house(wire: str = "auto", hooks: Hooks | None = None, limiter: Any = None, **settings: Any) -> RoomsExtension:
    """Make two routes that answer with how long a message was: per message, and in a session."""
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, **settings), hooks=hooks, limiter=limiter)

    def user(name: str | None = None) -> str | None:
        return name

    @rooms.ws_route("/handler", room="a", user_id=user)
    async def handler(message: Incoming[str]) -> str:
        return str(len(message))

    @rooms.ws_route("/session", room="a", user_id=user)
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await connection.send(str(len(message)))

    return rooms


PATHS = pytest.mark.parametrize("path", ["/handler", "/session"])
PAIRS = pytest.mark.parametrize(("wire", "loop"), [("auto", "asyncio"), ("asgi", "uvloop")])
"""Each wire and each loop once, for what takes its time."""


async def read_to_close(raw: RawClient) -> tuple[Counter[bytes], int]:
    """Return how often each text came, and the close code behind them."""
    *texts, (kind, close) = await asyncio.to_thread(raw.read_to_close)
    assert kind == 0x88
    return Counter(text for _, text in texts), int.from_bytes(close[:2])
