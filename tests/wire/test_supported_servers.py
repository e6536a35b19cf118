"""Which versions of uvicorn the uvicorn wire was verified with, what it relies on there, and what others get.

More of what it relies on is in `tests/facts/test_uvicorn_facts.py`.
"""

import asyncio
import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kinds_of_servers
import pytest
import uvicorn
from packaging.requirements import Requirement
from packaging.version import Version
from strict_client import CLOSE, PLAIN, TAKEOVER, TEXT
from support import DEADLINE, live, until
from wire_app import WORDS, Stage

VERIFIED = ("0.54.0", "0.54.0")
"""The oldest and the newest uvicorn that was verified."""

ADVICE = """
engine/outbound/uvicorn_wire.py writes below uvicorn's WebSocket protocol, so each version has to be looked at:
1. Read what changed in uvicorn/protocols/websockets/websockets_sansio_impl.py and in its base, websockets.server:
   - `transport`, and that all output goes to it at once (nothing is kept for a later write, nobody else writes);
   - `writable`: an asyncio.Event, cleared by pause_writing, set by resume_writing and by connection_lost;
   - `close_sent`, `disconnected` or `transport.is_closing()`: one is true once a close frame was written;
   - `conn`: `extensions`, `send_text`, `send_binary`, `data_to_send`.
2. Run tests/wire, tests/facts/test_uvicorn_facts.py and tests/integration with it.
3. Widen VERIFIED in tests/wire/test_supported_servers.py, and constraints.txt if it is the newest.
"""

ROOT = Path(__file__).parents[2]
SANSIO = "uvicorn.protocols.websockets.websockets_sansio_impl.WebSocketsSansIOProtocol"
FALLBACKS = {
    "wsproto": "uvicorn.protocols.websockets.wsproto_impl.WSProtocol",
    "websockets": "uvicorn.protocols.websockets.websockets_impl.WebSocketProtocol",
    "a newer one of uvicorn": "uvicorn.protocols.websockets.newer_impl.NewerProtocol",
}


def is_verified(version):
    oldest, newest = (Version(one) for one in VERIFIED)
    return oldest <= Version(version) <= newest


def test_the_installed_uvicorn_was_verified():
    version = uvicorn.__version__
    assert is_verified(version), f"uvicorn {version} is none of {' to '.join(VERIFIED)}.\n{ADVICE}"


