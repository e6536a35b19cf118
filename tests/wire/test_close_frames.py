"""Nothing follows a close frame, whoever sends it, although others go on talking to the same socket.

Where uvicorn closes its socket at once, clients here send nothing any more: a kernel answers what comes to a closed
socket with a reset, and drops what the client has not read.
"""

import asyncio
import contextlib

import pytest
from strict_client import CLOSE, PING, TAKEOVER, TEXT
from support import DEADLINE, live, until
from wire_app import NOISE, Stage, flushed, labelled, numbers

KIB = 1024


@contextlib.asynccontextmanager
async def talking(stage, server):
    """Broadcast every tick, in the same tick as everything else that happens."""

    async def talk() -> int:
        count = 0
        while not is_over.is_set():
            await stage.manager.broadcast(labelled("ours", count, 200))
            count += 1
            await asyncio.sleep(0 if count % 50 else 0.001)
        return count

    is_over = asyncio.Event()
    counting = asyncio.ensure_future(server.call(talk))
    try:
        yield counting
    finally:
        await server.call(is_over.set)
        await counting


def is_whole(heard):
    """Whether these are the numbers of a stream up to some point, without a gap."""
    return heard == list(range(len(heard)))


async def by_manager(server, stage, websocket):
    await stage.manager.broadcast("ours 999999 the last")
    await stage.manager.close(websocket, 4000, "bye")


async def by_app(server, stage, websocket):
    await stage.manager.broadcast("ours 1000000 leaves at the end of the tick, which is too late")
    await websocket.close(4000, "bye")


async def by_a_message(server, stage, websocket):
    await stage.manager.broadcast("ours 999999 the last")
    await stage.manager.send_personal(websocket, (4000, "bye"), "close")


async def by_the_end_of_the_server(server, stage, websocket):
    """What uvicorn does with each connection when it stops."""
    await stage.manager.broadcast("ours 1000000 leaves at the end of the tick, which is too late")
    for connection in list(server.uvicorn.server_state.connections):
        connection.shutdown()


END = dict.fromkeys((by_manager, by_app, by_a_message), (4000, "bye")) | {by_the_end_of_the_server: (1012, "")}
closers = pytest.mark.parametrize("close", END)


@closers
async def test_nothing_follows_a_close_by_this_side(scene, close):
    stage, server = scene
    async with stage.client(server, TAKEOVER) as client, talking(stage, server):
        await client.read_until(lambda: len(client.received) > 100)
        (websocket,) = stage.sockets
        client.answers_pings = close is not by_the_end_of_the_server
        if client.answers_pings:
            await client.ping(b"")
        await server.call(close, server, stage, websocket)
        assert await client.read_to_close() == END[close]
        heard = numbers(client, "ours")
        if close in {by_manager, by_a_message}:
            assert heard.pop() == 999999, "the close follows what was sent before"
        assert is_whole(heard)


@pytest.mark.parametrize(
    ("first", "payload", "is_masked", "answer"),
    [
        (0x80 | CLOSE, b"\x0f\xa0", True, 4000),
        (0x80 | CLOSE, b"", True, 1005),
        (0x80 | CLOSE, b"\x03\xec", True, 1002),  # 1004 may not be sent
        (0x80 | TEXT, b"unmasked", False, 1002),
        (0x80 | TEXT, b"\xff", True, 1007),
        (0xC0 | TEXT, b"no deflate", True, 1002),
        (0x83, b"", True, 1002),
        (PING, b"fragment", True, 1002),
    ],
    ids=["close", "empty close", "wrong close", "unmasked", "no UTF-8", "no deflate", "opcode", "fragment"],
)
async def test_nothing_follows_the_answer_to_a_close_or_a_mistake_of_the_client(
    scene, first, payload, is_masked, answer
):
    stage, server = scene
    async with stage.client(server, TAKEOVER) as client, talking(stage, server):
        await client.read_until(lambda: len(client.received) > 100)
        client.answers_pings = False
        await client.send_frame(first, payload, is_masked=is_masked)
        await client.read_until(lambda: client.close_frame)
        assert client.close_frame[0] == answer
        await client.read_to_end()
        assert is_whole(numbers(client, "ours"))


async def test_nothing_follows_the_close_of_a_client_that_answers_no_ping(loop):
    stage = Stage()
    with live(stage.app, loop, ws_ping_interval=0.05, ws_ping_timeout=0.05) as server:
        async with stage.client(server, TAKEOVER) as client, talking(stage, server):
            client.answers_pings = False
            assert await client.read_to_close() == (1011, "keepalive ping timeout")
            assert len(client.of("ping")) == 1
            assert is_whole(numbers(client, "ours"))


async def stuff(stage, waiting):
    """Broadcast to a client that does not read until a send of the app's own waits; return how many there were."""
    for count in range(1000):
        await stage.manager.broadcast(labelled("ours", count).encode() + NOISE)
        await flushed()
        waiting[:] = [asyncio.create_task(stage.sockets[0].send_text("theirs 0"))]
        await flushed()
        if not waiting[0].done():
            return count + 1
    raise AssertionError("the client does not read, and still nothing waits")


@closers
async def test_nothing_follows_a_close_behind_a_full_buffer(scene, close):
    stage, server = scene
    async with stage.client(server, TAKEOVER, receive_buffer=4 * KIB) as client:
        client.answers_pings = False
        waiting = []

        async def close_behind() -> None:
            waiting.append(asyncio.create_task(close(server, stage, stage.sockets[0])))
            await flushed()
            await stage.manager.broadcast("ours 1000000 comes too late for all but the app")

        count = await server.call(stuff, stage, waiting)
        await server.call(close_behind)
        assert await client.read_to_close() == END[close]
        heard = [number for number in numbers(client, "ours") if number < 999999]
        assert is_whole(heard)
        if close in {by_manager, by_a_message}:
            assert numbers(client, "ours") == [*range(count), 999999], "the close follows what was sent before"
        if close is by_the_end_of_the_server:
            assert 1000000 not in numbers(client, "ours")
        await server.call(asyncio.wait, waiting, timeout=DEADLINE)


async def test_nothing_follows_the_answer_to_a_close_behind_a_full_buffer(scene):
    stage, server = scene
    async with stage.client(server, TAKEOVER, receive_buffer=4 * KIB) as client:
        client.answers_pings = False
        waiting = []
        count = await server.call(stuff, stage, waiting)
        await client.close(4000)
        await until(lambda: not stage.manager.active_connections)
        assert await server.call(stage.manager.broadcast, "never") == 0
        assert await client.read_to_close() == (4000, "")
        heard = numbers(client, "ours")
        assert is_whole(heard)
        assert len(heard) <= count
        await server.call(asyncio.wait, waiting, timeout=DEADLINE)
