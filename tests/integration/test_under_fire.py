"""What goes wrong in the field, and must cost nobody else anything."""

import asyncio
import gc
import ssl
import weakref

import pytest
import trustme
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from support import DEADLINE, HesitantAccept, LiveServer, RawClient, live, until
from websockets.asyncio.client import connect

from fastapi_rooms import (
    Connection,
    ConnectionDep,
    ConnectionManager,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
)

KIB = 1024


def echo_app(rooms: RoomsExtension) -> FastAPI:
    @rooms.ws_route("/ws", room=lambda: "r")
    async def echo(message: Incoming[str]) -> str:
        return message

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    return app


async def test_a_tls_client_that_leaves_silences_nobody(wire, loop, tmp_path):
    """asyncio's TLS transport cannot be asked anything once uvicorn has closed it twice."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    with certificate.private_key_and_cert_chain_pem.tempfile() as pem:
        manager = ConnectionManager(RoomsSettings(wire=wire, send_timeout=0.4))
        app, held = FastAPI(), asyncio.Event()

        @app.websocket("/ws")
        async def endpoint(websocket: WebSocket) -> None:
            await manager.connect(websocket, "r")
            try:
                while await websocket.receive_text() != "hold":
                    pass
                await held.wait()  # busy: it learns later that the client is gone
                await websocket.receive_text()
            except WebSocketDisconnect:
                manager.disconnect(websocket)

        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        server = LiveServer(app, loop, ssl_certfile=pem, ssl_keyfile=pem).start()
        url = server.url("/ws", "wss")
        async with connect(url, ssl=trusting) as leaving, connect(url, ssl=trusting) as staying:
            await leaving.send("hold")
            await until(lambda: manager.active_connections == 2)
            await leaving.close()
            for text in ("one", "two", "three"):
                await server.call(manager.broadcast, text)
                assert await asyncio.wait_for(staying.recv(), DEADLINE) == text
            await until(lambda: manager.active_connections == 1)
            await server.call(held.set)
        await server.call(manager.stop)
        await asyncio.to_thread(server.stop)


async def test_a_client_that_reads_slowly_is_not_one_that_does_not_read(loop):
    """The transport's buffer stands still for seconds meanwhile: only the kernel knows of the progress."""
    rooms = RoomsExtension(settings=RoomsSettings(send_timeout=0.5, outbox_bytes=64 * 1024 * KIB))
    with live(echo_app(rooms), loop) as server:
        slow = RawClient(server, "/ws", receive_buffer=4 * KIB)
        await until(lambda: rooms.manager.active_connections == 1)
        await server.call(rooms.manager.broadcast, "x" * 16 * 1024 * KIB)
        read = 0
        end = asyncio.get_running_loop().time() + 2.5  # five times what a peer without progress has
        while asyncio.get_running_loop().time() < end:
            read += len(await asyncio.to_thread(slow.socket.recv, 4 * KIB))
            await asyncio.sleep(0.02)
        assert read
        assert rooms.manager.stats().closed["stalled"] == 0
        assert rooms.manager.active_connections == 1
        await until(lambda: rooms.manager.stats().closed["stalled"] == 1)  # now it does not read at all
        slow.close()


async def test_a_client_that_reads_what_the_app_sends_by_itself_is_not_aborted(wire):
    manager = ConnectionManager(RoomsSettings(wire=wire, send_timeout=0.4))
    app = FastAPI()

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        connection = await manager.connect(websocket)
        await connection.send("begin")
        try:
            while True:
                await websocket.send_bytes(bytes(64 * KIB))  # around the outbox, as fast as it can
        except WebSocketDisconnect:
            manager.disconnect(websocket)

    with live(app) as server:
        reading = RawClient(server, "/ws")
        end = asyncio.get_running_loop().time() + 2
        while asyncio.get_running_loop().time() < end:
            assert await asyncio.to_thread(reading.socket.recv, 64 * KIB)
            await asyncio.sleep(0.01)
        assert manager.stats().closed["stalled"] == 0
        reading.close()
        await until(lambda: manager.active_connections == 0)


