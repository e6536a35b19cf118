"""Several uvicorn processes on one Valkey, started as users start them."""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
from support import DEADLINE, Client, http_client, until
from websockets.asyncio.client import connect

HERE = Path(__file__).parent
START_WITHIN = 30.0

HEALTHY = {"connected": True, "gaps": 0, "undelivered": 0, "undecodable": 0}


class Node:
    """One `uvicorn chat_node:app`, with its workers."""

    def __init__(self, broker, prefix, folder, loop="auto", *options):
        self.log = folder / f"{uuid4().hex}.log"
        command = [sys.executable, "-m", "uvicorn", "chat_node:app", "--port", "0", "--app-dir", str(HERE)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--loop", loop, *options],
                stdout=log,
                stderr=log,
                env={**os.environ, "CHAT_REDIS": broker.url, "CHAT_PREFIX": prefix, "PYTHONUNBUFFERED": "1"},
            )

    def wait_until_started(self, workers=1):
        end = time.monotonic() + START_WITHIN
        while self.said.count("Application startup complete") < workers or not self._address():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)
        return self

    @property
    def said(self):
        return self.log.read_text(errors="replace")

    def _address(self):
        return re.search(r"running on http://(127\.0\.0\.1:\d+)", self.said)

    @property
    def address(self):
        return self._address()[1]

    @contextlib.asynccontextmanager
    async def client(self, path):
        async with connect(f"ws://{self.address}{path}") as websocket:
            yield Client(websocket)

    async def post(self, path, **params):
        async with http_client(f"http://{self.address}") as http:
            answer = await http.post(path, params=params)
            assert answer.status_code == 200, answer.text
            return answer.json()

    async def health(self):
        async with http_client(f"http://{self.address}") as http:
            return (await http.get("/health")).json()

    async def ended(self):
        await asyncio.to_thread(self.process.wait, DEADLINE)

    def end(self):
        """End what a test has left; with its workers, which end when their parent does."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            finally:
                self.process.kill()


@contextlib.contextmanager
def running(*nodes, workers=1):
    try:
        for node in nodes:
            node.wait_until_started(workers)
        yield
    finally:
        for node in nodes:
            node.end()


@pytest.fixture(scope="module")
def prefix():
    return f"many{uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def pair(_shared_broker, prefix, tmp_path_factory):
    """Two nodes that are there for all tests: one on asyncio, one on uvloop."""
    folder = tmp_path_factory.mktemp("nodes")
    nodes = [Node(_shared_broker, prefix, folder, loop) for loop in ("asyncio", "uvloop")]
    with running(*nodes):
        yield nodes
        assert all(asyncio.run(node.health()) == {**HEALTHY, "connections": 0} for node in nodes)
    assert all("Traceback" not in node.said for node in nodes)
    assert _shared_broker.channels(f"{prefix}:*") == set(), "a node that stopped listens to nothing"


def room():
    return f"room-{uuid4().hex}"


async def test_clients_of_two_processes_talk_to_each_other(pair):
    one, two = pair
    where = f"/ws/{room()}"
    async with one.client(where) as ann, two.client(where) as bob, two.client(f"/ws/{room()}") as stranger:
        for number in range(100):
            await ann.send(f"ann {number}")
            await bob.send(f"bob {number}")
        assert [await ann.receive() for _ in range(100)] == [f"bob {number}" for number in range(100)]
        assert [await bob.receive() for _ in range(100)] == [f"ann {number}" for number in range(100)]
        await ann.send(bytes(range(256)))
        assert await bob.receive() == bytes(range(256))
        await one.post("/announce", text="to all")
        assert await stranger.receive() == "to all", "nothing else has come before it"


async def test_a_client_that_is_open_hears_what_the_other_process_says(pair):
    """No message sent after the handshake may be lost, however soon it is sent."""
    one, two = pair
    for _ in range(20):
        where = f"/ws/{room()}"
        async with one.client(where) as ann, two.client(where) as bob:
            await ann.send("at once")
            assert await bob.receive() == "at once"
            await bob.send("as soon")
            assert await ann.receive() == "as soon"


async def test_an_http_route_of_one_process_reaches_the_clients_of_both(pair):
    one, two = pair
    where = f"/ws/{room()}"
    async with one.client(where) as ann, two.client(where) as bob, two.client(where) as cid:
        for node, here in ((one, 1), (two, 2)):
            assert await node.post("/announce", text="news") == here, "the clients of that process are counted"
            assert [await client.receive() for client in (ann, bob, cid)] == ["news"] * 3


async def test_a_user_is_closed_on_every_process(pair):
    one, two = pair
    user = uuid4().hex
    async with (
        one.client(f"/ws/{room()}?user={user}") as phone,
        two.client(f"/ws/{room()}?user={user}") as laptop,
        two.client(f"/ws/{room()}?user=other") as other,
    ):
        assert await one.post(f"/ban/{user}") == 1
        assert await phone.closed() == await laptop.closed() == (4003, "banned")
        await one.post("/announce", text="still here")
        assert await other.receive() == "still here"


SCRIPT = """
import asyncio
import sys

