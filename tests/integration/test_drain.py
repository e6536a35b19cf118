"""What a deploy looks like: uvicorn, started as users start it, is told to stop while its clients are connected."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import DEADLINE, Client, RawClient, fair_time, http_client, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

START_WITHIN = 30.0

ENDS = 4.0
"""What a process has to end in, when its drain is over: less than anything that it could wait for. It took 1.1 s alone
under coverage, whose data it writes then, and half a second more where a parent has to notice."""

APP = """
import asyncio
import logging
import os

from fastapi import FastAPI
from fastapi_rooms import ConnectionDep, Incoming, ManagerDep, RoomsExtension, RoomsSettings, health_router

logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
seconds = os.environ["DRAIN_TIMEOUT"]
settings = RoomsSettings(
    drain_timeout=None if seconds == "None" else seconds,
    outbox_bytes=1 << 30,
    outbox_messages=1 << 20,
    wire=os.environ.get("WIRE", "auto"),
)
rooms = RoomsExtension(settings=settings)

@rooms.ws_route("/ws/{room}", room="{room}")
async def chat(room: str, message: Incoming[str]) -> str:
    return f"{os.getpid()} {message}"

app = FastAPI()

@app.post("/say")
async def say(text: str, manager: ManagerDep) -> int:
    return await manager.broadcast(text)

@app.post("/drain")
async def drain(manager: ManagerDep) -> int:
    await manager.drain()
    return manager.active_connections

@rooms.ws_route("/stuck")
async def fill(message: Incoming[int], connection: ConnectionDep, manager: ManagerDep) -> None:
    "Send to a client that does not read until so many bytes wait for it, beside those that its kernel and ours hold."
    outbox = connection._outbox
    while outbox.size + outbox._wire.buffered() < message:
        await manager.send_personal(connection, "x" * 65536)
        await asyncio.sleep(0)
    logging.getLogger("main").info("filled by %d", os.getpid())

@rooms.ws_route("/deaf")
async def deaf(message: Incoming[str]) -> None:
    logging.getLogger("main").info("heard something")

