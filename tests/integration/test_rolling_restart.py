"""Two nodes are restarted one after the other while their clients talk, and come back when they are closed."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from uuid import uuid4

import pytest
from support import DEADLINE, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

START_WITHIN = 30.0
CLIENTS = 30
STEADY = 6
PAUSE = 0.15
"""Between two messages of one client, on average."""

APP = """
import logging
import os

from fastapi import FastAPI
from fastapi_rooms import Incoming, ManagerDep, RoomsExtension, RoomsSettings, health_router

logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
rooms = RoomsExtension(
    os.environ["NODE_REDIS"],
    settings=RoomsSettings(key_prefix=os.environ["NODE_PREFIX"], drain_timeout=1),
    required=True,
)

@rooms.ws_route("/ws", room="hall")
async def talk(message: Incoming[str], manager: ManagerDep) -> None:
    await manager.broadcast_to_room("hall", message)

app = FastAPI()
app.include_router(rooms.router)
app.include_router(health_router(rooms))
"""


class Node:
    """One uvicorn process."""

    def __init__(self, folder, broker, prefix, loop):
        (folder / "main.py").write_text(APP)
        self.log = folder / f"{uuid4().hex}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", "--loop", loop],
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "NODE_REDIS": broker.url, "NODE_PREFIX": prefix, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def said(self):
        return self.log.read_text(errors="replace")

    async def started(self):
        end = time.monotonic() + START_WITHIN
        while not (running := re.search(r"running on http://(127\.0\.0\.1:\d+)", self.said)):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            await asyncio.sleep(0.02)
        self.address = running[1]
        return self

    async def stopped(self):
        """Stop it as a deploy does."""
        self.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(self.process.wait, DEADLINE) == -signal.SIGTERM
        for word in ("draining:", "drained:", "Application shutdown complete"):
            assert self.said.count(word) == 1
        for word in ("Traceback", "ERROR", "ASGI callable returned without completing handshake"):
            assert word not in self.said, self.said


class Chatter:
    """A client that talks all the time, and comes back when it is closed.

    Args:
        name: What its messages begin with.
        nodes: Where it may go; others change the list.
    """

    def __init__(self, name, nodes):
        self.name = name
        self.nodes = nodes
        self.heard = []
        self.codes = []  # how its connections ended
        self.connected_to = None
        self.connections = 0
        self._numbers = itertools.count()
        self._ends = False

    async def run(self):
        pause = 0.01
        while not self._ends:
            node = random.choice(self.nodes)
            try:
                async with connect(f"ws://{node.address}/ws", close_timeout=2) as websocket:
                    self.connected_to = node
                    self.connections += 1
                    pause = 0.01
                    await self._talk(websocket)
            except (OSError, InvalidHandshake, EOFError):
                pause = min(2 * pause, 0.2)
                await asyncio.sleep(pause * random.random())
            finally:
                self.connected_to = None

    async def _talk(self, websocket):
        listening = asyncio.create_task(self._listen(websocket))
        try:
            while not self._ends and not listening.done():
                await websocket.send(f"{self.name} {next(self._numbers)}")
                await asyncio.wait([listening], timeout=PAUSE * 2 * random.random())
            await websocket.close()
        except ConnectionClosed:
            pass
        await listening
        self.codes.append(websocket.close_code)

    async def _listen(self, websocket):
        with contextlib.suppress(ConnectionClosed):
            async for message in websocket:
                self.heard.append(message)

    def end(self):
        self._ends = True


def is_ordered(heard):
    last = defaultdict(lambda: -1)
    for message in heard:
        name, number = message.split()
        if int(number) <= last[name]:
            return False
        last[name] = int(number)
    return True


@pytest.mark.slow
async def test_nobody_is_cut_off_and_who_stays_misses_nothing(shared_broker, tmp_path):
    prefix = f"rolling{uuid4().hex[:8]}"
    started = []

    async def start(loop):
        started.append(Node(tmp_path, shared_broker, prefix, loop))
        return await started[-1].started()

    async with contextlib.AsyncExitStack() as ends:
        ends.callback(lambda: [node.process.kill() or node.process.wait() for node in started])
        old = await asyncio.gather(start("asyncio"), start("uvloop"))
        nodes = list(old)
        chatters = [Chatter(f"c{number}", nodes) for number in range(CLIENTS)]
        running = [asyncio.create_task(chatter.run()) for chatter in chatters]
        ends.callback(lambda: [task.cancel() for task in running])
        await until(lambda: sum(chatter.connections for chatter in chatters) == CLIENTS)
        assert {chatter.connected_to for chatter in chatters} == set(old)

        for leaving in old:
            (surviving,) = (node for node in nodes if node is not leaving)
            steady = [Chatter(f"s{len(running) + number}", [surviving]) for number in range(STEADY)]
            ends_of_steady = [asyncio.create_task(chatter.run()) for chatter in steady]
            running += ends_of_steady
            await until(lambda steady=steady: all(len(chatter.heard) > 20 for chatter in steady))
            since = [len(chatter.heard) for chatter in (*chatters, *steady)]
            before = sum(chatter.connections for chatter in chatters)

            await leaving.stopped()  # clients knock there until it is gone, and come back to the other
            nodes.remove(leaving)
            await until(lambda: all(chatter.connected_to for chatter in chatters))
            nodes.append(await start("uvloop"))
            assert sum(chatter.connections for chatter in chatters) > before

            said = {
                message
                for chatter, heard in zip((*chatters, *steady), since, strict=True)
                for message in chatter.heard[heard:]
            }
            assert len(said) > 50, "by whomever it was heard"
            for chatter in steady:
                await until(lambda chatter=chatter, said=said: said <= set(chatter.heard), "nothing is lost")
                assert max(Counter(chatter.heard).values()) == 1
                assert is_ordered(chatter.heard)
                assert chatter.connections == 1
                chatter.end()
            await asyncio.wait(ends_of_steady, timeout=DEADLINE)
            assert [chatter.codes for chatter in steady] == [[1000]] * STEADY

        for chatter in chatters:
            chatter.end()
        await asyncio.wait(running, timeout=DEADLINE)
        for task in running:
            task.result()
        codes = Counter(code for chatter in chatters for code in chatter.codes)
        assert set(codes) == {1000, 1012}, codes
        assert codes[1000] == CLIENTS
        assert codes[1012] == sum(chatter.connections for chatter in chatters) - CLIENTS >= CLIENTS
        assert all(is_ordered(chatter.heard) for chatter in chatters)
        for node in nodes:
            await node.stopped()
    await until(lambda: shared_broker.channels(f"{prefix}:*") == set())