from fastapi_rooms import Publisher, RoomsSettings, SyncPublisher

url, prefix, room, user = sys.argv[1:]
settings = RoomsSettings(key_prefix=prefix)

async def main() -> None:
    async with Publisher(url, settings=settings) as publisher:
        await publisher.broadcast_to_room(room, {"from": "a script"})
        await publisher.send_to_user(user, "you")
        await publisher.broadcast(b"all")

asyncio.run(main())
with SyncPublisher(url, settings=settings) as publisher:
    publisher.broadcast_to_room(room, {"from": "a cron job"})
    publisher.send_to_user(user, "you")
    publisher.broadcast(b"all")
    publisher.close_user(user, 4003, "banned")
"""


async def test_a_script_reaches_the_clients_of_both_processes(pair, shared_broker, prefix, tmp_path):
    name, user = uuid4().hex, uuid4().hex
    (tmp_path / "script.py").write_text(SCRIPT)
    async with contextlib.AsyncExitStack() as ends:
        clients = [await ends.enter_async_context(node.client(f"/ws/{name}?user={user}")) for node in pair]
        command = [sys.executable, "-W", "error", "script.py", shared_broker.url, prefix, name, user]
        script = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stderr=subprocess.PIPE)
        _, errors = await asyncio.wait_for(script.communicate(), START_WITHIN)
        assert (script.returncode, errors.decode()) == (0, "")
        for client in clients:
            for source in ("a script", "a cron job"):
                assert [await client.receive_json(), await client.receive(), await client.receive()] == [
                    {"from": source},
                    "you",
                    b"all",
                ]
            assert await client.closed() == (4003, "banned")


@pytest.mark.parametrize(
    ("signum", "loop"),
    [(signal.SIGTERM, "asyncio"), (signal.SIGTERM, "uvloop"), (signal.SIGKILL, "asyncio")],
    ids=lambda value: getattr(value, "name", value),
)
async def test_one_node_ends_and_the_others_go_on(pair, shared_broker, prefix, tmp_path, signum, loop):
    one, two = pair
    name = uuid4().hex
    where, channel = f"/ws/{name}", f"{prefix}:room:{name}"
    before = shared_broker.channels(f"{prefix}:*")
    victim = Node(shared_broker, prefix, tmp_path, loop)
    with running(victim):
        async with one.client(where) as ann, two.client(where) as bob, victim.client(f"{where}?user={name}") as eve:
            await eve.send("I was here")
            assert await ann.receive() == await bob.receive() == "I was here"
            assert shared_broker.channels(f"{prefix}:*") > {channel, f"{prefix}:user:{name}", *before}
            victim.process.send_signal(signum)
            assert (await eve.closed())[0] == (1012 if signum is signal.SIGTERM else 1006)
            await victim.ended()
            await until(lambda: shared_broker.channels(f"{prefix}:*") == before | {channel})
            assert shared_broker.call("PUBSUB", "NUMSUB", channel) == [channel, 2]
            for _ in range(20):
                await ann.send("still here")
                assert await bob.receive() == "still here"
                await bob.send("me too")
                assert await ann.receive() == "me too"
            assert [await node.health() for node in pair] == [{**HEALTHY, "connections": 1}] * 2
    if signum is signal.SIGTERM:
        assert "Application shutdown complete" in victim.said
        assert "Traceback" not in victim.said
    await until(lambda: shared_broker.channels(f"{prefix}:*") == before)


async def test_two_workers_of_one_server_reach_each_others_clients(shared_broker, tmp_path):
    prefix = f"many{uuid4().hex[:8]}"
    node = Node(shared_broker, prefix, tmp_path, "auto", "--workers", "2")
    with running(node, workers=2):
        async with contextlib.AsyncExitStack() as ends:
            clients, pids = [], set()
            for _ in itertools.takewhile(lambda _: len(pids) < 2, range(200)):
                client = await ends.enter_async_context(node.client("/pid"))
                await client.send("who are you?")
                pids.add(await client.receive_json())
                clients.append(client)
            assert len(pids) == 2, "clients have landed on both workers"
            assert node.process.pid not in pids
            for text in ("first", "second", "third"):
                await node.post("/announce", text=text)
                assert {await client.receive() for client in clients} == {text}, "everybody heard it, once"
            node.process.terminate()
            assert {(await client.closed())[0] for client in clients} == {1012}
        await node.ended()
    assert "Traceback" not in node.said
    await until(lambda: shared_broker.channels(f"{prefix}:*") == set())


async def test_a_node_that_requires_redis_does_not_start_without_it(tmp_path):
    class Nowhere:
        url = "redis://:hunter2@127.0.0.1:1"

    node = Node(Nowhere, "rooms", tmp_path)
    await asyncio.to_thread(node.process.wait, START_WITHIN)
    assert node.process.returncode != 0
    assert "Redis (127.0.0.1:1) was not there within 2 s: Redis at 127.0.0.1:1 cannot be reached" in node.said
    assert "hunter2" not in node.said
