"""Serves with kinds of protocol objects that our wire does not know, and prints what became of it as JSON.

Run by `test_supported_servers.py` in a process of its own, since a fallback is told once per process.
"""

import asyncio
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

from support import DEADLINE, LiveServer
from uvicorn.protocols.websockets import websockets_sansio_impl
from wire_app import Stage

SansIO = websockets_sansio_impl.WebSocketsSansIOProtocol
USED = ("writable", "close_sent", "disconnected", "transport", "conn")
"""The attributes that our wire reads."""
BURST = 8


class Custom(SansIO):
    """A user's own."""


class Gate:
    """What an Event does, by another class."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.event, name)


def edited(edit: Callable[[str], str]) -> type:
    """uvicorn's own class as an edited version of its module would have it, with the same names."""
    namespace = {"__name__": websockets_sansio_impl.__name__, "Gate": Gate}
    exec(edit(inspect.getsource(websockets_sansio_impl)), namespace)
    return namespace["WebSocketsSansIOProtocol"]


def renamed(attribute: str) -> type:
    return edited(lambda source: re.sub(rf"\bself\.{attribute}\b", f"self.other_{attribute}", source))


def kinds() -> dict[str, Any]:
    newer = type("NewerProtocol", (SansIO,), {"__module__": "uvicorn.protocols.websockets.newer_impl"})
    return {
        "known": SansIO,
        "auto": "auto",
        "websockets-sansio": "websockets-sansio",
        "wsproto": "wsproto",
        "websockets": "websockets",
        "a newer one of uvicorn": newer,
        "a subclass of a user": Custom,
        "another class of event": edited(
            lambda source: source.replace("self.writable = asyncio.Event()", "self.writable = Gate()")
        ),
        "numbers for truth": edited(
            lambda source: re.sub(r"self\.close_sent = (\w+)", r"self.close_sent = int(\1)", source)
        ),
        **{f"{attribute} renamed": renamed(attribute) for attribute in USED},
    }


async def burst(stage: Stage) -> None:
    """Broadcast more in one tick than a kernel takes at once."""
    for _ in range(BURST):
        await stage.manager.broadcast(bytes(512 * 1024))


async def talk(stage: Stage, server: LiveServer) -> list[Any]:
    """Let three clients come one after the other; return what they heard and how they ended."""
    heard: list[Any] = []
    for _ in range(3):
        async with server.client("/ws/r") as client:
            await client.send("first")
            heard.append(await client.receive())
            for message in ("second", b"third"):
                await server.call(stage.manager.broadcast, message)
                heard.append(str(await client.receive()))
            await server.call(burst, stage)
            heard += {len(await client.receive()) for _ in range(BURST)}
            await server.call(stage.manager.close_room, "r", 4000, "bye")
            heard.append(await client.closed())
    return heard


async def outcome(kind: Any, lines: list[tuple[str, str]]) -> dict[str, Any]:
    before = len(lines)
    stage = Stage(send_timeout=1)
    server = LiveServer(stage.app, ws=kind, lifespan="off").start()
    try:
        async with asyncio.timeout(DEADLINE):
            heard = await talk(stage, server)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
        heard = [repr(error)]
    server.uvicorn.should_exit = True
    return {"heard": heard, "lines": lines[before:]}


class Lines(logging.Handler):
    """Keeps what is logged, but for uvicorn's chatter."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("fastapi_rooms") or record.levelno > logging.INFO:
            self.lines.append((record.levelname, record.getMessage()))


async def main() -> None:
    handler = Lines()
    logging.getLogger().addHandler(handler)
    logging.getLogger("fastapi_rooms").setLevel(logging.INFO)
    found = {name: await outcome(kind, handler.lines) for name, kind in kinds().items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
