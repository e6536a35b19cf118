"""One client that stops reading never delays a broadcast, a close or the shutdown, and costs bounded memory."""

import asyncio
import contextlib
import socket
import time

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from support import LiveServer, RawClient, frames, live, until

from fastapi_rooms import ConnectionDep, ConnectionManager, Incoming, Overflow, RoomsExtension, RoomsSettings

KIB = 1024
TIGHT = {"outbox_bytes": 256 * KIB, "outbox_messages": 100}


def app_with(**settings):
    rooms = RoomsExtension(settings=RoomsSettings(**settings))

    @rooms.ws_route("/ws/{room}", room="{room}")
    async def chat(room: str, message: Incoming[str]) -> None:
        await rooms.manager.broadcast_to_room(room, message)

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    return app, rooms.manager


async def fill(server: LiveServer, manager: ConnectionManager, fact, *, room: str = "r") -> int:
    """Broadcast 64 KiB messages, one per tick, until the fact holds; return how many were sent."""
    message = "x" * 64 * KIB

    async def broadcast() -> int:
        for count in range(1, 2000):
            await manager.broadcast_to_room(room, message)
            await asyncio.sleep(0.001)
            if fact():
                return count
        raise AssertionError("the fact never held")

    return await server.call(broadcast)


async def test_a_slow_consumer_is_closed_and_everybody_else_hears_everything(wire, loop):
    app, manager = app_with(wire=wire, send_timeout=0.5, **TIGHT)
    with live(app, loop) as server:
        async with server.client("/ws/r", max_size=None, max_queue=None) as healthy:
            stuck = RawClient(server, "/ws/r")
            await until(lambda: manager.active_connections == 2)
            sent = await fill(server, manager, lambda: manager.stats().closed["slow_consumer"])
            for _ in range(sent):
                assert len(await healthy.receive()) == 64 * KIB
            assert manager.active_connections == 1
            await until(lambda: len(server.uvicorn.server_state.connections) == 1)  # it does not take that either
            assert manager.stats().closed["stalled"] == 0, "each connection is counted once"
            stuck.close()


async def test_a_slow_consumer_that_reads_again_gets_what_was_promised_and_then_1013(wire):
    app, manager = app_with(wire=wire, **TIGHT)
    with live(app) as server:
        slow = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        await fill(server, manager, lambda: manager.stats().closed["slow_consumer"])
        received = await asyncio.to_thread(slow.read_to_close)
        assert [kind for kind, _ in received] == [0x81] * (len(received) - 1) + [0x88]
        assert received[-1][1][:2] == (1013).to_bytes(2, "big")
        slow.close()


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.DROP_NEWEST])
async def test_a_policy_that_drops_messages_keeps_the_connection(wire, overflow):
    app, manager = app_with(wire=wire, overflow=overflow, **TIGHT)
    with live(app) as server:
        slow = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        await fill(server, manager, lambda: manager.stats().dropped["lost"] >= 5)
        assert await server.call(manager.broadcast, "last") == (1 if overflow is Overflow.DROP_OLDEST else 0)
        assert await server.call(manager.close_room, "r") == 1
        received = await asyncio.to_thread(slow.read_to_close)
        assert received[-1] == (0x88, (1000).to_bytes(2, "big"))
        assert (received[-2][1] == b"last") == (overflow is Overflow.DROP_OLDEST)
        slow.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="there is no such option on this platform")
async def test_where_the_newest_counts_few_old_values_come_before_it(wire, loop):
    app, manager = app_with(wire=wire, overflow=Overflow.DROP_OLDEST, outbox_messages=1)
    with live(app, loop) as server:
        paused = RawClient(server, "/ws/r", receive_buffer=4096)
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")

        async def tick() -> int:
            for number in range(100_000):
                await manager.broadcast_to_room("r", str(number).ljust(1000))
                await asyncio.sleep(0)
                if manager.stats().dropped["lost"] >= 100:
                    return number
            raise AssertionError("everything finds a place")

        last = await server.call(tick)
        assert last - 100 < 100, "of the megabytes that the kernel would take"
        await server.call(manager.close_room, "r")
        received = await asyncio.to_thread(paused.read_to_close)
        assert [int(text) for _, text in received[-2:-1]] == [last]
        assert connection.close_code == 1000
        paused.close()


