"""`compress_min_bytes`: large messages go through the compressor of each client, which uvicorn uses for its own."""

import asyncio
import contextlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_client import NO_TAKEOVER, PLAIN, TAKEOVER
from support import live, until
from wire_app import NOISE, WORDS, Stage, flushed, labelled, numbers, ticks

from fastapi_rooms.engine.outbound.uvicorn_wire import UvicornWire
from fastapi_rooms.engine.references import SCOPE_KEY

KIB = 1024
MIN = 200
OFFERS = {"plain": PLAIN, "takeover": TAKEOVER, "no takeover": NO_TAKEOVER}
BOUNDARY = (0, 1, MIN - 1, MIN, MIN + 1, 5_000)

offers = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)


def serving(loop, **limits):
    stage = Stage(outbox_messages=1_000_000, outbox_bytes=1 << 30, send_timeout=30, **limits)
    return stage, live(stage.app, loop, ws_ping_interval=0.01)


@pytest.fixture(scope="module")
def shared(loop):
    """Compresses from MIN bytes on."""
    stage, running = serving(loop, compress_min_bytes=MIN)
    with running as server:
        yield stage, server


@pytest.fixture
async def own(loop, request):
    """Serves with the settings that the test asks for."""
    stage, running = serving(loop, **request.param)
    with running as server:
        yield stage, server


def heard(client):
    """Messages and whether they were compressed."""
    return [(one.data, one.is_compressed) for one in client.received if one.kind in {"text", "bytes"}]


@offers
async def test_messages_from_that_size_on_are_compressed_where_it_was_negotiated(scene, offer):
    stage, server = scene
    expected = []
    async with stage.client(server, offer) as client:

        async def talk() -> None:
            for size in BOUNDARY:
                for message in (WORDS[:size], NOISE[:size]):
                    await stage.manager.broadcast(message)
                    expected.append((message, size >= MIN and offer is not PLAIN))
                await flushed()

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == len(expected))
        assert heard(client) == expected


async def test_the_size_is_that_of_the_encoded_message(scene):
    stage, server = scene
    texts = {"é" * (MIN // 2): True, "é" * (MIN // 2 - 1) + "a": False}
    lists = {"a" * (MIN - 4): True, "a" * (MIN - 5): False}  # with brackets and quotes, as JSON
    async with stage.client(server, TAKEOVER) as client:

        async def talk() -> None:
            for text in texts:
                await stage.manager.broadcast(text)
            for text in lists:
                await stage.manager.broadcast([text])

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == 4)
        assert heard(client)[:2] == list(texts.items())
        assert [(json.loads(data)[0], flag) for data, flag in heard(client)[2:]] == list(lists.items())


@offers
async def test_large_and_small_ones_of_one_tick_keep_their_order(scene, offer):
    stage, server = scene
    sizes = random.Random(1).choices(BOUNDARY, k=200)
    async with stage.client(server, offer) as client:

        async def talk() -> None:
            for number, size in enumerate(sizes):
                await stage.manager.broadcast(labelled("ours", number, size))

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == 200)
        assert heard(client) == [
            (text, len(text) >= MIN and offer is not PLAIN)
            for text in (labelled("ours", number, size) for number, size in enumerate(sizes))
        ]


@pytest.mark.parametrize("offer", [TAKEOVER, NO_TAKEOVER], ids=["takeover", "no takeover"])
async def test_there_is_one_window_for_our_messages_and_uvicorns(scene, offer):
    stage, server = scene
    said = WORDS[:600]
    async with stage.client(server, offer) as client:

        async def talk() -> None:
            for _ in range(4):
                await stage.sockets[0].send_text(said)
                await stage.manager.broadcast(said)
                await stage.manager.broadcast("small, and not compressed")
                await flushed()

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == 12)
        assert heard(client) == [(said, True), (said, True), ("small, and not compressed", False)] * 4
        first, *later = [one.size for one in client.received if one.data == said]
        if offer == TAKEOVER:
            assert max(later) < first / 8, "what either has said before is remembered"
        else:
            assert set(later) == {first}