app.include_router(rooms.router)
app.include_router(health_router(rooms))
"""


class Uvicorn:
    """`uvicorn main:app` in a process group of its own."""

    def __init__(self, folder: Path, drain_timeout, *options, loop="asyncio", wire="auto"):
        self.raw_clients = []  # of a test, to be closed at its end
        (folder / "main.py").write_text(APP)
        self.log = folder / "log"
        command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", "--loop", loop, *options]
        environment = {"DRAIN_TIMEOUT": str(drain_timeout), "WIRE": wire, "PYTHONUNBUFFERED": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def wait_until_started(self, workers):
        end = time.monotonic() + START_WITHIN
        while self.said.count("Application startup complete") < workers or "running on" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)
        self.port = int(re.search(r"running on http://127\.0\.0\.1:(\d+)", self.said)[1])
        while True:  # a worker says that it is up before it listens
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    @property
    def said(self):
        return self.log.read_text(errors="replace")

    def lines(self, word):
        return [line for line in self.said.splitlines() if word in line]

    @contextlib.asynccontextmanager
    async def client(self, path="/ws/room"):
        async with connect(f"ws://127.0.0.1:{self.port}{path}", max_size=None) as websocket:
            yield Client(websocket)

    def http(self):
        return http_client(f"http://127.0.0.1:{self.port}", timeout=DEADLINE)

    async def post(self, path, **params):
        async with self.http() as http:
            answer = await http.post(path, params=params)
            assert answer.status_code == 200, answer.text
            return answer.json()

    async def ready(self):
        async with self.http() as http:
            answer = await http.get("/ready")
            return answer.status_code, answer.json()

    def signal(self, number):
        began = fair_time()
        self.process.send_signal(number)
        return began

    def signal_group(self, number):
        """As Ctrl+C does: the parent and its children get it."""
        began = fair_time()
        os.killpg(self.process.pid, number)
        return began

    async def exit_code(self):
        return await asyncio.to_thread(self.process.wait, 2 * DEADLINE)


@pytest.fixture
def uvicorn(tmp_path):
    started = []

    def start(*args, workers=1, **options):
        started.append(Uvicorn(tmp_path, *args, **options))
        return started[-1].wait_until_started(workers)

    yield start
    for one in started:
        for client in one.raw_clients:
            client.close()
        with contextlib.suppress(ProcessLookupError):  # usually nobody of the group is left
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        assert "Traceback" not in one.said
        assert "ASGI callable returned without completing handshake" not in one.said


async def refusal(server):
    """Knock; return status and headers if refused, None if let in."""
    try:
        async with server.client() as client:
            await client.closed()
            return None
    except InvalidStatus as refused:
        return refused.response.status_code, refused.response.headers


async def is_red(server):
    """Wait until readiness is red; return what it says."""
    async with asyncio.timeout(DEADLINE):
        while (answer := await server.ready())[0] != 503:
            await asyncio.sleep(0.01)
    return answer[1]


async def get_stuck(server, count, queued=1 << 20, processes=1):
    """Return at least so many clients that read nothing, and for whom so many bytes wait, some on each worker."""
    clients = []
    while len(clients) < count or len(set(server.lines("filled by"))) < processes:
        clients.append(RawClient(server, "/stuck", receive_buffer=4096))
        server.raw_clients.append(clients[-1])
        clients[-1].send_frame(1, b"%d" % queued)
        if len(clients) >= count:
            await until(lambda: len(server.lines("filled by")) == len(clients), "all are stuck")
        assert len(clients) < 200
    return clients


def drains(server):
    """Return how many seconds each drain took that is over, as the log has it."""
    return [float(line.split()[-2]) for line in server.lines("fastapi_rooms drained:")]


def term(server):
    return server.signal(signal.SIGTERM)


def interrupt(server):
    return server.signal(signal.SIGINT)


def interrupt_group(server):
    return server.signal_group(signal.SIGINT)


def interrupt_group_twice(server):
    """As a shell's job control and a wrapper such as `uv run` do together."""
    server.signal_group(signal.SIGINT)
    return server.signal_group(signal.SIGINT)


SLOW = pytest.mark.slow
WAYS = [
    pytest.param((), 1, term, -signal.SIGTERM, "asyncio", id="one-SIGTERM-asyncio"),
    pytest.param((), 1, interrupt_group_twice, 0, "uvloop", id="one-Ctrl+C-uvloop"),
    pytest.param(("--workers", "2"), 2, term, 0, "uvloop", id="workers-SIGTERM-uvloop", marks=SLOW),
    pytest.param(("--workers", "2"), 2, interrupt_group, 0, "asyncio", id="workers-Ctrl+C-asyncio", marks=SLOW),
    pytest.param(("--reload",), 1, term, 0, "asyncio", id="reload-SIGTERM-asyncio", marks=SLOW),
    pytest.param(("--reload",), 1, interrupt_group, 0, "uvloop", id="reload-Ctrl+C-uvloop", marks=SLOW),
]


@pytest.mark.parametrize(("options", "processes", "stop", "code", "loop"), WAYS)
async def test_a_server_that_is_told_to_stop_drains_first(uvicorn, options, processes, stop, code, loop):
    server = uvicorn(1.5, *options, loop=loop, workers=processes)
    async with contextlib.AsyncExitStack() as ends:
        clients = [await ends.enter_async_context(server.client()) for _ in range(30)]
        for client in clients:
            await client.send("hello")
        await get_stuck(server, 1, processes=processes)  # so that it takes its time
        began = stop(server)
        body = await is_red(server)
        assert (body["ready"], body["draining"]) == (False, True)
        status, headers = await refusal(server)
        assert status == 503
        assert 1 <= int(headers["Retry-After"]) <= 2
        for client in clients:
            assert (await client.receive()).endswith("hello")
            assert await client.closed() == (1012, "restarting")
        assert await server.exit_code() == code
        took = fair_time() - began
        assert took < 1.5 + ENDS, "nothing is waited for once more"
    assert len(server.lines("fastapi_rooms draining:")) == len(drains(server)) == processes
    assert min(drains(server)) >= 1.5, "one client takes nothing, and has its time"
    assert "second signal" not in server.said
    assert server.said.count("Application shutdown complete") == processes


