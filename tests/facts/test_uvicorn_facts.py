"""What `fastapi_rooms.engine` relies on in uvicorn: its default WebSocket protocol, its transports, its shutdown."""

import asyncio
import contextlib
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from support import LiveServer, RawClient, live, until

from fastapi_rooms.domain.messages import Message
from fastapi_rooms.engine.outbound.transport import is_transport
from fastapi_rooms.engine.outbound.uvicorn_wire import MODULE, NAME, is_known_protocol
from fastapi_rooms.engine.outbound.wire_choice import peel

KIB = 1024


class Open:
    """An endpoint that is held open until the test lets it go, and what it looks like inside."""

    def __init__(self) -> None:
        self.websocket: WebSocket | None = None  # set once it is accepted
        self.protocol: Any = None
        self.release = asyncio.Event()  # bound to the server's loop by its first `wait`
        self.ended: list[str] = []

    async def endpoint(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.protocol = peel(websocket._send).__self__
        self.websocket = websocket
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("released")

    @contextlib.asynccontextmanager
    async def served(self, loop: str, **options: Any):
        app = FastAPI()
        app.add_api_websocket_route("/ws", self.endpoint)
        with live(app, loop, **options) as server:
            try:
                yield server
            finally:
                await server.call(self.release.set)
                if self.protocol is not None:
                    await server.call(self.protocol.transport.abort)

    async def fill(self, server: LiveServer) -> "asyncio.Future[Any]":
        """Send to a client that does not read until a send waits; return that send."""

        async def send() -> None:
            while self.protocol.writable.is_set():
                await self.websocket.send_bytes(bytes(64 * KIB))
                await asyncio.sleep(0)  # else a transport that fails is never noticed
            await self.websocket.send_bytes(b"this one waits")

        blocked = server.call(send)
        await until(lambda: not self.protocol.writable.is_set(), "a send waits")
        return blocked


# The protocol object


async def test_the_default_protocol_is_the_one_that_our_wire_was_written_for(loop):
    held = Open()
    async with held.served(loop) as server, server.client("/ws"):
        await until(lambda: held.websocket)
        protocol = held.protocol
        assert (type(protocol).__module__, type(protocol).__name__) == (MODULE, NAME)
        assert is_known_protocol(protocol), "it has lost an attribute that engine/outbound/uvicorn_wire.py reads"
        assert is_transport(protocol.transport), "its transport lacks a method that engine/outbound/wire.py calls"
        assert protocol.writable.is_set()
        assert (protocol.close_sent, protocol.disconnected) == (False, False)


async def test_the_protocol_says_when_either_side_has_ended_it(loop):
    for end in ("server", "client"):
        held = Open()
        async with held.served(loop) as server, server.client("/ws") as client:
            await until(lambda held=held: held.websocket)
            if end == "server":
                await server.call(held.websocket.close)
                assert held.protocol.close_sent
            else:
                client.vanish()
                await until(lambda held=held: held.protocol.disconnected)
                assert held.protocol.transport.is_closing()


async def test_writable_is_cleared_while_the_buffer_is_above_its_mark_and_set_again_below_it(loop):
    held = Open()
    async with held.served(loop) as server:
        raw = RawClient(server, "/ws")
        await until(lambda: held.websocket)
        sending = await held.fill(server)
        assert held.protocol.transport.get_write_buffer_size() > 64 * KIB

        def drain() -> None:
            while not held.protocol.writable.is_set():
                raw.socket.recv(1 << 20)

        await asyncio.to_thread(drain)
        await asyncio.wait_for(sending, 5)
        raw.close()


async def test_a_transport_whose_buffer_is_empty_has_resumed_its_protocol(loop):
    """So `UvicornWire.write_now` need not look at `writable` there."""
    held = Open()
    async with held.served(loop) as server:
        raw = RawClient(server, "/ws", receive_buffer=4 * KIB)
        await until(lambda: held.websocket)
        protocol = held.protocol
        wrong, seen = [], {"paused": 0, "empty": 0}

        def look() -> None:
            is_empty = not protocol.transport.get_write_buffer_size()
            seen["paused"] += not protocol.writable.is_set()
            seen["empty"] += is_empty
            if is_empty and not protocol.writable.is_set():
                wrong.append("here")

        async def watch() -> None:
            """Fill it in all kinds of portions, and look in every tick until it is empty again."""
            for size in (1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 1024 * KIB, 5 * 1024 * KIB) * 3:
                protocol.transport.write(bytes(size))
                look()
                protocol.transport.write(bytes(size))
                look()
                while protocol.transport.get_write_buffer_size():
                    await asyncio.sleep(0)
                    look()

        watching = asyncio.ensure_future(server.call(watch))

        def drain() -> None:
            while not watching.done():
                raw.socket.recv(1 << 16)

        draining = asyncio.create_task(asyncio.to_thread(drain))
        await asyncio.wait_for(watching, 10)
        await server.call(protocol.transport.write, b"so that the thread ends")
        await asyncio.wait_for(draining, 5)
        assert wrong == []
        assert seen["paused"] > 0
        assert seen["empty"] > 0
        raw.close()


async def test_ready_made_frames_can_be_written_beside_a_negotiated_compression(loop):
    """RFC 7692 section 6: an uncompressed frame is legal, and leaves the compression window alone."""
    held = Open()
    async with held.served(loop) as server, server.client("/ws") as client:
        await until(lambda: held.websocket)
        (extension,) = client.websocket.protocol.extensions
        assert extension.name == "permessage-deflate"
        for number in range(3):
            compressed = f"compressed {number} " * 50
            await server.call(held.websocket.send_text, compressed)
            frame = Message(f"ready made {number}".encode(), is_text=True).frame()
            await server.call(held.protocol.transport.write, frame)
            assert await client.receive() == compressed
            assert await client.receive() == f"ready made {number}"


async def test_abort_frees_a_send_that_waits_for_a_client_that_does_not_read(loop):
    held = Open()
    async with held.served(loop) as server:
        raw = RawClient(server, "/ws")
        await until(lambda: held.websocket)
        blocked = await held.fill(server)
        closing = server.call(held.websocket.close)
        await server.call(asyncio.sleep, 0)
        assert not blocked.done()
        assert not closing.done(), "a close waits behind a client that does not read"
        await server.call(held.protocol.transport.abort)
        outcomes = await asyncio.wait_for(asyncio.gather(blocked, closing, return_exceptions=True), 5)
        assert all(isinstance(outcome, Exception) for outcome in outcomes)
        assert held.protocol.disconnected
        raw.close()


async def test_bytes_below_the_high_water_mark_outlive_a_close_until_somebody_aborts(loop):
    held = Open()
    async with held.served(loop) as server:
        raw = RawClient(server, "/ws")
        await until(lambda: held.websocket)
        transport = held.protocol.transport

        async def send_and_close() -> None:
            while not transport.get_write_buffer_size():
                await held.websocket.send_bytes(bytes(8 * KIB))
            await held.websocket.close()

        await asyncio.wait_for(server.call(send_and_close), 5)
        await server.call(transport.close)
        assert transport.get_write_buffer_size() > 0
        assert server.uvicorn.server_state.connections, "it would wait for its buffer for ever"
        await server.call(transport.abort)
        await until(lambda: not server.uvicorn.server_state.connections)
        raw.close()


# What the app hears


async def test_the_app_hears_of_its_own_close_at_once_not_when_the_peer_answers(loop):
    held = Open()
    async with held.served(loop) as server:
        raw = RawClient(server, "/ws")
        await until(lambda: held.websocket)
        await server.call(held.websocket.close, 4000)
        event = await asyncio.wait_for(server.call(held.websocket.receive), 5)
        assert event["type"] == "websocket.disconnect"
        assert server.uvicorn.server_state.connections, "the peer has not answered"
        raw.close()


async def test_a_close_code_arrives_although_the_client_floods(loop):
    held = Open()
    async with held.served(loop) as server, server.client("/ws") as client:
        await until(lambda: held.websocket)
        for _ in range(100):
            await client.send("x" * KIB)
        await server.call(held.websocket.close, 4000, "enough")
        with contextlib.suppress(Exception):
            for _ in range(100):
                await client.send("x" * KIB)
        assert await client.closed() == (4000, "enough")


async def test_a_disconnect_does_not_cancel_the_handler(loop):
    held = Open()
    async with held.served(loop) as server, server.client("/ws") as client:
        await until(lambda: held.websocket)
        client.vanish()
        await until(lambda: held.protocol.disconnected)
        await server.call(asyncio.sleep, 0)
        assert held.ended == []
        await server.call(held.release.set)
        await until(lambda: held.ended)
    assert held.ended == ["released"]


async def test_accepting_a_client_that_is_gone_raises_an_os_error(loop):
    outcome: list[BaseException] = []
    knocked: list[Any] = []
    gate = asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        knocked.append(peel(websocket._send).__self__)
        await gate.wait()
        try:
            await websocket.accept()
        except BaseException as error:
            outcome.append(error)
            raise

    app = FastAPI()
    app.add_api_websocket_route("/ws", endpoint)
    with live(app, loop) as server:
        knocking = asyncio.ensure_future(server.client("/ws").__aenter__())
        await until(lambda: knocked)
        knocking.cancel()
        await asyncio.wait([knocking])
        await until(lambda: knocked[0].disconnected)
        await server.call(gate.set)
        await until(lambda: outcome)
    assert isinstance(outcome[0], OSError), "web/session.py takes an OSError for a client that went"


@pytest.mark.parametrize("error", [None, ValueError("why")])
async def test_a_handler_that_returns_or_raises_without_a_close_leaves_its_client_with_1006(loop, error):
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        if error is not None:
            raise error

    app = FastAPI()
    app.add_api_websocket_route("/ws", endpoint)
    with live(app, loop) as server:
        async with server.client("/ws") as client:
            assert await client.closed() == (1006, "")


async def test_a_client_whose_messages_are_not_read_is_closed_by_the_keepalive(loop):
    """The reason for a reader on every connection."""
    held = Open()
    async with (
        held.served(loop, ws_ping_interval=0.1, ws_ping_timeout=0.5) as server,
        server.client("/ws", ping_interval=None) as idle,
    ):
        await until(lambda: held.websocket)
        protocol = held.protocol
        await until(lambda: protocol.last_ping_rtt, "an idle client answers pings")
        async with server.client("/ws", ping_interval=None) as talking:
            await talking.send("one")
            await talking.send("two")
            assert await talking.closed() == (1011, "keepalive ping timeout")
        assert not protocol.close_sent, "the idle client is still there"
        await server.call(protocol.transport.abort)
        assert (await idle.closed())[0] == 1006


async def test_lifespan_state_is_copied_into_each_scope():
    states: list[dict[str, Any]] = []

    async def endpoint(websocket: WebSocket) -> None:
        states.append(websocket.scope["state"])
        websocket.scope["state"]["mine"] = True
        await websocket.accept()
        await websocket.close()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        yield {"rooms": 7}

    app = FastAPI(lifespan=lifespan)
    app.add_api_websocket_route("/ws", endpoint)
    with live(app) as server:
        for _ in range(2):
            async with server.client("/ws") as client:
                await client.closed()
    assert states == [{"rooms": 7, "mine": True}] * 2
    assert states[0] is not states[1]


# The end


async def test_a_server_that_stops_closes_with_1012_and_waits_for_handlers_before_the_lifespan_ends(loop):
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        events.append("lifespan ends")

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        event = await websocket.receive()
        events.append(f"{event['type']} {event['code']}")

    app = FastAPI(lifespan=lifespan)
    app.add_api_websocket_route("/ws", endpoint)
    with live(app, loop) as server:
        async with server.client("/ws") as client:
            await until(lambda: server.uvicorn.server_state.tasks)
            stopping = asyncio.ensure_future(asyncio.to_thread(server.stop))
            assert (await client.closed())[0] == 1012
            await stopping
    assert events == ["websocket.disconnect 1012", "lifespan ends"]