async def test_members_with_and_without_compression_share_a_room(scene):
    stage, server = scene
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(stage.client(server, offer)) for offer in (*OFFERS.values(), PLAIN)]
        expected = [labelled("ours", number, size) for number, size in enumerate(BOUNDARY * 5)]

        async def talk() -> None:
            for number, text in enumerate(expected):
                assert await stage.manager.broadcast_to_room("r", text) == 4
                if number % 3 == 0:
                    await flushed()

        await server.call(talk)
        for client in clients:
            await client.read_until(lambda client=client: len(heard(client)) == len(expected))
            assert heard(client) == [(text, len(text) >= MIN and client.deflate is not None) for text in expected]


async def test_a_client_that_stops_reading_for_a_while_gets_all_of_it(scene):
    stage, server = scene
    async with stage.client(server, TAKEOVER, receive_buffer=4 * KIB) as client:
        (websocket,) = stage.sockets
        (protocol,) = server.uvicorn.server_state.connections
        count = 0

        async def stuff() -> None:
            """Send until the transport's buffer is above its mark, and then some that has to wait."""
            nonlocal count
            rest = 40
            while rest:
                for size in (0, 100, 20_000, 66_000):
                    await stage.manager.broadcast(labelled("ours", count).encode() + NOISE[:size])
                    count += 1
                await ticks(1)
                rest -= not protocol.writable.is_set()
            assert len(websocket.scope[SCOPE_KEY]._outbox) > 100

        await server.call(stuff)
        await client.ping(b"while it does not read")
        await client.read_until(lambda: len(heard(client)) == count)
        assert numbers(client, "ours") == list(range(count))
        assert [flag for _, flag in heard(client)] == [size >= MIN for size in (0, 100, 20_000, 66_000)] * (count // 4)
        assert await server.call(stage.manager.close_room, "r", 4000) == 1
        assert await client.read_to_close() == (4000, "")


async def test_a_client_that_has_sent_its_close_frame_does_no_harm_to_others(scene):
    stage, server = scene
    async with stage.client(server, TAKEOVER) as leaving, stage.client(server, TAKEOVER) as client:
        await leaving.close(4000)

        async def talk() -> None:
            for number in range(50):
                await stage.manager.broadcast(labelled("ours", number, 500))
                await asyncio.sleep(0.001)

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == 50)
        assert numbers(client, "ours") == list(range(50))
        assert await leaving.read_to_close() == (4000, "")


STEPS = st.one_of(
    st.tuples(st.just("room"), st.sampled_from(BOUNDARY)),
    st.tuples(st.just("bytes"), st.sampled_from(BOUNDARY)),
    st.tuples(st.just("burst"), st.integers(2, 30)),
    st.tuples(st.just("app"), st.sampled_from(BOUNDARY)),
    st.tuples(st.just("echo"), st.sampled_from(BOUNDARY)),
    st.tuples(st.just("tick"), st.just(0)),
)


class Mix:
    """One sequence of steps with a client of each kind in one room."""

    def __init__(self, stage, server, clients):
        self.stage = stage
        self.server = server
        self.clients = clients
        self.ours = self.theirs = self.echoes = 0  # how many were sent

    async def step(self, what, size):
        if what == "echo":
            for client in self.clients:
                await client.send_text(f"{self.echoes} {WORDS[:size]}")
            self.echoes += 1
        elif what == "app":
            await self.server.call(self._send, size)
        elif what == "tick":
            await self.server.call(flushed)
        else:
            await self.server.call(self._broadcast, what, size)

    async def _send(self, size):
        for websocket in self.stage.sockets:
            await websocket.send_text(labelled("theirs", self.theirs, size))
        self.theirs += 1

    async def _broadcast(self, what, size):
        for _ in range(size if what == "burst" else 1):
            text = labelled("ours", self.ours, 50 * (self.ours % 9) if what == "burst" else size)
            await self.stage.manager.broadcast_to_room("mix", text.encode() if what == "bytes" else text)
            self.ours += 1

    async def check(self):
        count = self.ours + self.theirs + self.echoes
        for client in self.clients:
            await client.read_until(lambda client=client: len(heard(client)) == count)
        assert await self.server.call(self.stage.manager.close_room, "mix", 4001, "over") == len(self.clients)
        for client in self.clients:
            assert await client.read_to_close() == (4001, "over")
            for stream, count in (("ours", self.ours), ("theirs", self.theirs), ("echo", self.echoes)):
                assert numbers(client, stream) == list(range(count))
            ours = [(data, flag) for data, flag in heard(client) if data[:4] in {"ours", b"ours"}]
            assert len(ours) == self.ours
            assert all(flag == (len(data) >= MIN and client.deflate is not None) for data, flag in ours)


