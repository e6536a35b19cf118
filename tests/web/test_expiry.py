"""Credentials that expire: the connection ends with them, unless the app has new ones."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from fastapi import WebSocket
from stage import refused
from support import counted, until

from fastapi_rooms import ConnectionDep, Identity, Incoming, ManagerDep, Refusal, RoomsExtension, RoomsSettings

LOGIN_EXPIRED = (4401, "the login has expired")


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


class Logins:
    """Those who log in, each for so many seconds from then on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expire_at: list[datetime] = []

    def __call__(self) -> datetime:
        self.expire_at.append(in_seconds(self.seconds))
        return self.expire_at[-1]


def add_route(rooms: RoomsExtension, expires_at) -> None:
    """Add a route of one who logs in until then, and may send for how many seconds more."""

    @rooms.ws_route("/handler", room="a", user_id=lambda: Identity("ann", expires_at()))
    async def handler(message: Incoming[float | None], connection: ConnectionDep, manager: ManagerDep) -> bool:
        return await manager.refresh(connection, None if message is None else in_seconds(message))

    @rooms.ws_route("/session", room="a", user_id=lambda: Identity("ann", expires_at()))
    async def session(connection: ConnectionDep, manager: ManagerDep) -> None:
        async for seconds in connection.messages(float | None):
            await connection.send(await manager.refresh(connection, time.time() + seconds if seconds else None))


PATHS = pytest.mark.parametrize("path", ["/handler", "/session"])


@PATHS
async def test_a_connection_ends_with_its_credentials(rooms, stage, wire, loop, path):
    logins = Logins(0.3)
    add_route(rooms, logins)
    async with stage.plays(rooms) as server:
        async with server.client(path) as client:
            [connection] = await until(lambda: rooms.manager.get_user_connections("ann"))
            assert [connection.expires_at] == logins.expire_at
            assert await client.closed() == LOGIN_EXPIRED
            assert datetime.now(UTC) >= connection.expires_at
        await until(lambda: rooms.manager.stats().connections == 0)
        assert rooms.manager.stats().closed["expired"] == 1
        assert rooms.manager.active_rooms == []


@PATHS
async def test_new_credentials_keep_it_open_and_shorter_ones_end_it_sooner(rooms, stage, wire, path):
    logins = Logins(0.3)
    add_route(rooms, logins)
    async with stage.plays(rooms) as server, server.client(path) as client:
        await client.send("3600")
        assert await client.receive() == "true"
        await until(lambda: datetime.now(UTC) > logins.expire_at[0] + timedelta(seconds=0.05))
        await client.send("null")
        assert await client.receive() == "true", "it has outlived the first"
        [connection] = rooms.manager.get_user_connections("ann")
        assert connection.expires_at is None
        await client.send("0.1")
        assert await client.receive() == "true"
        assert await client.closed() == LOGIN_EXPIRED


@pytest.mark.parametrize("expires_at", [lambda: in_seconds(-1), lambda: in_seconds(0), lambda: 0, lambda: 1.5])
async def test_expired_credentials_do_not_connect(rooms, stage, expires_at):
    add_route(rooms, expires_at)
    async with stage.plays(rooms) as server:
        answer = await refused(server, "/handler")
        assert (answer.status_code, answer.body) == (401, b'{"detail":"The login has expired."}')
        assert counted(rooms.manager.stats().refused) == {Refusal.EXPIRED: 1}
        assert rooms.manager.stats().connections == 0


@pytest.mark.parametrize("expires_at", [datetime(2100, 1, 1), 4e12, "tomorrow"])  # noqa: DTZ001
async def test_what_is_no_time_is_a_mistake_of_the_app_and_lets_nobody_in(rooms, stage, expires_at, tracebacks):
    add_route(rooms, lambda: expires_at)
    async with stage.plays(rooms) as server:
        assert (await refused(server, "/handler")).status_code == 500
        assert rooms.manager.stats().connections == 0
    [traceback] = tracebacks()
    assert "ConfigurationError: expires_at " in traceback


async def test_an_identity_may_be_nobody_and_need_not_expire(rooms, stage):
    @rooms.ws_route("/nobody", user_id=lambda: Identity(None, in_seconds(0.1)))
    async def nobody(message: Incoming[str]) -> None:
        """Take it."""

    @rooms.ws_route("/ann", user_id=lambda: Identity("ann"))
    async def ann(message: Incoming[str], connection: ConnectionDep) -> list[object]:
        return [connection.user_id, connection.expires_at]

    @rooms.ws_route("/broken", user_id=lambda: ("ann", 7))
    async def broken(message: Incoming[str]) -> None:
        """Never comes to this."""

    async with stage.plays(rooms) as server:
        async with server.client("/nobody") as client:
            assert await client.closed() == LOGIN_EXPIRED
        async with server.client("/ann") as client:
            await client.send("x")
            assert await client.receive_json() == ["ann", None]
        assert (await refused(server, "/broken")).status_code == 500


async def test_a_plain_endpoint_is_ended_as_well(rooms, stage, wire):
    codes = []

    @rooms.router.websocket("/plain")
    async def plain(websocket: WebSocket, manager: ManagerDep) -> None:
        connection = await manager.connect(websocket, "a", "ann", expires_at=time.time() + 0.1)
        async for _ in connection.messages(str):
            pass
        codes.append(connection.close_code)

    async with stage.plays(rooms) as server, server.client("/plain") as client:
        assert await client.closed() == LOGIN_EXPIRED
        await until(lambda: codes == [4401])


async def test_a_handler_that_is_busy_when_they_expire_does_not_keep_the_client(stage, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.1))
    release = asyncio.Event

    @rooms.ws_route("/ws", user_id=lambda: Identity("ann", in_seconds(0.2)))
    async def busy(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.send("busy")
        await release().wait()

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("x")
        assert await client.receive() == "busy"
        assert await client.closed() == LOGIN_EXPIRED
        assert await server.call(rooms.manager.broadcast, "secret") == 0