async def test_closes_are_spread_and_everybody_gets_what_was_sent_before(uvicorn):
    server = uvicorn(2)
    closed_at, received = [], []

    async def listen(client):
        heard = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                heard.append(await client.websocket.recv())
        closed_at.append(fair_time())
        received.append((client.websocket.close_code, heard))

    async with contextlib.AsyncExitStack() as ends:
        clients = [await ends.enter_async_context(server.client()) for _ in range(200)]
        listening = [asyncio.create_task(listen(client)) for client in clients]
        for text in ("first", "second"):
            assert await server.post("/say", text=text) == 200
        began = server.signal(signal.SIGTERM)
        await is_red(server)
        assert await server.post("/say", text="while it drains") > 100, "those who are still here hear it"
        await asyncio.wait(listening, timeout=DEADLINE)
        assert await server.exit_code() == -signal.SIGTERM
        assert fair_time() - began < 2 + ENDS
    assert len(received) == 200
    assert {code for code, _ in received} == {1012}
    assert {tuple(heard[:2]) for _, heard in received} == {("first", "second")}
    assert {len(heard) for _, heard in received} == {2, 3}
    quarters = [sum(0.4 * n <= moment - began < 0.4 * (n + 1) for moment in closed_at) for n in range(4)]
    assert sum(quarters) > 190
    assert all(25 <= quarter <= 90 for quarter in quarters), quarters


@pytest.mark.parametrize(("loop", "wire"), [("asyncio", "auto"), pytest.param("uvloop", "asgi", marks=SLOW)])
async def test_with_a_hundred_clients_that_do_not_read_the_process_is_gone_in_time(uvicorn, loop, wire):
    server = uvicorn(1.5, loop=loop, wire=wire)
    await get_stuck(server, 100)
    async with server.client() as healthy:
        began = server.signal(signal.SIGTERM)
        assert (await healthy.closed())[0] == 1012
        assert await server.exit_code() == -signal.SIGTERM
    took = fair_time() - began
    assert took < 1.5 + ENDS
    (drained,) = server.lines("drained:")
    assert "101 connections closed, 100 of them aborted" in drained
    assert not server.lines("cannot be aborted"), "who was is not said not to be"
    assert min(drains(server)) >= 1.5


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_who_floods_with_pings_and_does_not_read_holds_nobody_up(uvicorn, loop):
    """There is space for the close frame, and the pongs behind it fill the buffers of a server that waits for them."""
    server = uvicorn(1.5, loop=loop)
    flooders = await get_stuck(server, 5, queued=1)
    for client in flooders:
        await asyncio.to_thread(client.socket.recv, 1 << 20, socket.MSG_WAITALL)
    over = threading.Event()
    threads = [threading.Thread(target=flood, args=(client.socket, over)) for client in flooders]
    began = server.signal(signal.SIGTERM)
    for thread in threads:
        thread.start()
    try:
        assert await server.exit_code() == -signal.SIGTERM
        took = fair_time() - began
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert took < 1.5 + ENDS
    assert len(server.lines("drained: 5 connections closed")) == 1


def flood(client, over):
    """Send some 2,500 pings a second, whole frames, until the server hangs up or all is over."""
    pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 50
    rest = pings
    client.settimeout(0.01)
    while not over.wait(0.02):
        try:
            rest = rest[client.send(rest) :] or pings
        except TimeoutError:
            continue
        except OSError:
            return