@pytest.mark.parametrize("size", [100, 64 * KIB])
async def test_no_burst_within_one_tick_closes_a_healthy_client(wire, loop, size):
    app, manager = app_with(wire=wire, **TIGHT)
    count = 40 * 1024 * KIB // size if size > 100 else 20_000
    with live(app, loop) as server:
        async with server.client("/ws/r", max_size=None, max_queue=None) as client:
            await until(lambda: manager.active_connections == 1)

            async def burst() -> int:
                handed = 0
                for number in range(count):
                    handed += await manager.broadcast_to_room("r", str(number).ljust(size, "."))
                return handed

            assert await server.call(burst) == count
            for number in range(count):
                assert (await client.receive()).rstrip(".") == str(number)
            assert manager.active_connections == 1


async def test_messages_of_one_tick_leave_in_one_write(loop):
    app, manager = app_with()
    with live(app, loop) as server:
        raw = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")
        manager._parts.flusher.is_late = lambda *_: False  # however slow the machine: that is another test's
        writes = []
        wire = connection._outbox._wire
        transport = wire._transport
        wire._transport = type(
            "Counting",
            (),
            {
                "write": lambda _, data: (writes.append(len(data)), transport.write(data)),
                "is_closing": lambda _: transport.is_closing(),
                "get_write_buffer_size": lambda _: transport.get_write_buffer_size(),
                "abort": lambda _: transport.abort(),
            },
        )()

        async def talk() -> None:
            for number in range(100):
                await manager.broadcast_to_room("r", f"{number:03}")
                await manager.send_personal(connection, b"!")

        await server.call(talk)
        data = b""
        while len(data) < 100 * (5 + 3):
            data += await asyncio.to_thread(raw.socket.recv, 1 << 16)
        expected = [frame for n in range(100) for frame in ((0x81, b"%03d" % n), (0x82, b"!"))]
        assert frames(data) == expected
        assert writes == [800]
        raw.close()


async def test_close_returns_at_once_and_the_stuck_peer_is_aborted(wire, loop):
    app, manager = app_with(wire=wire, send_timeout=0.4, outbox_bytes=64 * 1024 * KIB, outbox_messages=10_000)
    with live(app, loop) as server:
        stuck = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")
        await fill(server, manager, lambda: connection._outbox.is_writing and len(connection._outbox) > 3)
        begin = time.monotonic()
        await server.call(manager.close, connection, 4000, "enough")
        assert time.monotonic() - begin < 0.3
        assert manager.active_connections == 0
        await until(lambda: manager.stats().closed["stalled"] == 1)
        stuck.close()


async def test_the_shutdown_does_not_wait_for_a_client_that_does_not_read(wire, loop):
    app, manager = app_with(wire=wire, send_timeout=0.5, outbox_bytes=64 * 1024 * KIB, outbox_messages=10_000)
    server = LiveServer(app, loop).start()
    stuck = RawClient(server, "/ws/r")
    idle = RawClient(server, "/ws/r")
    await until(lambda: manager.active_connections == 2)
    (connection, _) = manager.get_room_members("r")
    await fill(server, manager, lambda: connection._outbox.is_writing)
    assert await asyncio.to_thread(server.stop) < 3
    stuck.close()
    idle.close()


async def test_the_shutdown_does_not_wait_for_a_plain_endpoint_whose_client_does_not_read(wire):
    manager = ConnectionManager(RoomsSettings(wire=wire, send_timeout=0.5))
    app = FastAPI()

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await manager.connect(websocket, "r")
        try:
            while True:
                await manager.broadcast_to_room("r", await websocket.receive_text())
        except WebSocketDisconnect:
            manager.disconnect(websocket)

    server = LiveServer(app).start()
    stuck = RawClient(server, "/ws")
    await until(lambda: manager.active_connections == 1)
    (connection,) = manager.get_room_members("r")
    await fill(server, manager, lambda: connection._outbox.is_writing)
    assert await asyncio.to_thread(server.stop) < 3
    stuck.close()


