"""How much anyone may take: each limit with the attack on it, on a real server."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from typing import Any

import pytest
from fastapi import WebSocket
from house import PAIRS, PATHS, PING, RATE_LIMITED, house, read_to_close
from stage import refused, smallest_app
from support import RawClient, counted, frames, live, until
from websockets.exceptions import InvalidStatus

from fastapi_rooms import (
    BackendUnavailable,
    ConnectionDep,
    Incoming,
    ManagerDep,
    Refusal,
    RoomsExtension,
    RoomsSettings,
)
from fastapi_rooms.engine.outbound.wire_choice import server_of

# Messages


@PATHS
async def test_a_message_has_so_many_bytes_and_not_characters(stage, wire, path):
    rooms = house(wire, max_message_bytes=1000)
    async with stage.plays(rooms) as server:
        async with server.client(path) as client:
            await client.send("x" * 1000)
            assert await client.receive() == "1000"
            await client.send("€" * 333)
            assert await client.receive() == "333"
            await client.send("€" * 334)
            assert await client.closed() == (1009, "a message may have 1000 bytes")
        async with server.client(path) as client:
            await client.websocket.send(["x" * 400, "x" * 400, "x" * 400])  # in fragments
            assert (await client.closed())[0] == 1009
        assert rooms.manager.stats().dropped["oversized"] == 2
        assert rooms.manager.stats().received_messages == 2


async def test_without_that_limit_the_servers_own_remains(stage, wire):
    rooms = house(wire, max_message_bytes=None)
    async with stage.plays(rooms) as server, server.client("/handler") as client:
        await client.send("x" * 1_000_000)
        assert await client.receive() == "1000000"


@PATHS
@PAIRS
async def test_a_flood_is_dropped_told_of_once_and_ended_while_others_are_served(stage, wire, loop, path):
    rooms = house(wire, messages_per_second=5, messages_burst=20)
    async with stage.plays(rooms) as server, server.client(path) as neighbour:
        raw = RawClient(server, path)
        frame = b"\x81\x81" + bytes(4) + b"x"
        await asyncio.to_thread(raw.socket.sendall, frame * 1000)
        texts, code = await read_to_close(raw)
        assert code == 1008
        assert texts[RATE_LIMITED.encode()] == 1
        assert 20 <= texts[b"1"] <= 25
        await neighbour.send("hello")
        assert await neighbour.receive() == "5"
        raw.close()
        await until(lambda: rooms.manager.active_connections == 1)
    stats = rooms.manager.stats()
    assert stats.closed["flooding"] == 1
    assert 100 <= stats.dropped["rate_limited"] <= 120
    assert stats.received_messages == texts[b"1"] + 1


@PATHS
async def test_a_flood_that_is_over_costs_what_was_over_and_not_the_client(stage, wire, path):
    rooms = house(wire, messages_per_second=1, messages_burst=10)
    async with stage.plays(rooms) as server, server.client(path) as client:
        for _ in range(60):
            await client.send("x")
        answers = [await client.receive() for _ in range(11)]
        assert sorted(answers) == sorted(["1"] * 10 + [RATE_LIMITED])
        await until(lambda: rooms.manager.stats().dropped["rate_limited"] == 50)
        assert rooms.manager.active_connections == 1


async def test_without_a_rate_anything_goes(stage, wire):
    rooms = house(wire, messages_per_second=None)
    async with stage.plays(rooms) as server, server.client("/handler") as client:
        for _ in range(3000):
            await client.send("x")
        assert {await client.receive() for _ in range(3000)} == {"1"}


async def test_a_burst_in_front_of_a_slow_handler_is_handled_to_the_end(stage, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, messages_per_second=1, messages_burst=10))
    gate = asyncio.Event()

    @rooms.ws_route("/ws")
    async def slow(message: Incoming[str]) -> str:
        await gate.wait()
        return message

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for number in range(10):
            await client.send(str(number))
        await until(lambda: rooms.manager.stats().received_messages == 10)
        await server.call(gate.set)
        assert [await client.receive() for _ in range(10)] == [str(number) for number in range(10)]
        assert rooms.manager.stats().dropped["rate_limited"] == 0


@PATHS
async def test_the_apps_own_limiter_is_asked_for_connects_and_messages(stage, wire, path):
    asked = Counter()

    async def limit(connection: Any, action: str) -> bool:
        await asyncio.sleep(0)
        asked[connection.user_id, action] += 1
        if connection.user_id == "broken":
            raise ConnectionError("Redis is away")
        return connection.user_id == "ann" and asked["ann", "message"] <= 2

    rooms = house(wire, limiter=limit)
    async with stage.plays(rooms) as server:
        answer = await refused(server, f"{path}?name=eve")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
        assert answer.body == b'{"detail":"Too many requests."}'
        async with server.client(f"{path}?name=ann") as client:
            for _ in range(4):
                await client.send("x")
            assert [await client.receive() for _ in range(3)] == ["1", "1", RATE_LIMITED]
            await until(lambda: asked["ann", "message"] == 4)
        async with server.client(f"{path}?name=broken") as client:
            await client.send("x")
            assert await client.receive() == "1"
    assert counted(rooms.manager.stats().refused) == {Refusal.LIMITER: 1}


async def test_no_client_fills_the_log_with_what_it_is_refused(stage, wire, caplog):
    caplog.set_level(logging.DEBUG, "fastapi_rooms")
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire), authorize_join=lambda connection, room: False)

    @rooms.ws_route("/ws")
    async def join(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> None:
        if message == "away":
            raise BackendUnavailable("Redis is away")
        await manager.join_room(connection, message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for room in ["forbidden", "away"] * 10:
            await client.send(room)
        codes = [(await client.receive_json())["code"] for _ in range(20)]
    assert len(set(codes)) == 2
    said = [record for record in caplog.records if record.name == "fastapi_rooms"]
    refused = [record for record in said if "was refused" in record.getMessage()]
    away = [record for record in said if "Redis is away (said once a minute)" in record.getMessage()]
    assert [record.levelname for record in refused] == ["DEBUG"] * 10
    assert [record.levelname for record in away] == ["INFO"]


# Connections


async def test_a_full_node_says_so_before_accept(stage, loop, caplog):
    rooms = house(max_connections=2)
    async with stage.plays(rooms) as server:
        async with server.client("/handler"), server.client("/session"):
            await until(lambda: rooms.manager.active_connections == 2)
            answer = await refused(server, "/handler")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert answer.body == b'{"detail":"The server has too many connections."}'
        await until(lambda: rooms.manager.stats().connections == 0)
        async with server.client("/handler"):
            await until(lambda: rooms.manager.active_connections == 1)
    assert counted(rooms.manager.stats().refused) == {Refusal.MAX_CONNECTIONS: 1}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_user_with_too_many_devices_is_told_before_accept(stage):
    rooms = house(max_connections_per_user=2)
    async with (
        stage.plays(rooms) as server,
        server.client("/handler?name=ann"),
        server.client("/session?name=ann") as second,
    ):
        await until(lambda: rooms.manager.active_connections == 2)
        answer = await refused(server, "/handler?name=ann")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
        async with server.client("/handler?name=bob"), server.client("/handler"), server.client("/handler"):
            pass
        second.vanish()
        await until(lambda: len(rooms.manager.get_user_connections("ann")) == 1)
        async with server.client("/handler?name=ann") as third:
            await third.send("x")
            assert await third.receive() == "1"


@PAIRS
async def test_who_changes_networks_takes_the_place_of_the_old_connection(stage, wire, loop):
    rooms = house(wire, max_connections_per_user=1, user_limit_policy="replace")
    async with stage.plays(rooms) as server:
        lost = RawClient(server, "/session?name=ann")  # nobody answers for it any more
        await until(lambda: rooms.manager.active_connections == 1)
        async with server.client("/handler?name=ann") as client, server.client("/handler?name=bob") as bob:
            await client.send("x")
            assert await client.receive() == "1"
            assert len(rooms.manager.get_user_connections("ann")) == 1
            async with server.client("/session?name=ann") as newest:
                assert await client.closed() == (4509, "replaced by a newer connection")
                await newest.send("xy")
                assert await newest.receive() == "2"
            await bob.send("x")
            assert await bob.receive() == "1"
        assert counted(rooms.manager.stats().closed) == {"replaced": 2}
        assert counted(rooms.manager.stats().refused) == {}
        lost.close()


async def test_a_client_that_hangs_up_while_the_app_is_asked_throws_nobody_out(stage, wire):
    gates: list[asyncio.Event] = []

    async def ask(connection: Any, room: str) -> bool:
        gates.append(asyncio.Event())
        return len(gates) == 1 or await gates[-1].wait()

    settings = RoomsSettings(wire=wire, max_connections_per_user=1, user_limit_policy="replace")
    rooms = RoomsExtension(settings=settings, authorize_join=ask)

    @rooms.ws_route("/ws", room="hall", user_id=lambda: "ann")
    async def echo(message: Incoming[str]) -> str:
        return message

    async with stage.plays(rooms) as server, server.client("/ws") as here:
        _, leaving = await asyncio.open_connection("127.0.0.1", server.port)
        leaving.write(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await until(lambda: len(gates) == 2)
        leaving.transport.abort()
        await until(lambda: len(server.uvicorn.server_state.connections) == 1, "the server has seen it")
        await server.call(gates[1].set)
        await until(lambda: len(server.uvicorn.server_state.tasks) == 1, "its endpoint has ended")
        await here.send("still here")
        assert await here.receive() == "still here"
    assert counted(rooms.manager.stats().closed) == {}


async def test_one_address_has_so_many_connections_whatever_it_says_of_itself():
    rooms = house(max_connections_per_address=1)
    with live(smallest_app(rooms), forwarded_allow_ips="192.0.2.1") as server:  # this client is no trusted proxy
        async with server.client("/handler", additional_headers={"X-Forwarded-For": "198.51.100.1"}):
            await until(lambda: rooms.manager.active_connections == 1)
            for headers in (
                {},
                {"X-Forwarded-For": "198.51.100.2"},
                {"Forwarded": "for=198.51.100.2", "X-Real-IP": "198.51.100.2"},
            ):
                answer = await refused(server, "/handler", additional_headers=headers)
                assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
        await until(lambda: rooms.manager.stats().connections == rooms.manager.stats().closing == 0)
        assert not rooms.manager._registry._addresses


async def test_behind_a_proxy_that_the_server_trusts_the_address_is_that_of_the_client():
    rooms = house(max_connections_per_address=1)
    with live(smallest_app(rooms), forwarded_allow_ips="127.0.0.1") as server:
        first, second = ({"X-Forwarded-For": f"198.51.100.{number}"} for number in (1, 2))
        async with (
            server.client("/handler", additional_headers=first),
            server.client("/handler", additional_headers=second),
        ):
            await until(lambda: rooms.manager.active_connections == 2)
            assert (await refused(server, "/handler", additional_headers=first)).status_code == 429


async def test_a_crowd_that_comes_at_once_does_not_pass_together(stage):
    rooms = house(max_connections=3)
    async with stage.plays(rooms) as server:

        async def come() -> int:
            try:
                async with server.client("/handler") as client:
                    await client.send("x")
                    await client.receive()
                    await leave.wait()
                    return 101
            except Exception as error:  # noqa: BLE001
                return error.response.status_code

        leave = asyncio.Event()
        crowd = [asyncio.create_task(come()) for _ in range(12)]
        await until(lambda: sum(task.done() for task in crowd) == 9)
        leave.set()
        assert Counter(await asyncio.gather(*crowd)) == {503: 9, 101: 3}


@pytest.mark.parametrize("limit", ["max_connections_per_user", "max_connections_per_address"])
async def test_the_app_is_asked_about_no_more_of_a_crowd_than_may_come_in(stage, limit):
    asked = Counter()
    answer = asyncio.Event()

    async def authorize(connection: Any, room: str) -> bool:
        asked[room] += 1
        await answer.wait()
        return True

    rooms = RoomsExtension(settings=RoomsSettings(**{limit: 5}), authorize_join=authorize)

    @rooms.ws_route("/ws", room="a", user_id=lambda: "ann")
    async def handler(message: Incoming[str]) -> str:
        return message

    async with stage.plays(rooms) as server:

        async def come() -> int:
            try:
                async with server.client("/ws") as client:
                    await client.send("x")
                    await client.receive()
                    return 101
            except InvalidStatus as error:
                return error.response.status_code

        crowd = [asyncio.create_task(come()) for _ in range(60)]
        await until(lambda: sum(task.done() for task in crowd) == 55, "who is one too many is told at once")
        assert asked == {"a": 5}
        await server.call(answer.set)
        assert Counter(await asyncio.gather(*crowd)) == {429: 55, 101: 5}


@PAIRS
@pytest.mark.parametrize("limit", ["max_connections_per_address", "max_connections"])
async def test_who_was_closed_holds_a_place_until_the_socket_has_left(stage, wire, loop, limit):
    rooms = house(wire, **{limit: 5}, max_invalid_messages=1)
    stats = rooms.manager.stats
    async with stage.plays(rooms) as server, contextlib.AsyncExitStack() as held:
        for number in range(1, 6):
            raw = RawClient(server, "/handler" if number % 2 else "/session")
            held.callback(raw.close)
            raw.send_frame(2, b"no text")
            await until(lambda number=number: stats().closing == number)
        assert stats().connections == 0
        for _ in range(10):
            assert (await refused(server, "/handler")).status_code == (503 if limit == "max_connections" else 429)
        raw.close()
        await until(lambda: stats().closing < 5)
        async with server.client("/handler") as client:
            await client.send("x")
            assert await client.receive() == "1"
            assert (await refused(server, "/handler")).status_code in (429, 503)
    assert rooms.manager.stats().closed["invalid_data"] == 5


@pytest.mark.parametrize("wire", ["auto", "asgi"])
@pytest.mark.parametrize("options", [{}, {"ws": "wsproto"}], ids=str)
async def test_who_hangs_up_and_comes_back_at_once_finds_a_place(wire, options):
    rooms = house(wire, max_connections_per_address=1, max_connections=1, max_invalid_messages=1)
    with live(smallest_app(rooms), **options) as server:
        for number in range(10):
            async with server.client("/handler") as client:
                await client.send("x")
                assert await client.receive() == "1"
                if number % 2:  # closed by us, in place of the client
                    await client.send(b"bytes")
                    assert (await client.closed())[0] == 1007
            await until(lambda: not rooms.manager.stats().connections)
    assert not counted(rooms.manager.stats().refused)


# Time


@PATHS
@PAIRS
async def test_who_says_nothing_in_time_is_closed_with_4408(stage, wire, loop, path):
    rooms = house(wire, first_message_timeout=0.15)
    async with stage.plays(rooms) as server:
        async with server.client(path) as talker, server.client(path) as client:
            await talker.send("x")
            assert await client.closed() == (4408, "no message came in time")
            await talker.send("xy")
            assert [await talker.receive(), await talker.receive()] == ["1", "2"]
        assert rooms.manager.stats().closed["silent"] == 1


@PATHS
async def test_nobody_is_connected_longer_than_may_be(stage, wire, path):
    rooms = house(wire, max_connection_seconds=0.15)
    async with stage.plays(rooms) as server, server.client(path) as client:
        begin = time.monotonic()
        assert await client.closed() == (1000, "connected for long enough")
        assert rooms.manager.stats().closed["lifetime"] == 1
        assert time.monotonic() - begin > 0.1


@PATHS
@PAIRS
async def test_who_does_not_answer_a_ping_message_is_closed_with_4408(stage, wire, loop, path):
    rooms = house(wire, heartbeat_interval=0.1, heartbeat_timeout=0.1)
    async with stage.plays(rooms) as server:
        raw = RawClient(server, path)
        texts, code = await read_to_close(raw)
        assert (texts, code) == ({PING: 1}, 4408)
        raw.close()
        await until(lambda: rooms.manager.stats().connections == 0)
        assert rooms.manager.stats().closed["silent"] == 1


@pytest.mark.parametrize(("wire", "path"), [("auto", "/handler"), ("asgi", "/session")])
async def test_who_answers_stays(stage, wire, path):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, heartbeat_interval=0.05, heartbeat_timeout=0.5))

    @rooms.ws_route("/handler")
    async def handler(message: Incoming[int]) -> int:
        return message + 1

    @rooms.ws_route("/session")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(int):
            await connection.send(message + 1)

    async with stage.plays(rooms) as server, server.client(path) as client:
        for number in range(2):
            assert await client.receive_json() == {"type": "ping"}
            await client.send({"type": "pong"} if number % 2 else number)
            if not number % 2:
                assert await client.receive_json() == number + 1
        assert rooms.manager.stats().closed["silent"] == 0
        assert rooms.manager.stats().dropped["invalid"] == 0


@pytest.mark.parametrize(("wire", "path"), [("auto", "/handler"), ("asgi", "/session")])
@pytest.mark.parametrize("heartbeat", [None, 3600])
async def test_no_handler_sees_the_answer_to_a_ping_message_where_there_are_any(stage, wire, path, heartbeat):
    """Not even one that takes every text, since it would pass it on to its room."""
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, heartbeat_interval=heartbeat))

    @rooms.ws_route("/handler")
    async def handler(message: Incoming[str]) -> str:
        return message

    @rooms.ws_route("/session")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await connection.send(message)

    pongs = ['{"type":"pong"}', '{"type": "pong", "at": 7}']
    others = ['{"type":"pong","text":"' + "x" * 64 + '"}', '{"type":"say"}', '["pong"]', "pong", ""]
    async with stage.plays(rooms) as server, server.client(path) as client:
        for message in pongs + others:
            await client.send(message)
        for message in others if heartbeat else pongs + others:
            assert await client.receive() == message
        assert rooms.manager.stats().received_messages == len(pongs + others)


async def test_a_plain_endpoint_that_receives_by_itself_is_not_called_silent(stage, wire):
    rooms = house(wire, first_message_timeout=0.05, heartbeat_interval=0.05, heartbeat_timeout=0.05)

    @rooms.router.websocket("/plain")
    async def plain(websocket: WebSocket, manager: ManagerDep) -> None:
        connection = await manager.connect(websocket)
        while True:
            message = await websocket.receive_text()
            if message == "bye":
                break
            await connection.send(message)
        await connection.close()
        manager.disconnect(connection)

    async with stage.plays(rooms) as server, server.client("/plain") as client, server.client("/handler") as measure:
        await client.send("x")
        assert await client.receive() == "x"
        assert (await measure.closed())[0] == 4408, "the time has passed"
        await client.send("y")
        assert await client.receive() == "y"
        await client.send("bye")
        assert (await client.closed())[0] == 1000


# Pings of the protocol


@PAIRS
async def test_a_peer_that_pings_and_does_not_read_is_aborted(stage, wire, loop):
    """The server answers each ping into a buffer that nobody empties: only ending the socket frees it."""
    rooms = house(wire, send_timeout=0.4)
    async with stage.plays(rooms) as server, server.client("/handler") as neighbour:
        with contextlib.closing(RawClient(server, "/handler", receive_buffer=4096)) as raw:
            await until(lambda: rooms.manager.active_connections == 2)
            for connection in rooms.manager.get_room_members("a"):
                # So that pongs fill it soon. Some megabytes of pings at once uvloop reads to their end, before it does
                # anything else: for seconds, where each costs as much as it does under coverage.
                transport = server_of(connection.websocket._receive).transport
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            pings = (b"\x89\xfd" + bytes(4) + b"p" * 125) * 500
            end = threading.Event()

            def flood() -> None:
                with contextlib.suppress(OSError):
                    while not end.wait(0.1):
                        raw.socket.sendall(pings)

            flooding = asyncio.create_task(asyncio.to_thread(flood))
            try:
                await until(lambda: rooms.manager.stats().closed["stalled"] == 1)
            finally:
                end.set()
                await flooding
        await until(lambda: rooms.manager.active_connections == 1)
        await until(lambda: len(rooms.manager._parts.flusher._watched) == 1)
        await neighbour.send("x")
        assert await neighbour.receive() == "1"


async def test_a_peer_that_pings_much_more_than_it_reads_is_aborted(stage, wire):
    """It takes something all the time, so that it never stalls; what the server holds for it grows nevertheless."""
    rooms = house(wire, send_timeout=1.0)
    async with stage.plays(rooms) as server:
        with contextlib.closing(RawClient(server, "/handler", receive_buffer=4096)) as raw:
            await until(lambda: rooms.manager.active_connections == 1)
            pings = (b"\x89\xfd" + bytes(4) + b"p" * 125) * 500
            end = threading.Event()

            def flood() -> None:
                with contextlib.suppress(OSError):
                    while not end.is_set():
                        raw.socket.sendall(pings)

            def read_a_little() -> None:
                with contextlib.suppress(OSError):
                    while not end.wait(0.05):
                        raw.socket.recv(1000)

            busy = [asyncio.create_task(asyncio.to_thread(one)) for one in (flood, read_a_little)]
            try:
                await until(lambda: rooms.manager.stats().closed["stalled"] == 1)
            finally:
                end.set()
                await asyncio.gather(*busy)
        await until(lambda: not rooms.manager.active_connections)


async def test_a_peer_that_pings_and_reads_stays(stage, wire):
    rooms = house(wire, send_timeout=0.2)
    async with stage.plays(rooms) as server:
        raw = RawClient(server, "/handler")
        ping = b"\x89\x84" + bytes(4) + b"ping"
        received = b""
        begin = time.monotonic()
        while time.monotonic() - begin < 0.45:
            await asyncio.to_thread(raw.socket.sendall, ping * 50)
            while len(received) % (50 * 6) or not received:
                received += await asyncio.to_thread(raw.socket.recv, 1 << 16)
            assert set(frames(received)) == {(0x8A, b"ping")}
            received = b""
        assert rooms.manager.active_connections == 1
        assert rooms.manager.stats().closed["stalled"] == 0
        raw.close()
