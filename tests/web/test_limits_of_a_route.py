"""`ws_route(limits=...)`: a chat and a ticker in one app."""

import asyncio

import pytest
from house import PAIRS, RATE_LIMITED
from support import RawClient, until

from fastapi_rooms import (
    ConfigurationError,
    ConnectionDep,
    Incoming,
    Limits,
    ManagerDep,
    Overflow,
    RoomsExtension,
    RoomsSettings,
)

KIB = 1024


def app(wire="auto", **settings):
    """Make a chat with the limits of the node, and two routes with their own."""
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, **settings))

    @rooms.ws_route("/chat", room="all")
    async def chat(message: Incoming[str]) -> int:
        return len(message)

    @rooms.ws_route("/ticker", room="all", limits=Limits(overflow=Overflow.DROP_OLDEST, outbox_messages=1))
    async def ticker(message: Incoming[str]) -> int:
        return len(message)

    @rooms.ws_route("/strict", limits=Limits(messages_per_second=1, messages_burst=2, max_message_bytes=10))
    async def strict(message: Incoming[str]) -> int:
        return len(message)

    @rooms.ws_route("/session", limits=Limits(messages_per_second=1, messages_burst=2, max_message_bytes=10))
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await connection.send(str(len(message)))

    return rooms


@PAIRS
async def test_a_chat_is_closed_where_a_ticker_loses_old_values(stage, wire, loop):
    rooms = app(wire, outbox_bytes=256 * KIB, outbox_messages=20)
    manager = rooms.manager
    async with stage.plays(rooms) as server:
        chat, ticker = RawClient(server, "/chat"), RawClient(server, "/ticker", receive_buffer=4096)
        await until(lambda: manager.active_connections == 2)

        async def tick() -> int:
            for number in range(10_000):
                await manager.broadcast_to_room("all", str(number).ljust(64 * KIB))
                await asyncio.sleep(0)
                if manager.stats().closed["slow_consumer"] and manager.stats().dropped["lost"] > 100:
                    return number
            raise AssertionError("both take everything")

        last = await server.call(tick)
        assert manager.active_connections == 1
        *_, (_, close) = await asyncio.to_thread(chat.read_to_close)
        assert close[:2] == (1013).to_bytes(2, "big")
        await server.call(manager.close_room, "all")
        received = await asyncio.to_thread(ticker.read_to_close)
        assert int(received[-2][1]) == last, "the newest is there"
        chat.close()
        ticker.close()


@pytest.mark.parametrize("path", ["/strict", "/session"])
async def test_messages_are_counted_and_measured_by_the_limits_of_the_route(stage, wire, path):
    rooms = app(wire)
    async with stage.plays(rooms) as server:
        async with server.client("/chat") as free, server.client(path) as strict:
            for _ in range(5):
                await free.send("hi")
                await strict.send("hi")
            assert [await free.receive() for _ in range(5)] == ["2"] * 5
            assert sorted([await strict.receive() for _ in range(3)]) == ["2", "2", RATE_LIMITED]
            await free.send("x" * 11)
            assert await free.receive() == "11"
        async with server.client(path) as strict:
            await strict.send("x" * 11)
            assert await strict.closed() == (1009, "a message may have 10 bytes")
    assert rooms.manager.stats().dropped["rate_limited"] == 3


async def test_connections_of_a_route_share_what_is_made_of_its_limits(stage):
    rooms = app()
    async with stage.plays(rooms) as server, server.client("/session") as one, server.client("/session") as other:
        for client in (one, other):
            await client.send("hi")
            assert await client.receive() == "2"
        connections = list(rooms.manager._parts.registry.all())
        assert connections[0]._settings is connections[1]._settings is not None
        readers = {id(connection._reader._shared) for connection in connections}
        assert len(readers) == 1
        # Tasks of all readers have one owner, whatever their limits.
        assert len(rooms.manager._parts.readers.tasks) == 2
    await until(lambda: not rooms.manager._parts.readers.tasks)


async def test_who_was_connected_by_a_dependency_has_the_limits_of_the_manager(stage):
    rooms = RoomsExtension()

    async def early(connection: ConnectionDep, manager: ManagerDep) -> None:
        await manager.connect(connection.websocket)

    @rooms.ws_route("/early", dependencies=[early], limits=Limits(max_message_bytes=10, messages_per_second=None))
    async def handler(message: Incoming[str]) -> int:
        return len(message)

    async with stage.plays(rooms) as server, server.client("/early") as client:
        await client.send("x" * 11)
        assert await client.receive() == "11"
        (connection,) = rooms.manager._parts.registry.all()
        assert connection._outbox.settings is rooms.manager.settings


def test_limits_that_cannot_be_are_refused_at_the_decoration():
    rooms = RoomsExtension()
    with pytest.raises(ConfigurationError, match="no limit 'max_connections' of its own"):
        rooms.ws_route("/ws", limits={"max_connections": 7})