async def test_in_development_ctrl_c_is_instant_for_one_client(uvicorn):
    server = uvicorn(10)
    async with server.client() as client:
        await client.send("hello")
        assert (await client.receive()).endswith("hello")
        began = server.signal(signal.SIGINT)
        assert await client.closed() == (1012, "restarting")
        assert await server.exit_code() == 0
        assert fair_time() - began < ENDS


async def test_in_development_ctrl_c_is_instant_for_none(uvicorn):
    server = uvicorn(10, loop="uvloop")
    began = server.signal(signal.SIGINT)
    assert await server.exit_code() == 0
    assert fair_time() - began < ENDS


async def test_a_second_signal_skips_the_rest_but_not_within_the_first_second(uvicorn):
    server = uvicorn(60)
    await get_stuck(server, 1)
    async with contextlib.AsyncExitStack() as ends:
        clients = [await ends.enter_async_context(server.client()) for _ in range(5)]
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            server.signal(number)
        await is_red(server)
        heard = time.monotonic()  # at the latest
        for client in clients:
            assert (await client.closed())[0] == 1012
        await until(lambda: time.monotonic() - heard > 1.1)
        assert (await server.ready())[0] == 503, "it is still there, for the one who does not read"
        assert "second signal" not in server.said
        began = server.signal(signal.SIGTERM)
        assert await server.exit_code() in (-signal.SIGTERM, 0), "of signals at the same time, SIGINT may be the first"
    assert fair_time() - began < 5, "uvicorn has closed it, so that the sweep has less patience"
    assert len(server.lines("a second signal: the rest of the connections is left to the server")) == 1


async def test_a_request_can_drain_before_the_signal_comes(uvicorn):
    """As a preStop hook does."""
    server = uvicorn(1.5)
    (stuck,) = await get_stuck(server, 1)
    async with server.client() as client:
        one, two = asyncio.create_task(server.post("/drain")), asyncio.create_task(server.post("/drain"))
        began = fair_time()
        await is_red(server)
        assert (await refusal(server))[0] == 503
        assert await client.closed() == (1012, "restarting")
        assert await one == await two == 0
        assert fair_time() - began < 1.5 + ENDS
        assert min(drains(server)) >= 1.5
        assert (await server.ready())[0] == 503, "it goes on answering"
        assert await asyncio.to_thread(stuck.read_to_end), "it was aborted"
    began = server.signal(signal.SIGTERM)
    assert await server.exit_code() == -signal.SIGTERM
    assert fair_time() - began < ENDS
    assert len(server.lines("draining:")) == len(server.lines("drained:")) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
async def test_without_a_drain_timeout_everything_is_as_the_server_has_it(uvicorn, number, code):
    server = uvicorn(None)
    async with server.client() as client:
        await client.send("hello")
        assert (await client.receive()).endswith("hello")
        began = server.signal(number)
        assert await client.closed() == (1012, ""), "this is uvicorn's close frame"
        assert await server.exit_code() == code
        assert fair_time() - began < ENDS
    assert server.lines("drain") == []


async def test_who_talks_all_the_time_gets_the_close_frame_too(uvicorn):
    """A server that hangs up on somebody who is sending resets the connection, and 1006 takes the place of 1012."""
    server = uvicorn(5)

    async def talk(client):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.send("x" * 10_000)
                await asyncio.sleep(0)
        return (await client.closed())[0]

    async with contextlib.AsyncExitStack() as ends:
        clients = [await ends.enter_async_context(server.client("/deaf")) for _ in range(10)]
        talking = [asyncio.create_task(talk(client)) for client in clients]
        await until(lambda: server.lines("heard something"))
        server.signal(signal.SIGTERM)
        assert await asyncio.gather(*talking) == [1012] * 10
    assert await server.exit_code() == -signal.SIGTERM
