"""How a connection ended is told, and after a day of all kinds of clients nothing is left."""

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Any

import pytest
from engine.fakes import is_empty
from house import PAIRS, PATHS, house
from support import RawClient, until
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from fastapi_rooms import (
    ConnectionDep,
    Hooks,
    Incoming,
    JoinRefused,
    ManagerDep,
    Refusal,
    RoomsExtension,
    RoomsSettings,
)


@pytest.fixture
def ends():
    return []


@pytest.fixture
def told(ends):
    """Hooks that keep every end as (code, reason), and check that each lasted some time."""

    def disconnected(end: Any) -> None:
        assert 0 <= end.seconds < 60
        ends.append((end.code, end.reason))

    return Hooks(disconnected=disconnected)


def reset(client: Any) -> None:
    """Go with a TCP reset."""
    client.websocket.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
    )
    client.websocket.transport.abort()


@PATHS
@PAIRS
async def test_an_end_by_the_client_is_told_with_its_code(stage, wire, loop, path, told, ends):
    rooms = house(wire, hooks=told)
    async with stage.plays(rooms) as server:
        for code, reason in ((4321, "bye"), (1001, "")):
            async with server.client(path) as client:
                await client.websocket.close(code, reason)
            await until(lambda expected=(code, reason): ends[-1:] == [expected])
        for vanish in (lambda client: client.vanish(), reset):
            ends.clear()
            async with server.client(path) as client:
                await until(lambda: rooms.manager.active_connections == 1)
                vanish(client)
            await until(lambda: ends)
            assert ends == [(1006, "")]
        ends.clear()
        raw = RawClient(server, path)
        raw.send_frame(8, b"")  # a close frame without a code
        await until(lambda: ends)
        assert ends == [(1005, "")]
        raw.close()


@PATHS
async def test_an_end_by_the_server_is_told_with_ours(stage, wire, path, told, ends):
    rooms = house(wire, hooks=told, max_message_bytes=10, max_invalid_messages=1)
    async with stage.plays(rooms) as server:
        async with server.client(path) as client:
            await until(lambda: rooms.manager.active_connections == 1)
            await server.call(rooms.manager.close_room, "a", 4000, "enough")
            await client.closed()
        async with server.client(path) as client:
            await client.send("x" * 11)
            await client.closed()
        async with server.client(path) as client:
            await client.send(b"bytes")
            await client.closed()
        async with server.client(path) as client:
            await until(lambda: rooms.manager.active_connections == 1)
            [connection] = rooms.manager.get_room_members("a")
            await server.call(rooms.manager.disconnect, connection)
        async with server.client(path) as client:
            await until(lambda: rooms.manager.active_connections == 1)
            await stage.end_lifespan()
            assert (await client.closed())[0] == 1012
    assert ends == [
        (4000, "enough"),
        (1009, "a message may have 10 bytes"),
        (1007, "too many invalid messages"),
        (None, ""),
        (1012, ""),
    ]
    closed = rooms.manager.stats().closed
    assert (closed["invalid_data"], closed["restart"]) == (1, 1)


async def test_the_end_of_who_does_not_read_is_told(stage, wire, told, ends):
    rooms = house(wire, hooks=told, send_timeout=0.3, outbox_messages=5, outbox_bytes=100_000)
    async with stage.plays(rooms) as server:

        async def fill(fact: Any) -> None:
            while not fact():
                await rooms.manager.broadcast("x" * 60_000)
                await asyncio.sleep(0.001)

        slow = RawClient(server, "/handler", receive_buffer=4096)
        await until(lambda: rooms.manager.active_connections == 1)
        await server.call(fill, lambda: ends)
        assert ends == [(1013, "slow consumer")]
        await until(lambda: not server.uvicorn.server_state.connections)
        slow.close()
        stuck = RawClient(server, "/session", receive_buffer=4096)
        await until(lambda: rooms.manager.active_connections == 1)
        [connection] = rooms.manager.get_room_members("a")
        await server.call(fill, connection._outbox.queued)
        await until(lambda: len(ends) == 2)
        assert ends[1] == (1006, "")
        stuck.close()
    closed = rooms.manager.stats().closed
    assert (closed["slow_consumer"], closed["stalled"]) == (1, 1), "each is counted once"


# After everything


class Books:
    """Every beginning and every end that was told."""

    def __init__(self) -> None:
        self.began, self.ended, self.inside = Counter(), Counter(), Counter()
        self.hooks = Hooks(
            connected=lambda connection: self.began.update([connection]),
            disconnected=lambda end: self.ended.update([end.connection]),
            joined=lambda connection, room: self.inside.update([(connection, room)]),
            left=lambda connection, room: self.inside.subtract([(connection, room)]),
        )


async def vanish(client):
    client.vanish()


async def flood(client):
    for _ in range(120):
        await client.send("lobby")
    await client.closed()


async def shout(client):
    await client.send("x" * 101)
    await client.closed()


async def ask_for_too_much(client):
    for room in ("raise", "forbidden", "bad\n"):
        await client.send(room)
    await client.receive()


async def be_reset(client):
    reset(client)


async def keep_silent(client):
    await client.closed()


VISITS = [vanish, flood, shout, ask_for_too_much, be_reset, keep_silent]


@PAIRS
async def test_after_a_day_of_all_kinds_of_clients_nothing_is_left(stage, wire, loop):
    """Whoever is refused, fails, floods, vanishes or behaves: in the end nobody is counted, and no task is left."""
    books = Books()
    limits = RoomsSettings(
        wire=wire,
        max_connections=30,
        max_connections_per_user=25,
        max_connections_per_address=28,
        messages_per_second=1,
        messages_burst=5,
        max_message_bytes=100,
        first_message_timeout=1,
        max_connection_seconds=2,
        heartbeat_interval=0.2,
        heartbeat_timeout=0.3,
    )
    rooms = RoomsExtension(
        settings=limits, hooks=books.hooks, authorize_join=lambda connection, room: room != "forbidden"
    )

    @rooms.ws_route("/ws/{name}", room="{name}", user_id=lambda name: name)
    async def chat(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> None:
        if message == "raise":
            raise JoinRefused("not today")
        await manager.join_room(connection, message)
        await manager.broadcast_to_room(message, message)

    async def visit(number: int) -> None:
        path = "/ws/forbidden" if number % 7 == 0 else f"/ws/{number % 2}"
        origin = "https://evil.example" if number % 11 == 0 else None
        # Without a limit of its own: with one, this client stops reading, and does not see its end.
        with contextlib.suppress(InvalidHandshake, ConnectionClosed):
            async with server.client(path, origin=origin, max_queue=None) as client:
                await client.send("lobby")
                await VISITS[number % len(VISITS)](client)

    async with stage.plays(rooms) as server:
        await asyncio.gather(*map(visit, range(60)))
        await until(lambda: rooms.manager.stats().connections == 0)
        stats = rooms.manager.stats()
    assert is_empty(rooms.manager)
    assert not rooms.manager._parts.admission._asking
    assert not rooms.manager._parts.readers.tasks
    assert (stats.users, stats.rooms, stats.queued_messages, stats.queued_bytes) == (0, 0, 0, 0)
    assert books.began == books.ended, "each came once and went once"
    assert set(books.inside.values()) <= {0}
    assert stats.refused[Refusal.HTTP_ORIGIN] == 6
    assert "forbidden" not in {room for _, room in books.inside}, "none of the eight was let in"
    assert stats.refused[Refusal.JOIN], "of those for whom there was a place: about the others nobody is asked"
    assert stats.closed["flooding"]
    assert stats.dropped["oversized"]
    assert stats.closed["silent"]
