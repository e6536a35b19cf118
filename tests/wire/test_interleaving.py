"""What a client reads when our frames and uvicorn's own go to one transport: one valid stream, in the order of calls.

Ours are those of the manager. uvicorn's are what the app sends by itself (`websocket.send_text`), pings of the
keepalive, answers to the client's pings, and close frames of every kind. The client is `strict_client.py`.
"""

import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_client import NO_TAKEOVER, PLAIN, TAKEOVER
from support import DEADLINE, until
from wire_app import NOISE, WORDS, flushed, labelled, numbers, ticks
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.extensions import PerMessageDeflate

KIB = 1024
OFFERS = {"plain": PLAIN, "takeover": TAKEOVER, "no takeover": NO_TAKEOVER}
# On either side of each form that a length has (RFC 6455 section 5.2).
SIZES = (0, 1, 125, 126, 127, 65_535, 65_536, 70_000)

offers = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)


@offers
async def test_frames_of_everybody_make_one_valid_stream(scene, offer):
    stage, server = scene
    sizes = random.Random(1)
    async with stage.client(server, offer) as client, stage.client(server) as other:
        (websocket, _) = stage.sockets

        async def talk() -> None:
            for number in range(60):
                await stage.manager.broadcast_to_room("r", labelled("ours", 10 * number, sizes.choice(SIZES)))
                await websocket.send_text(labelled("theirs", 2 * number, sizes.choice(SIZES)))
                for more in range(1, 10):
                    await stage.manager.broadcast_to_room("r", labelled("ours", 10 * number + more).encode())
                await websocket.send_bytes(labelled("theirs", 2 * number + 1, 500).encode())
                await asyncio.sleep(0.002)

        async def ask() -> None:
            for number in range(100):
                await client.ping(b"%d" % number)
                await client.send_text(f"{number} " + WORDS[: 20 * number])
                await asyncio.sleep(0.001)

        reading = asyncio.create_task(client.read_until(lambda: len(client.of("text", "bytes")) == 60 * 12 + 100))
        beside = asyncio.create_task(other.read_until(lambda: len(other.of("text", "bytes")) == 60 * 10))
        await asyncio.gather(server.call(talk), ask(), reading, beside)
        await client.read_until(lambda: len(client.of("pong")) == 100)
        await client.read_until(lambda: len(client.of("ping")) >= 5)
        assert await server.call(stage.manager.close_room, "r", 4000, "bye") == 2
        for one in (client, other):
            assert await one.read_to_close() == (4000, "bye")
            assert numbers(one, "ours") == list(range(600))
        assert numbers(client, "theirs") == list(range(120))
        assert numbers(client, "echo") == list(range(100))
        assert client.of("pong") == [b"%d" % number for number in range(100)]
        theirs = [one for one in client.received if one.kind == "text" and one.data.startswith("theirs")]
        assert {one.is_compressed for one in theirs} == {offer is not PLAIN}


@offers
async def test_the_window_of_uvicorns_compression_outlives_our_frames(scene, offer):
    stage, server = scene
    said = WORDS[:600]
    async with stage.client(server, offer) as client:

        async def talk() -> None:
            for _ in range(4):
                await stage.sockets[0].send_text(said)
                await stage.manager.broadcast_to_room("r", "one")
                await stage.manager.broadcast_to_room("r", WORDS[-500:])
                await flushed()

        await server.call(talk)
        await client.read_until(lambda: len(client.of("text")) == 12)
        assert client.of("text") == [said, "one", WORDS[-500:]] * 4
        sizes = [one.size for one in client.received if one.data == said]
        if offer == TAKEOVER:
            assert max(sizes[1:]) < sizes[0] / 8, "what was said before is remembered, so the window was used"
        else:
            assert len(set(sizes)) == 1


