"""The body of a server process."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from benchmarks.servers import docs_manager, rooms, rooms_route, steps, websockets_broadcast
from benchmarks.servers.options import Options

APPS: dict[str, Callable[[Options], Any]] = {
    "rooms": rooms.make_app,
    "rooms_route": rooms_route.make_app,
    "docs_manager": docs_manager.make_app,
    "gather": steps.gather,
    "queues": steps.queues,
    "frames_once": steps.frames_once,
    "one_write": steps.one_write,
}
OWN_SERVER = "websockets"
COMPARED = ("rooms", "rooms_route", "docs_manager", OWN_SERVER)
STEPS = ("docs_manager", "gather", "queues", "frames_once", "one_write", "rooms")


def serve(name: str, listening: socket.socket, options: Options, cores: Sequence[int]) -> None:
    """Serve on a socket that listens already, on these cores, until the process is killed."""
    if cores:
        os.sched_setaffinity(0, cores)
    if name == OWN_SERVER:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(websockets_broadcast.run(listening, options))
    else:
        config = uvicorn.Config(
            APPS[name](options), log_level="error", ws_per_message_deflate=options.deflate, backlog=2048
        )
        uvicorn.Server(config).run(sockets=[listening])


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, as uvicorn does, if it is installed."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop
