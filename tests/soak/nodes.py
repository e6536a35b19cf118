"""Two nodes, each a process behind a network of its own to Redis. They keep their ports and change their lives."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from brokers.ports import free_port
from brokers.proxy import Proxy

from soak.history import Fault, HeardGap, History, Life

HERE = Path(__file__).parent
PREFIX = f"soak{uuid4().hex[:8]}"
START_WITHIN = 40.0
END_WITHIN = 20.0
"""Drain (3 s), clients that do not read (2 s) and a Redis that is silent (2 s), on a machine that is slow."""
MAX_SIZE = 1 << 20
"""Of a message that the server reads at all."""
SETTLED_AFTER = 1.0
"""After a start: who was refused before has noted it by then."""
NOTICED_WITHIN = 5.0
"""How long a node may be deaf before it knows."""


class Node:
    """One uvicorn after the other on the same port.

    Attributes:
        life: The present one, or the last.
        is_disturbed: It is not there, or was not a moment ago: clients may find nobody.
        slowest_stop: How long it took at most from SIGTERM to the end, in seconds.
    """

    def __init__(self, name: str, loop: str, proxy: Proxy, folder: Path) -> None:
        self.name = name
        self.port = free_port()
        self.proxy = proxy
        self.history: History  # set by the chapter
        self.life = Life("", name)
        self.is_disturbed = True
        self.slowest_stop = 0.0
        self._loop = loop
        self._folder = folder
        self._lives = 0
        self._process: subprocess.Popen[bytes] | None = None  # None: it does not run
        self._read = 0  # characters of the journal that have been read
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", limits=httpx.Limits(max_keepalive_connections=0), timeout=30
        )

    def __repr__(self) -> str:
        return self.life.name

    @property
    def log(self) -> str:
        """What all its lives have logged: warnings and worse."""
        return "".join(file.read_text(errors="replace") for file in sorted(self._folder.glob(f"{self.name}*.log")))

    @property
    def tracebacks(self) -> list[str]:
        """Those of which nobody knows, with what stands before them."""
        found = re.findall(r"(?m)^(.*)\n(Traceback .*\n(?:[ ].*\n|\n)*.*)", self.log)
        # uvicorn's own, for what is no UTF-8.
        return ["\n".join(one) for one in found if "Invalid UTF-8 sequence" not in one[0]]

    async def start(self) -> None:
        assert self._process is None, "it runs"
        self._lives += 1
        self._read = 0
        self.life = Life(f"{self.name}{self._lives}", self.name)
        self.history.lives[self.life.name] = self.life
        command = [sys.executable, "-m", "uvicorn", "soak_app:app", "--port", str(self.port), "--app-dir", str(HERE)]
        options = ["--loop", self._loop, "--ws-max-size", str(MAX_SIZE), "--header", f"X-Life:{self.life.name}"]
        with self._file("log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *options, "--log-level", "warning"],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "SOAK_REDIS": self.proxy.url,
                    "SOAK_PREFIX": PREFIX,
                    "SOAK_LIFE": self.life.name,
                    "SOAK_JOURNAL": str(self._file("jsonl")),
                },
            )
        await self._be_up()
        asyncio.get_running_loop().call_later(SETTLED_AFTER, self._be_settled, self.life)

    async def stop(self) -> None:
        """Tell it to stop, and wait until it has drained."""
        self.is_disturbed = True
        self.life.ended_by = "SIGTERM"
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = await self._gone()
        seconds = time.monotonic() - began
        self.slowest_stop = max(self.slowest_stop, seconds)
        if seconds > END_WITHIN or code not in (0, -signal.SIGTERM):
            self.history.oddities.append(f"{self} took {seconds:.1f} s to stop and returned {code}")

    async def kill(self) -> None:
        """End it as a crash would."""
        with contextlib.suppress(httpx.HTTPError):  # what it knew of itself goes with it
            backend = (await self.get("/stats"))["backend"]
            if backend["degraded_since"] is not None:
                self._was_deaf(datetime.fromisoformat(backend["degraded_since"]).timestamp())
        self.is_disturbed = True
        self.life.ended_by = "SIGKILL"
        self._process.kill()
        await self._gone()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def get(self, path: str) -> Any:
        answer = await self._http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def close_user(self, user: str) -> None:
        with contextlib.suppress(httpx.HTTPError):  # it may be gone
            await self._http.post(f"/close/{user}")

    async def is_ready(self) -> bool:
        return (await self._http.get("/ready")).status_code == 200

    def read_journal(self) -> None:
        """Take what it has noted since the last time over into the history."""
        file = self._file("jsonl")
        text = file.read_text() if file.exists() else ""
        for line in text[self._read :].splitlines():
            noted = json.loads(line)
            if noted["what"] == "gap":
                self.history.gaps.append(HeardGap(self.life.name, noted["since"], noted["until"], noted["rooms"]))
            elif noted["degraded_since"] is not None:
                self._was_deaf(noted["degraded_since"])
        self._read = len(text)

    async def end(self) -> None:
        """End what a test has left."""
        await self._http.aclose()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _be_settled(self, life: Life) -> None:
        if life is self.life and life.ended_by is None:
            self.is_disturbed = False

    def _was_deaf(self, since: float) -> None:
        self.history.gaps.append(HeardGap(self.life.name, since - NOTICED_WITHIN, float("inf"), None))

    async def _gone(self) -> int:
        process = self._process
        try:
            code = await asyncio.to_thread(process.wait, 2 * END_WITHIN)
        except subprocess.TimeoutExpired:
            self.history.oddities.append(f"{self} did not stop within {2 * END_WITHIN} s and was killed")
            process.kill()
            code = process.wait()
        self._process = None
        self.read_journal()
        return code

    def _file(self, kind: str) -> Path:
        return self._folder / f"{self.life.name}.{kind}"

    async def _be_up(self) -> None:
        async with asyncio.timeout(START_WITHIN):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    await self.get("/live")
                    return
                assert self._process.poll() is None, f"{self} ended at its start:\n{self.log}"
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(port: int, folder: Path, history: History) -> AsyncIterator[list[Node]]:
    """Run two nodes on the Redis at a port: one on asyncio, one on uvloop."""
    with contextlib.ExitStack() as networks:
        nodes = [
            Node(name, loop, networks.enter_context(Proxy(port).running()), folder)
            for name, loop in (("a", "asyncio"), ("b", "uvloop"))
        ]
        try:
            for node in nodes:
                node.history = history
                await node.start()
            yield nodes
        finally:
            for node in nodes:
                await node.end()


@contextlib.contextmanager
def noted(history: History, what: str) -> Iterator[None]:
    """Note that something is broken for as long as the block lasts."""
    fault = Fault(what, time.time())
    history.faults.append(fault)
    try:
        yield
    finally:
        fault.until = time.time()
