"""Connections from handshake to the end, on a real server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from support import DEADLINE, HesitantAccept, LiveServer, RawClient, live, until

from fastapi_rooms import (
    Connection,
    ConnectionDep,
    ConnectionManager,
    Incoming,
    ManagerDep,
    MessageType,
    RoomsExtension,
    RoomsSettings,
)


def plain_app(manager: ConnectionManager) -> FastAPI:
    """The endpoint of the FastAPI docs with our manager in it."""
    app = FastAPI()
    app.state.left = []

    @app.websocket("/ws/{room}")
    async def endpoint(websocket: WebSocket, room: str, user: str | None = None) -> None:
        await manager.connect(websocket, room, user)
        try:
            while True:
                await manager.broadcast_to_room(room, await websocket.receive_text())
        except WebSocketDisconnect:
            app.state.left.append(manager.disconnect(websocket))

    return app


async def test_a_plain_endpoint_works_with_a_manager_of_its_own(wire, loop):
    manager = ConnectionManager(RoomsSettings(wire=wire))
    app = plain_app(manager)
    with live(app, loop) as server:
        async with server.client("/ws/a?user=ann") as ann, server.client("/ws/a") as bob, server.client("/ws/b"):
            await until(lambda: manager.active_connections == 3)
            assert sorted(manager.active_rooms) == ["a", "b"]
            await ann.send("hello")
            assert await ann.receive() == await bob.receive() == "hello"
            assert await server.call(manager.send_to_user, "ann", {"n": 1}) == 1
            assert await ann.receive_json() == {"n": 1}
            assert await server.call(manager.broadcast, b"\x00\xff") == 3
            assert await ann.receive() == await bob.receive() == b"\x00\xff"
            (one,) = manager.get_user_connections("ann")
            assert await server.call(manager.broadcast_to_room, "a", "psst", exclude=one) == 1
            assert await bob.receive() == "psst"
        await until(lambda: len(app.state.left) == 3)
        assert {connection.user_id for connection in app.state.left} == {"ann", None}
        assert [sorted(connection.rooms) for connection in app.state.left if connection.user_id] == [["a"]]
        assert manager.active_connections == 0
        assert manager.active_rooms == []


@pytest.mark.parametrize(
    ("target", "code", "reason"), [("room", 4001, "go"), ("user", 1008, ""), ("id", 1000, ""), ("type", 4999, "é" * 80)]
)
async def test_every_way_to_close_sends_a_proper_close_frame_after_what_was_sent(wire, loop, target, code, reason):
    manager = ConnectionManager(RoomsSettings(wire=wire))
    with live(plain_app(manager), loop) as server:
        async with server.client("/ws/r?user=u") as client:
            await until(lambda: manager.active_connections == 1)

            async def end() -> None:
                (connection,) = manager.get_room_members("r")
                for number in range(3):
                    await connection.send(str(number))
                match target:
                    case "room":
                        assert await manager.close_room("r", code, reason) == 1
                    case "user":
                        assert await manager.close_user("u", code, reason) == 1
                    case "id":
                        await manager.close(connection.connection_id, code, reason)
                    case "type":
                        assert await manager.send_to_user("u", (code, reason), MessageType.CLOSE) == 1
                assert manager.active_connections == 0
                assert await manager.send_personal(connection, "too late") is False

            await server.call(end)
            assert [await client.receive() for _ in range(3)] == ["0", "1", "2"]
            assert await client.closed() == (code, reason.encode()[:123].decode(errors="ignore"))


async def test_what_a_client_sent_before_it_went_is_handled(wire, loop):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    handled: list[str] = []

    @rooms.ws_route("/ws", room=lambda: "r")
    async def handle(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> None:
        await asyncio.sleep(0)
        await manager.broadcast_to_room("r", message)
        handled.append(message)

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with live(app, loop) as server:
        raw = RawClient(server, "/ws")
        for number in range(50):
            raw.send_frame(1, b"%d" % number)
        raw.send_frame(8, b"\x03\xe8")
        await until(lambda: len(handled) == 50)
        raw.close()
        assert handled == [str(number) for number in range(50)]
        await until(lambda: rooms.manager.active_connections == 0)


async def test_a_client_that_is_open_misses_nothing(wire):
    manager = ConnectionManager(RoomsSettings(wire=wire))
    hesitant = HesitantAccept(plain_app(manager))
    with live(hesitant) as server:
        async with server.client("/ws/r?user=u") as client:
            await server.call(hesitant.answered.wait)
            assert manager.active_connections == 0
            assert manager.active_rooms == []
            assert manager.get_room_members("r") == manager.get_user_connections("u") == []
            assert await server.call(manager.broadcast_to_room, "r", "room") == 1
            assert await server.call(manager.send_to_user, "u", "user") == 1
            await server.call(hesitant.go_on.set)
            assert [await client.receive(), await client.receive()] == ["room", "user"]
            assert manager.active_connections == 1
            assert [c.user_id for c in manager.get_room_members("r")] == ["u"]


async def test_a_middleware_that_changes_messages_still_sees_them():
    """An unknown wrapper around send is never bypassed."""
    manager = ConnectionManager()
    app = plain_app(manager)

    async def shouting(scope, receive, send):
        async def shout(message):
            if message.get("text"):
                message = {**message, "text": message["text"].upper()}
            await send(message)

        await app(scope, receive, shout)

    with live(shouting, lifespan="off") as server:
        async with server.client("/ws/r") as client:
            await client.send("hello")
            assert await client.receive() == "HELLO"


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # uvicorn announces the end of its older implementation
@pytest.mark.filterwarnings("ignore:The `websockets` implementation")
@pytest.mark.parametrize("implementation", ["wsproto", "websockets"])
async def test_other_websocket_implementations_of_uvicorn_fall_back(implementation):
    manager = ConnectionManager(RoomsSettings(send_timeout=0.3))
    with live(plain_app(manager), ws=implementation) as server:
        async with server.client("/ws/r") as client:
            await client.send("hello")
            assert await client.receive() == "hello"
            assert await server.call(manager.close_room, "r", 4000, "bye") == 1
            assert await client.closed() == (4000, "bye")


async def test_an_endpoint_that_forgets_to_disconnect_leaves_nothing_behind(wire):
    manager = ConnectionManager(RoomsSettings(wire=wire, send_timeout=0.2))
    app = FastAPI()

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await manager.connect(websocket, "r", "u")
        await websocket.receive()

    with live(app) as server:
        async with server.client("/ws") as client:
            await until(lambda: manager.active_connections == 1)
            await client.send("over")
            await until(lambda: manager.active_connections == 0)
        assert manager.active_rooms == []
        assert manager.get_user_connections("u") == []


async def test_vanished_clients_are_forgotten_and_their_users_too(wire, loop):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))

    @rooms.ws_route("/ws/{room}", room="{room}", user_id=lambda: "u")
    async def handle(message: Incoming[str]) -> None: ...

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with live(app, loop) as server:
        async with server.client("/ws/a") as one, server.client("/ws/b") as two:
            await until(lambda: rooms.manager.active_connections == 2)
            one.vanish()
            await until(lambda: rooms.manager.active_rooms == ["b"])
            assert len(rooms.manager.get_user_connections("u")) == 1
            two.vanish()
            await until(lambda: rooms.manager.active_connections == 0)
        assert rooms.manager.get_user_connections("u") == []
        await until(lambda: not [name for name in server.tasks() if name.startswith("fastapi_rooms")])


async def test_stop_closes_everybody_with_1012_and_the_manager_can_be_used_again(wire, loop):
    manager = ConnectionManager(RoomsSettings(wire=wire, send_timeout=0.5))
    with live(plain_app(manager), loop) as server:
        async with server.client("/ws/r") as client:
            await until(lambda: manager.active_connections == 1)
            await server.call(manager.broadcast, "last words")
            await server.call(manager.stop)
            assert await client.receive() == "last words"
            assert (await client.closed())[0] == 1012
        async with server.client("/ws/r") as client:
            await client.send("again")
            assert await client.receive() == "again"


async def test_stop_aborts_who_does_not_read_and_leaves_no_task(wire):
    manager = ConnectionManager(RoomsSettings(wire=wire, send_timeout=1.0, outbox_bytes=1 << 30))
    with live(plain_app(manager)) as server:
        stuck = RawClient(server, "/ws/r")
        await until(lambda: manager.active_connections == 1)
        (connection,) = manager.get_room_members("r")

        async def fill() -> None:
            while not connection._outbox.is_writing or len(connection._outbox) < 3:
                await manager.send_personal(connection, "x" * (1 << 20))
                await asyncio.sleep(0.001)

        await server.call(fill)
        begin = time.monotonic()
        await server.call(manager.stop)
        assert time.monotonic() - begin < 4
        assert not [name for name in server.tasks() if name.startswith("fastapi_rooms")]
        stuck.close()


async def test_a_connection_says_who_it_is(loop):
    manager = ConnectionManager()
    with live(plain_app(manager), loop) as server:
        async with server.client("/ws/r?user=ann"):
            await until(lambda: manager.active_connections == 1)
            (connection,) = manager.get_room_members("r")
            assert isinstance(connection, Connection)
            assert connection.websocket.path_params == {"room": "r"}
            assert connection.connected_at.utcoffset().total_seconds() == 0
            assert connection.rooms == {"r"}
            assert {connection: 1}[connection] == 1


APP = """
from fastapi import FastAPI
from fastapi_rooms import Incoming, RoomsExtension

