"""What the table of docs/guides/servers.md says of each server is what it does: as a process of its own.

A server that is not installed, or not in the version that the table names, is skipped: CI has them as constraints.txt
pins them, and the lowest versions of everything else need not go with them.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
from brokers.ports import free_port
from support import DEADLINE, Client, RawClient, http_client, until
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "servers.md"
FOREIGN = "https://evil.example"

COMMANDS = {
    "uvicorn": "uvicorn served_app:app --host 127.0.0.1 --port {port}",
    "gunicorn + uvicorn-worker": "gunicorn served_app:app -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}",
    "granian": "granian served_app:app --interface asgi --host 127.0.0.1 --port {port}",
    "hypercorn": "hypercorn served_app:app -b 127.0.0.1:{port} --graceful-timeout 1",
    "h2corn": "h2corn served_app:app -b 127.0.0.1:{port}",
    "gunicorn -k asgi": "gunicorn served_app:app -k asgi -b 127.0.0.1:{port} --graceful-timeout 1",
}
"""How each is started: with short patience at its end, where it has any."""
BY_HAND = {"daphne", "socketify"}
"""Those that serve nobody."""


def rows():
    """The rows of the table: name to cells by their heading."""
    (table,) = re.findall(r"^(\| Server \|.*\n\|-.*\n(?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    heads, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {cells[0]: dict(zip(heads, cells, strict=True)) for cells in lines}


def packages(row):
    """The packages of a row with their versions."""
    return re.findall(r"([a-z0-9-]+) ([0-9.]+)", row["Looked at"])


def test_every_server_of_the_table_is_tried_or_serves_nobody():
    assert list(rows()) == [*COMMANDS, *sorted(BY_HAND)]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_versions_of_the_table_are_those_that_are_tried(name):
    pinned = (ROOT / "constraints.txt").read_text().lower()
    for package, which in packages(rows()[name]):
        assert re.search(rf"^{package}=={re.escape(which)}$", pinned, re.MULTILINE), f"{package} is another version now"


class Served:
    """A process that serves the app."""

    def __init__(self, name, folder):
        self.port = free_port()
        self.log = folder / "log"
        program, *arguments = COMMANDS[name].format(port=self.port).split()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [Path(sys.executable).parent / program, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parent,
                env={
                    **os.environ,
                    "HOME": str(folder),  # gunicorn puts its control socket there
                    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                },
                start_new_session=True,
            )

    def said(self):
        return self.log.read_text(errors="replace")

    async def post(self, path):
        async with http_client(f"http://127.0.0.1:{self.port}", timeout=DEADLINE) as http:
            return (await http.post(path)).raise_for_status()

    async def closing(self):
        async with http_client(f"http://127.0.0.1:{self.port}", timeout=DEADLINE) as http:
            return (await http.get("/closing")).json()

    async def is_up(self):
        assert self.process.poll() is None, self.said()
        with contextlib.suppress(OSError):
            async with self.client("/ws/r"):
                return True
        return False

    def client(self, path, **options):
        return connect(f"ws://127.0.0.1:{self.port}{path}", **options)

    async def refused(self, path, **options):
        """Return the status with which a handshake is refused."""
        with pytest.raises(InvalidStatus) as caught:
            async with self.client(path, **options):
                pass
        return caught.value.response.status_code


@pytest.fixture(params=COMMANDS)
def row(request):
    found = rows()[request.param]
    for package, which in packages(found):
        try:
            installed = version(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
        if installed != which:
            pytest.skip(f"{package} is installed as {installed}, and the table is about {which}")
    return found


@pytest.fixture
def served(row, tmp_path):
    started = Served(row["Server"], tmp_path)
    yield started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.process.pid, signal.SIGKILL)
    started.process.wait()


async def test_what_the_table_says_of_a_server(row, served):
    await until(served.is_up, served.said, seconds=3 * DEADLINE, pause=0.05)
    async with served.client("/ws/r") as one, served.client("/ws/r") as other:
        await everybody_hears(one, other)
        statuses = [await served.refused("/denied")]
        assert await served.refused("/ws/r", origin=FOREIGN) == 403
        assert await who_stalls(served) == row["Who stalls"]
        await served.post("/drain")
        assert {(await Client(client).closed())[0] for client in (one, other)} == {1012}
        statuses.append(await served.refused("/ws/r"))
        assert ", ".join(map(str, statuses)) == row["401, and 503 in a drain"]
        await served.post("/again")
    if row["SIGTERM"].endswith("(Python 3.11)") and sys.version_info >= (3, 12):
        await check_that_a_signal_closes_nobody(served)
    else:
        assert await at_a_signal(served) in row["SIGTERM"].removesuffix(" (Python 3.11)").split(" or ")


async def everybody_hears(one, other):
    await one.send("hello")
    assert [await Client(client).receive() for client in (one, other)] == ["hello", "hello"]


async def who_stalls(served):
    """Return what becomes of a client that takes nothing, not even a close frame, and wakes then."""
    stuck = RawClient(SimpleNamespace(port=served.port), "/ws/stuck", receive_buffer=4096)
    try:
        await served.post("/fill/stuck")
        await until(lambda: re.search(r"does not take what it is sent: (aborted|closed)", served.said()), served.said)
        is_aborted = "does not take what it is sent: aborted" in served.said()

        async def is_given_up():
            return "does not take its close frame either" in served.said() or not await served.closing()

        await until(is_given_up, served.said)
        code = 1006
        with contextlib.suppress(AssertionError, OSError):  # it ended without a close frame
            code = int.from_bytes(stuck.read_to_close()[-1][1][:2], "big")
    finally:
        stuck.close()
    if is_aborted:
        assert code == 1006
        return "aborted"
    assert code in {1013, 1006}, "1000 says not to come back"
    return "1013, or its end"


async def check_that_a_signal_closes_nobody(served):
    """Check that clients are still served when the patience of the server is over, and that it ends with the last."""
    async with served.client("/ws/r") as client:
        served.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(2)  # twice its --graceful-timeout; that nothing happens can only be waited for
        await client.send("hello")
        assert await Client(client).receive() == "hello"
    await until(lambda: served.process.poll() is not None, served.said)


async def at_a_signal(served):
    """Return with which code a healthy client is closed at SIGTERM, and whether that was a drain."""
    before = served.said().count("draining: ")
    began = time.monotonic()
    async with served.client("/ws/r") as client:
        served.process.send_signal(signal.SIGTERM)
        code, _ = await Client(client).closed()
    await until(lambda: served.process.poll() is not None, served.said)
    assert time.monotonic() - began < DEADLINE
    return f"drains: {code}" if served.said().count("draining: ") > before else str(code)
