"""Who was told to go costs the node no more, and what the server ends by itself is told as what it was."""

import asyncio
import contextlib
import threading

import pytest
from house import PAIRS, PATHS, house
from stage import smallest_app
from support import RawClient, live, until

from fastapi_rooms import ConnectionDep, Hooks, RoomsExtension, RoomsSettings
from fastapi_rooms.engine.outbound.closing_handshake import UNREAD_BYTES

KERNELS = 24 << 20
"""More than the two sockets of a connection on this machine hold; uvicorn's ten seconds take some hundred megabytes."""


class Flooder(RawClient):
    """Sends as fast as it can, whatever it is told, until its socket is ended."""

    after_close = 0
    """How many bytes were taken of it after it had read its close frame."""

    def flood(self) -> None:
        frames = (b"\x81\xfe\x10\x00" + bytes(4) + bytes(4096)) * 16
        with contextlib.suppress(ConnectionError):
            while self.after_close < KERNELS:
                sent = self.socket.send(frames)
                self.after_close += sent * self.was_told.is_set()

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.was_told = threading.Event()


@PATHS
@PAIRS
async def test_who_is_thrown_out_and_goes_on_is_read_no_more(stage, wire, loop, path):
    rooms = house(wire, messages_per_second=5, messages_burst=20)
    async with stage.plays(rooms) as server, server.client(path) as neighbour:
        flooder = Flooder(server, path)
        flood = asyncio.create_task(asyncio.to_thread(flooder.flood))
        received = b""
        while b"\x88" not in received or b"\x03\xf0" not in received:
            received += await asyncio.to_thread(flooder.socket.recv, 1 << 16)
        flooder.was_told.set()
        await neighbour.send("hello")
        assert await neighbour.receive() == "5"
        await flood
        assert flooder.after_close < KERNELS, "it is ended, and not read on"
        flooder.close()
        await until(lambda: rooms.manager.stats().closing == 0)
        assert rooms.manager.stats().closed["flooding"] == 1
        assert rooms.manager.stats().closed["stalled"] == 0


@PAIRS
async def test_who_was_closed_by_the_app_itself_is_read_no_more_either(stage, wire, loop):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, messages_per_second=None))

    @rooms.ws_route("/closes")
    async def closes(connection: ConnectionDep) -> None:
        await connection.websocket.close(4000, "enough")

    @rooms.ws_route("/forgets")
    async def forgets(connection: ConnectionDep) -> None:
        rooms.manager.disconnect(connection)

    async with stage.plays(rooms) as server:
        for path in ("/closes", "/forgets"):
            flooder = Flooder(server, path)
            flooder.was_told.set()
            await asyncio.to_thread(flooder.flood)
            assert flooder.after_close < KERNELS, "it is ended, and not read on"
            flooder.close()


@PATHS
@PAIRS
async def test_what_was_on_its_way_does_not_disturb_the_closing_handshake(stage, wire, loop, path):
    rooms = house(wire)
    async with stage.plays(rooms) as server:
        raw = RawClient(server, path)
        await until(lambda: rooms.manager.active_connections == 1)
        await server.call(rooms.manager.close_room, "a", 4000, "enough")
        raw.send_frame(2, bytes(UNREAD_BYTES // 2))
        [(kind, frame)] = await asyncio.to_thread(raw.read_to_close)
        assert (kind, frame) == (0x88, b"\x0f\xa0enough")
        assert await asyncio.to_thread(raw.read_to_end) == b"", "the answer was read, so the server ends the socket"
        raw.close()
        await until(lambda: rooms.manager.stats().closing == 0)


@pytest.mark.parametrize("protocol", ["websockets-sansio", "websockets"])
@pytest.mark.parametrize("wire", ["auto", "asgi"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The `websockets` implementation is deprecated")
async def test_a_pong_that_does_not_come_is_told_as_what_the_client_saw(wire, protocol):
    ends = []
    rooms = house(wire, hooks=Hooks(disconnected=lambda end: ends.append((end.code, end.reason))))
    with live(smallest_app(rooms), ws=protocol, ws_ping_interval=0.05, ws_ping_timeout=0.1) as server:
        raw = RawClient(server, "/handler")
        *pings, (kind, frame) = await asyncio.to_thread(raw.read_to_close)
        assert {ping for ping, _ in pings} == {0x89}
        assert (kind, frame[:2]) == (0x88, (1011).to_bytes(2))
        raw.close()
        await until(lambda: ends)
    assert ends == [(1011, frame[2:].decode())]
    assert "keepalive ping timeout" in ends[0][1]
    closed = rooms.manager.stats().closed
    assert {reason: count for reason, count in closed.items() if count} == {"by_server": 1}


@pytest.mark.parametrize("wire", ["auto", "asgi"])
async def test_what_the_server_does_not_read_is_counted_and_what_the_app_closes_is_not(wire):
    ends = []
    rooms = RoomsExtension(
        settings=RoomsSettings(wire=wire), hooks=Hooks(disconnected=lambda end: ends.append((end.code, end.reason)))
    )

    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await connection.websocket.close(4000, message)

    with live(smallest_app(rooms), ws_max_size=100) as server:
        async with server.client("/ws") as client:
            await client.send("x" * 101)
            assert (await client.closed())[0] == 1009
        await until(lambda: len(ends) == 1)
        async with server.client("/ws") as client:
            await client.send("enough")
            assert await client.closed() == (4000, "enough")
        async with server.client("/ws") as client:
            await client.websocket.close(4001, "bye")
        await until(lambda: len(ends) == 3)
    assert [code for code, _ in ends] == [1009, 4000, 4001]
    assert rooms.manager.stats().closed["by_server"] == 1