rooms = RoomsExtension()

@rooms.ws_route("/ws", room=lambda: "r")
async def chat(message: Incoming[str]) -> None:
    await rooms.manager.broadcast_to_room("r", message)

app = FastAPI()
app.include_router(rooms.router)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_line_server_ends_on_a_signal_with_1012_and_without_a_traceback(tmp_path, signum, loop):
    (tmp_path / "main.py").write_text(APP)
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", "--loop", loop]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            log = []
            port = None
            while port is None:
                line = await asyncio.to_thread(process.stderr.readline)
                assert line, "".join(log)
                log.append(line)
                if "running on" in line:
                    port = int(line.split("127.0.0.1:")[1].split()[0])
            from websockets.asyncio.client import connect
            from websockets.exceptions import ConnectionClosed

            async with connect(f"ws://127.0.0.1:{port}/ws") as client:
                await client.send(json.dumps("hello"))
                assert await asyncio.wait_for(client.recv(), DEADLINE) == '"hello"'
                process.send_signal(signum)
                with pytest.raises(ConnectionClosed) as end:
                    await asyncio.wait_for(client.recv(), DEADLINE)
                assert end.value.rcvd.code == 1012
            rest = await asyncio.to_thread(process.stderr.read)
            await asyncio.to_thread(process.wait, DEADLINE)
            assert "Traceback" not in "".join(log) + rest
            assert "Application shutdown complete" in rest
        finally:
            if process.poll() is None:
                process.kill()


async def test_a_server_thread_can_be_started_twice_for_one_app(loop):
    rooms = RoomsExtension()

    @rooms.ws_route("/ws", room=lambda: "r")
    async def chat(message: Incoming[str]) -> str:
        return message

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    for _ in range(2):
        server = LiveServer(app, loop).start()
        async with server.client("/ws") as client:
            await client.send("hello")
            assert await client.receive() == "hello"
        server.stop()