def test_the_uvicorn_that_we_name_was_verified():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(one) for extra in project["optional-dependencies"].values() for one in extra]
    named = [one for one in wanted if one.name == "uvicorn"]
    assert named
    for one in named:
        assert all(one.specifier.contains(version) for version in VERIFIED), f"{one} excludes what we verified"
    pinned = re.findall(r"^uvicorn==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [is_verified(one) for one in pinned] == [True], f"constraints.txt pins uvicorn {pinned}.\n{ADVICE}"


# What the wire relies on


@contextlib.asynccontextmanager
async def connected(loop, offer=TAKEOVER, **options):
    """A client, and what serves it."""
    stage = Stage()
    with live(stage.app, loop, **options) as server:
        async with stage.client(server, offer) as client:
            (protocol,) = server.uvicorn.server_state.connections
            yield server, stage.sockets[0], protocol, client


@pytest.mark.parametrize(("offer", "extensions"), [(PLAIN, []), (TAKEOVER, ["permessage-deflate"])])
async def test_its_framing_compresses_and_keeps_nothing_back(loop, offer, extensions):
    async with connected(loop, offer) as (server, websocket, protocol, client):
        conn = protocol.conn
        assert [one.name for one in conn.extensions] == extensions

        async def talk():
            for number in range(3):
                assert conn.data_to_send() == [], "everything was written at once"
                await websocket.send_text(f"{number} {WORDS[:500]}")
                conn.send_text(f"{number} {WORDS[:500]}".encode())
                conn.send_binary(b"%d" % number)
                protocol.transport.write(b"".join(conn.data_to_send()))

        await server.call(talk)
        await client.ping(b"")
        await client.read_until(lambda: client.of("pong"))
        assert await server.call(conn.data_to_send) == []
        assert client.of("text") == [f"{number} {WORDS[:500]}" for number in range(3) for _ in range(2)]
        assert client.of("bytes") == [b"0", b"1", b"2"]
        assert [one.kind for one in client.received[:-1]] == ["text", "text", "bytes"] * 3
        messages = [one for one in client.received if one.kind in {"text", "bytes"}]
        assert {one.is_compressed for one in messages} == {bool(extensions)}
        if extensions:
            assert messages[-2].size < messages[0].size / 8, "one window for all"


async def test_writable_is_cleared_and_set_by_the_transport(loop):
    async with connected(loop) as (server, websocket, protocol, client):

        async def pause():
            protocol.pause_writing()
            assert not protocol.writable.is_set()
            sending = asyncio.create_task(websocket.send_text("after the pause"))
            await asyncio.sleep(0.01)
            assert not sending.done(), "a send of the app waits for the same event"
            protocol.resume_writing()
            assert protocol.writable.is_set()
            await sending

        await server.call(pause)
        await client.read_until(lambda: client.of("text"))
        await server.call(protocol.pause_writing)
        await server.call(protocol.transport.abort)
        await until(lambda: protocol.disconnected)
        assert protocol.writable.is_set(), "who waits learns that the connection is lost"


class Listening:
    """A transport that looks at the state of its protocol when the step that wrote a close frame is over."""

    def __init__(self, protocol, loop):
        self.protocol, self.transport, self.loop = protocol, protocol.transport, loop
        self.close_frames = []  # whether the protocol says that it has ended

    def __getattr__(self, name):
        return getattr(self.transport, name)

    def write(self, data):
        self.transport.write(data)
        if data[:1] == b"\x88":
            self.loop.call_soon(self.look)

    def look(self):
        protocol = self.protocol
        self.close_frames.append(protocol.close_sent or protocol.disconnected or self.transport.is_closing())


async def _by_the_app(server, websocket, protocol, client):
    await server.call(websocket.close, 4000)
    assert protocol.close_sent


async def _by_the_client(server, websocket, protocol, client):
    await client.close(4000)


async def _by_a_mistake(server, websocket, protocol, client):
    await client.send_frame(0x80 | TEXT, b"unmasked", is_masked=False)


async def _by_text_that_is_none(server, websocket, protocol, client):
    await client.send_frame(0x80 | TEXT, b"\xff")


async def _by_a_close_that_is_none(server, websocket, protocol, client):
    await client.send_frame(0x80 | CLOSE, b"\x03")


async def _by_a_missing_pong(server, websocket, protocol, client):
    client.answers_pings = False


async def _by_the_end_of_the_server(server, websocket, protocol, client):
    await server.call(protocol.shutdown)


@pytest.mark.parametrize(
    "end",
    [
        _by_the_app,
        _by_the_client,
        _by_a_mistake,
        _by_text_that_is_none,
        _by_a_close_that_is_none,
        _by_a_missing_pong,
        _by_the_end_of_the_server,
    ],
)
async def test_whoever_ends_a_connection_the_protocol_says_so_before_anybody_else_has_a_turn(loop, end):
    keepalive = {"ws_ping_interval": 0.05, "ws_ping_timeout": 0.5} if end is _by_a_missing_pong else {}
    async with connected(loop, **keepalive) as (server, websocket, protocol, client):
        listening = Listening(protocol, server.loop)

        def listen():
            protocol.transport = listening

        await server.call(listen)
        await end(server, websocket, protocol, client)
        await client.read_to_close()
        await until(lambda: listening.close_frames)
        assert listening.close_frames == [True]


# What is not known falls back


@pytest.fixture(scope="module")
def served():
    """What became of each kind, in one process."""
    folders = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tests" / "wire"), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", kinds_of_servers.__file__],
        env={**os.environ, "PYTHONPATH": folders},
        cwd=ROOT,
        capture_output=True,
        timeout=6 * DEADLINE,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("kind", kinds_of_servers.kinds())
def test_messages_arrive_on_every_kind_of_server(served, kind):
    lines = [text for level, text in served[kind]["lines"] if level != "INFO"]
    assert served[kind]["heard"] == ["echo first", "second", "b'third'", 512 * 1024, [4000, "bye"]] * 3, lines
    assert lines == []


@pytest.mark.parametrize("kind", ["known", "auto", "websockets-sansio"])
def test_the_known_kind_does_not_fall_back(served, kind):
    assert served[kind]["lines"] == []


@pytest.mark.parametrize("kind", FALLBACKS)
def test_each_kind_that_falls_back_is_told_once(served, kind):
    ((level, line),) = served[kind]["lines"]
    assert level == "INFO"
    assert line.startswith(FALLBACKS[kind] + " is not known")


def test_one_line_per_process_and_kind(served):
    told = collections.Counter(
        line.split()[0] for one in served.values() for level, line in one["lines"] if level == "INFO"
    )
    assert {told[name] for name in [SANSIO, *FALLBACKS.values()]} == {1}, (
        "all that have the name of the known one are one kind"
    )
    assert max(told.values()) == 1