async def test_what_follows_a_burst_reaches_a_healthy_client_too(wire, loop):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    with live(echo_app(rooms), loop) as server:
        async with server.client("/ws", max_size=None) as client:
            await until(lambda: rooms.manager.active_connections == 1)

            async def burst() -> None:
                for _ in range(160):
                    await rooms.manager.broadcast("x" * 256 * KIB)
                for text in ("one", "two"):
                    await asyncio.sleep(0)
                    assert await rooms.manager.broadcast(text) == 1

            await server.call(burst)
            for _ in range(160):
                assert len(await client.receive()) == 256 * KIB
            assert [await client.receive(), await client.receive()] == ["one", "two"]


async def test_a_flood_of_pings_after_the_close_does_not_hold_up_the_shutdown(wire, loop):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, send_timeout=0.5))
    server = LiveServer(echo_app(rooms), loop).start()
    flooding = RawClient(server, "/ws")
    await until(lambda: rooms.manager.active_connections == 1)
    await server.call(rooms.manager.close_room, "r")
    pings = b"".join([b"\x89\xfd" + bytes(4) + bytes(125)] * 500)
    flooding.socket.settimeout(0.5)
    try:
        for _ in range(400):  # 25 MB of pings: their pongs fill every buffer on the way
            await asyncio.to_thread(flooding.socket.sendall, pings)
    except OSError:
        pass  # it was aborted meanwhile
    assert await asyncio.to_thread(server.stop) < 4
    flooding.close()


@pytest.mark.parametrize("how", ["close_room", "disconnect"])
async def test_a_connection_that_is_ended_during_its_handshake_ends_with_a_close_frame(wire, how):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    hesitant = HesitantAccept(echo_app(rooms))
    with live(hesitant) as server:
        async with server.client("/ws") as client:
            await server.call(hesitant.answered.wait)
            if how == "close_room":
                assert await server.call(rooms.manager.close_room, "r", 4000, "bye") == 1
            else:
                (connection,) = rooms.manager._registry.all()
                assert await server.call(rooms.manager.disconnect, connection) is connection
            await server.call(hesitant.go_on.set)
            assert await client.closed() == ((4000, "bye") if how == "close_room" else (1000, ""))


async def forget_and_return(connection: ConnectionDep, manager: ManagerDep) -> None:
    manager.disconnect(connection)


async def forget_and_raise(connection: ConnectionDep, manager: ManagerDep) -> None:
    manager.disconnect(connection)
    raise ValueError("why")


async def await_what_was_cancelled(connection: ConnectionDep) -> None:
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


class Unusual(BaseException):
    pass


async def raise_something_unusual() -> None:
    raise Unusual


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        (forget_and_return, 1000),
        (forget_and_raise, 1011),
        (await_what_was_cancelled, 1011),
        (raise_something_unusual, 1011),
    ],
)
async def test_however_a_handler_ends_its_client_gets_a_close_frame(wire, handler, code):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    rooms.ws_route("/ws")(handler)
    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with live(app) as server:
        async with server.client("/ws") as client:
            assert (await client.closed())[0] == code
        await until(lambda: not [name for name in server.tasks() if name.startswith("fastapi_rooms")])


async def test_connections_that_have_ended_are_freed_without_the_garbage_collector(wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    seen: list[weakref.ref[Connection]] = []

    @rooms.ws_route("/ws", room=lambda: "r", user_id=lambda: "u")
    async def note(message: Incoming[str], connection: ConnectionDep) -> str:
        seen.append(weakref.ref(connection))
        return message

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with live(app) as server:
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                async with server.client("/ws") as client:
                    await client.send("hello")
                    assert await client.receive() == "hello"
            await until(lambda: not any(reference() for reference in seen))
            assert len(seen) == 10
        finally:
            gc.enable()