@given(steps=st.lists(STEPS, max_size=25))
@settings(max_examples=20, deadline=None)
def test_any_mix_is_valid_and_in_order(shared, steps):
    stage, server = shared

    async def main():
        await until(lambda: not stage.manager.active_connections)
        stage.sockets.clear()
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(stage.client(server, offer, room="mix")) for offer in OFFERS.values()
            ]
            mix = Mix(stage, server, clients)
            for what, size in steps:
                await mix.step(what, size)
            await mix.check()

    asyncio.run(main())


# Where nothing is to be compressed, or nobody knows how


@pytest.mark.parametrize("own", [{}, {"compress_min_bytes": None}], indirect=True)
async def test_by_default_nothing_of_ours_is_compressed(own):
    stage, server = own
    async with stage.client(server, TAKEOVER) as client:

        async def talk() -> None:
            for _ in range(3):
                await stage.manager.broadcast(WORDS)
                await stage.sockets[0].send_text("of uvicorn")

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == 6)
        assert sorted(heard(client)) == [(WORDS, False)] * 3 + [("of uvicorn", True)] * 3


@pytest.mark.parametrize("own", [{"compress_min_bytes": 1}], indirect=True)
async def test_from_one_byte_on_is_everything_that_is_not_empty(own):
    stage, server = own
    async with stage.client(server, TAKEOVER) as client:

        async def talk() -> None:
            for message in ("", "a", b"", b"a"):
                await stage.manager.broadcast(message)

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == 4)
        assert heard(client) == [("", False), ("a", True), (b"", False), (b"a", True)]


@pytest.mark.parametrize(
    "own", [{"wire": "asgi", "compress_min_bytes": minimum} for minimum in (None, 1_000_000)], indirect=True
)
@offers
async def test_through_asgi_the_server_decides(own, offer):
    stage, server = own
    async with stage.client(server, offer) as client:

        async def talk() -> None:
            for message in ("a", WORDS[:1000]):
                await stage.manager.broadcast(message)

        await server.call(talk)
        await client.read_until(lambda: len(heard(client)) == 2)
        assert heard(client) == [("a", offer is not PLAIN), (WORDS[:1000], offer is not PLAIN)]


async def test_a_protocol_without_the_framing_that_we_know_is_not_compressed_for(scene):
    """What a version of uvicorn would be that keeps it elsewhere: the wire still works."""
    stage, server = scene
    async with stage.client(server, TAKEOVER) as client:
        (websocket,) = stage.sockets
        (protocol,) = server.uvicorn.server_state.connections

        class Elsewhere:
            def __getattr__(self, name):
                if name == "conn":
                    raise AttributeError(name)
                return getattr(protocol, name)

        async def talk() -> None:
            outbox = websocket.scope[SCOPE_KEY]._outbox
            assert isinstance(outbox._wire, UvicornWire)
            outbox._wire = outbox.ready = UvicornWire(websocket, Elsewhere(), MIN)
            await stage.manager.broadcast(WORDS[:1000])

        await server.call(talk)
        await client.read_until(lambda: heard(client))
        assert heard(client) == [(WORDS[:1000], False)]