async def test_a_peer_is_aborted_although_the_rest_lies_below_the_high_water_mark(wire):
    """A few bytes in the transport's buffer, nothing in the outbox: without a sweep nobody would ever notice."""
    app, manager = app_with(wire=wire, send_timeout=0.3)
    with live(app) as server:
        stuck = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")
        await fill_to_the_buffer(server, connection)
        await until(lambda: manager.stats().closed["stalled"] == 1)
        await until(lambda: manager.active_connections == 0)
        stuck.close()


async def fill_to_the_buffer(server: LiveServer, connection) -> None:
    """Send until the kernel takes no more and some bytes lie in the transport's buffer."""

    async def send() -> None:
        while not connection._outbox._wire.buffered():
            await connection.send("x" * 8 * KIB)
            await asyncio.sleep(0)

    await server.call(send)


async def test_memory_for_a_stuck_client_is_bounded_and_freed(wire):
    app, manager = app_with(wire=wire, send_timeout=30, overflow=Overflow.DROP_OLDEST, **TIGHT)
    with live(app) as server:
        stuck = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")
        await fill(server, manager, lambda: manager.stats().dropped["lost"] > 200)
        outbox = connection._outbox
        assert outbox.size <= TIGHT["outbox_bytes"] + 128 * KIB
        assert outbox._wire.buffered() <= 192 * KIB
        stuck.close()
        await until(lambda: manager.active_connections == 0)
        assert len(outbox) == 0


async def test_a_streamed_answer_waits_for_its_client(wire):
    produced = 0
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, send_timeout=30, **TIGHT))

    @rooms.ws_route("/ws")
    async def answer(message: Incoming[str]):
        nonlocal produced
        for _ in range(200):
            produced += 1
            yield "x" * 64 * KIB

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with live(app) as server:
        slow = RawClient(server, "/ws")
        slow.send_frame(1, b"go")
        (connection,) = await until(lambda: list(rooms.manager._registry.all()))
        await until(lambda: connection._outbox.is_writing and connection._outbox._space is not None)
        held = produced
        assert held < 200
        received = 0
        data = b""
        while received < 200 * (64 * KIB + 10):
            data = await asyncio.to_thread(slow.socket.recv, 1 << 20)
            received += len(data)
        assert produced == 200
        assert rooms.manager.stats().closed["slow_consumer"] == 0
        slow.close()


async def test_a_full_inbox_stops_reading_and_closes_with_1013_if_it_stays_full(wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, inbox_messages=4, inbox_timeout=0.3, disconnect_grace=0.1))
    release = asyncio.Event

    @rooms.ws_route("/ws")
    async def work(message: Incoming[str]) -> None:
        await release().wait()

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with live(app) as server:
        async with server.client("/ws") as client:
            for number in range(6):
                await client.send(str(number))
            assert (await client.closed())[0] == 1013
        assert rooms.manager.stats().closed["full_inbox"] == 1


async def test_a_handler_that_works_longer_than_the_keepalive_does_not_cost_its_client(wire):
    """uvicorn stops reading after a message that nobody takes, and then misses the pong."""
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    release = {}

    @rooms.ws_route("/ws")
    async def work(message: Incoming[str]) -> str:
        if message == "long":
            release["event"] = asyncio.Event()
            await release["event"].wait()
        return message

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with live(app, ws_ping_interval=0.1, ws_ping_timeout=0.2) as server:
        async with server.client("/ws") as client:
            pongs = 0
            original = client.websocket.protocol.receive_data

            def count(data: bytes) -> None:
                nonlocal pongs
                pongs += data[:1] == b"\x89"  # uvicorn's pings, which our client answers
                original(data)

            client.websocket.protocol.receive_data = count
            await client.send("long")
            await client.send("next")
            await until(lambda: pongs >= 6, "six pings, twice the time in which a deaf server gives up")
            await server.call(release["event"].set)
            assert await client.receive() == "long"
            assert await client.receive() == "next"


# Where the socket is out of reach: a middleware stands in between and does not say what it wraps


class Opaque:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def wrapped_receive():
            return await receive()

        async def wrapped_send(event):
            await send(event)

        await self.app(scope, wrapped_receive, wrapped_send)