@offers
async def test_frames_on_either_side_of_each_form_of_a_length_are_valid(scene, offer):
    stage, server = scene
    async with stage.client(server, offer) as client:

        async def talk() -> None:
            for size in SIZES:
                await stage.manager.broadcast("é" * (size // 2))
                await stage.manager.broadcast(NOISE[:size])
                await flushed()
                await stage.sockets[0].send_bytes(NOISE[:size])

        await server.call(talk)
        await client.read_until(lambda: len(client.of("text", "bytes")) == 3 * len(SIZES))
        assert client.of("text", "bytes") == [
            data for size in SIZES for data in ("é" * (size // 2), NOISE[:size], NOISE[:size])
        ]


async def test_another_implementation_reads_the_same(scene):
    """wsproto is neither ours nor what the server is made of."""
    stage, server = scene
    them = WSConnection(ConnectionType.CLIENT)
    request = ws.Request(host="test", target="/ws/r", extensions=[PerMessageDeflate()])
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(them.send(request))
    texts, parts, compressed = [], [], False

    async def read_until(fact) -> None:
        nonlocal compressed, parts
        async with asyncio.timeout(DEADLINE):
            while not fact():
                them.receive_data(await reader.read(1 << 16) or None)
                for event in them.events():
                    if isinstance(event, ws.AcceptConnection):
                        compressed = any(isinstance(one, PerMessageDeflate) for one in event.extensions)
                    elif isinstance(event, ws.TextMessage):
                        parts.append(event.data)
                        if event.message_finished:
                            texts.append("".join(parts))
                            parts = []
                    elif isinstance(event, ws.Ping):
                        writer.write(them.send(event.response()))
                    else:
                        assert isinstance(event, ws.CloseConnection), event
                        texts.append(f"{event.code} {event.reason}")

    await read_until(lambda: compressed)
    await until(lambda: stage.sockets)
    expected = []

    async def talk() -> None:
        for number in range(40):
            ours, theirs = labelled("ours", number, 90 * number), labelled("theirs", number, 50 * number)
            await stage.manager.broadcast(ours)
            await flushed()
            await stage.sockets[0].send_text(theirs)
            expected.extend([ours, theirs])
        await stage.manager.close_room("r", 4000, "bye")
        expected.append("4000 bye")

    await server.call(talk)
    await read_until(lambda: len(texts) == len(expected))
    assert texts == expected
    writer.write(them.send(ws.CloseConnection(4000)))
    assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
    writer.close()
    await writer.wait_closed()


# In any mix

SMALL = st.sampled_from((0, 10, 119, 300, 5_000))
STEPS = st.one_of(
    st.tuples(st.just("room"), SMALL),
    st.tuples(st.just("one"), SMALL),
    st.tuples(st.just("text"), SMALL),
    st.tuples(st.just("bytes"), SMALL),
    st.tuples(st.just("burst"), st.integers(2, 40)),
    st.tuples(st.just("ping"), st.sampled_from((0, 1, 125))),
    st.tuples(st.just("say"), SMALL),
    st.tuples(st.just("tick"), st.just(0)),
)


class Mix:
    """One sequence of steps with a client of each kind in one room, and what they have to hear of it."""

    def __init__(self, stage, server, clients):
        self.stage = stage
        self.server = server
        self.clients = clients
        self.websockets = stage.sockets[-len(clients) :]
        self.span = 0  # steps with nothing in between that lets our frames leave
        self.offered = 0
        self.ours = [[] for _ in clients]  # (span, message)
        self.theirs = [[] for _ in clients]
        self.pings = [[] for _ in clients]
        self.said = [[] for _ in clients]

    async def run(self, steps):
        at_server = []
        for step in steps:
            if step[1] in {"ping", "say"}:
                await self._at_server(at_server)
                at_server = []
                await self._at_client(*step)
            else:
                at_server.append(step)
        await self._at_server(at_server)

    async def _at_client(self, who, what, size):
        if what == "ping":
            self.pings[who].append(NOISE[:size])
            await self.clients[who].ping(NOISE[:size])
        else:
            self.said[who].append("echo " + WORDS[:size])
            await self.clients[who].send_text(WORDS[:size])

    async def _at_server(self, steps):
        async def work():
            for who, what, size in steps:
                await self._step(who, what, size)
            await flushed()

        await self.server.call(work)
        self.span += 1

    async def _step(self, who, what, size):
        manager, websocket = self.stage.manager, self.websockets[who]
        self.offered += 1
        text = labelled("ours" if what in {"room", "one", "burst"} else "theirs", self.offered, size)
        match what:
            case "room":
                await manager.broadcast_to_room("mix", text)
                for ours in self.ours:
                    ours.append((self.span, text))
            case "one":
                await manager.send_personal(websocket, text.encode())
                self.ours[who].append((self.span, text.encode()))
            case "burst":
                for number in range(size):
                    await manager.broadcast_to_room("mix", f"{text} {number}")
                    for ours in self.ours:
                        ours.append((self.span, f"{text} {number}"))
            case "text":
                await websocket.send_text(text)
                self.theirs[who].append((self.span, text))
            case "bytes":
                await websocket.send_bytes(text.encode())
                self.theirs[who].append((self.span, text.encode()))
            case "tick":
                await flushed()
                self.span += 1

    async def check(self):
        for who, client in enumerate(self.clients):
            ours, theirs, said = self.ours[who], self.theirs[who], self.said[who]
            expected = len(ours) + len(theirs) + len(said)
            await client.read_until(
                lambda expected=expected, client=client: len(client.of("text", "bytes")) >= expected
            )
            await client.read_until(lambda client=client, who=who: len(client.of("pong")) >= len(self.pings[who]))
        assert await self.server.call(self.stage.manager.close_room, "mix", 4001, "over") == len(self.clients)
        for who, client in enumerate(self.clients):
            assert await client.read_to_close() == (4001, "over")
            assert client.of("pong") == self.pings[who]
            spans = {message: span for span, message in self.ours[who] + self.theirs[who]}
            heard = client.of("text", "bytes")
            assert [one for one in heard if str(one).startswith("echo")] == self.said[who]
            heard = [one for one in heard if not str(one).startswith("echo")]
            assert sorted(map(str, heard)) == sorted(map(str, spans)), "each once"
            for stream in (self.ours[who], self.theirs[who]):
                messages = {message for _, message in stream}
                assert [one for one in heard if one in messages] == [message for _, message in stream]
            assert [spans[one] for one in heard] == sorted(spans.values()), "what left in an earlier tick comes first"


@given(steps=st.lists(st.tuples(st.integers(0, 2), STEPS).map(lambda pair: (pair[0], *pair[1])), max_size=25))
@settings(max_examples=25, deadline=None)
def test_any_mix_is_valid_and_in_order(shared, steps):
    stage, server = shared

    async def main():
        await until(lambda: not stage.manager.active_connections)
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(stage.client(server, offer, room="mix")) for offer in OFFERS.values()
            ]
            mix = Mix(stage, server, clients)
            await mix.run(steps)
            await mix.check()

    asyncio.run(main())


# A slow reader


@offers
async def test_a_client_that_stops_reading_for_a_while_gets_all_frames_whole_and_in_order(scene, offer):
    stage, server = scene
    async with stage.client(server, offer, receive_buffer=4 * KIB) as client:
        (websocket,) = stage.sockets
        ours = theirs = 0
        sending: list[asyncio.Task[None]] = []

        async def stuff() -> bool:
            """Send until a send of the app's own waits: the transport's buffer is above its mark, 64 KiB."""
            nonlocal ours, theirs
            while theirs < 1000:
                for size in (0, 100, 20_000, 66_000):
                    await stage.manager.broadcast(labelled("ours", ours).encode() + NOISE[:size])
                    ours += 1
                await flushed()
                direct = labelled("theirs", theirs).encode() + NOISE[: 50 * KIB]
                sending.append(asyncio.create_task(websocket.send_bytes(direct)))
                theirs += 1
                await flushed()
                if not sending[-1].done():
                    return True
            return False

        async def stuff_more() -> None:
            """Send what has to wait behind that."""
            nonlocal ours
            for size in (0, 10, 65_536, 1, 30_000) * 4:
                await stage.manager.broadcast(labelled("ours", ours, size))
                ours += 1
                await ticks(1)

        assert await server.call(stuff), "the client does not read, and still nothing waits"
        await client.ping(b"while it does not read")
        await server.call(stuff_more)
        assert not sending[-1].done()
        await client.read_until(lambda: len(client.of("text", "bytes")) == ours + theirs)
        assert await server.call(stage.manager.close_room, "r", 4000) == 1
        assert await client.read_to_close() == (4000, "")
        assert numbers(client, "ours") == list(range(ours))
        assert numbers(client, "theirs") == list(range(theirs))
        assert client.of("pong") == [b"while it does not read"]