async def test_a_stalled_client_that_cannot_be_aborted_is_closed_with_1013_and_counted_as_that(loop):
    app, manager = app_with(send_timeout=0.5, outbox_bytes=64 * 1024 * KIB, outbox_messages=10_000)
    app.add_middleware(Opaque)
    with live(app, loop) as server:
        stuck = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")
        await fill(server, manager, lambda: connection._outbox.is_writing and len(connection._outbox) > 3)
        await until(lambda: not manager.active_connections)
        received = await asyncio.to_thread(stuck.read_to_close)
        assert received[-1] == (0x88, (1013).to_bytes(2, "big") + b"slow consumer")
        assert connection.close_code == 1013
        closed = manager.stats().closed
        assert (closed["slow_consumer"], closed["stalled"]) == (1, 0)
        stuck.close()


async def test_who_cannot_be_aborted_at_a_stop_is_not_told_that_all_is_well():
    # For so long the server waits, once more, for who begins to read after the stop.
    app, manager = app_with(send_timeout=1.5, outbox_bytes=64 * 1024 * KIB, outbox_messages=10_000)
    app.add_middleware(Opaque)
    with live(app) as server:
        stuck = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")
        await fill(server, manager, lambda: connection._outbox.is_writing and len(connection._outbox) > 3)
        await server.call(manager.stop)
        received = await asyncio.to_thread(stuck.read_to_close)
        assert received[-1][1][:2] == (1012).to_bytes(2, "big")
        stuck.close()


async def test_who_is_behind_when_its_handler_returns_and_is_given_up_is_not_told_that_all_is_well():
    rooms = RoomsExtension(settings=RoomsSettings(send_timeout=0.5, outbox_bytes=64 * 1024 * KIB))

    @rooms.ws_route("/ws", room="r")
    async def endless(connection: ConnectionDep) -> None:
        while connection._outbox.queued() is None:
            await rooms.manager.send_personal(connection, "x" * 64 * KIB)
            await asyncio.sleep(0.001)
        await rooms.manager.send_personal(connection, "the last one")

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    app.add_middleware(Opaque)
    with live(app) as server:
        stuck = RawClient(server, "/ws")
        (connection,) = await until(lambda: list(rooms.manager._registry.all()))
        await until(lambda: connection.close_code == 1000)
        await until(lambda: rooms.manager.stats().dropped["lost"])
        received = await asyncio.to_thread(stuck.read_to_close)
        assert received[-1][1][:2] == (1013).to_bytes(2, "big")
        stuck.close()


async def test_who_takes_no_close_frame_and_cannot_be_aborted_is_not_said_to_be(caplog):
    caplog.set_level("INFO", "fastapi_rooms")
    app, manager = app_with(send_timeout=0.2, outbox_bytes=64 * 1024 * KIB, outbox_messages=10_000)
    app.add_middleware(Opaque)
    with live(app) as server:
        stuck = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")
        await fill(server, manager, lambda: connection._outbox.is_writing and len(connection._outbox) > 3)
        await until(lambda: "does not take its close frame either" in caplog.text)
        told = [record.getMessage() for record in caplog.records if str(connection) in record.getMessage()]
        assert len(told) == 2
        assert not any("aborted" in line for line in told)
        assert manager.stats().closed["stalled"] == 0
        stuck.close()


# Where it is the node that is slow


class Costly:
    """A middleware that takes its time for each message."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def costly_send(event):
            if event["type"] == "websocket.send":
                time.sleep(0.0003)
            await send(event)

        await self.app(scope, receive, costly_send)


async def test_nobody_is_ended_who_reads_while_the_node_is_behind_and_that_is_said(loop, caplog):
    app, manager = app_with(send_timeout=0.3)
    app.add_middleware(Costly)
    behind = []
    with live(app, loop) as server:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(server.client("/ws/r", ping_interval=None)) for _ in range(60)]

            async def broadcast() -> None:
                for number in range(100):
                    await manager.broadcast_to_room("r", str(number))
                    await asyncio.sleep(0)

            async def read(client):
                return [await client.receive() for _ in range(100)]

            async def watch():
                while True:
                    behind.append(manager.stats().behind_seconds)
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            await server.call(broadcast)
            heard = await asyncio.gather(*map(read, clients))
            watching.cancel()
            assert heard == [[str(number) for number in range(100)]] * 60
            assert manager.active_connections == 60
    assert max(behind) > 1
    assert manager.stats().behind_seconds == 0
    [record] = [one for one in caplog.records if "this node is behind" in one.getMessage()]
    assert record.levelname == "WARNING"
