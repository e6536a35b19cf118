"""Who may join which room: asked of the app, for the room of a route and for every other."""

import asyncio
import threading
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocket
from pydantic import BaseModel
from stage import refused, smallest_app
from support import counted, until

from fastapi_rooms import (
    ConfigurationError,
    Connection,
    ConnectionDep,
    ConnectionManager,
    Incoming,
    JoinRefused,
    ManagerDep,
    Refusal,
    RoomsExtension,
    RoomsSettings,
    ws_route,
)

REFUSED = {"type": "error", "code": "join_refused"}


def add_chat(rooms: RoomsExtension, path: str = "/ws/{name}", **options: Any) -> None:
    """Add a route that joins whatever room its client names, and says in which it is."""

    @rooms.ws_route(path, **{"room": "{name}", **options})
    async def chat(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> list[str]:
        await manager.join_room(connection, message)
        return sorted(connection.rooms)


@pytest.fixture
def asked():
    return []


def forms(asked):
    """The same answer in every form that an app may give it."""

    def plain(connection: Connection, room: str) -> bool:
        asked.append((room, threading.current_thread().name))
        return room != "secret"

    async def coroutine(connection: Connection, room: str) -> bool:
        asked.append((room, threading.current_thread().name))
        await asyncio.sleep(0)
        return room != "secret"

    def raises(connection: Connection, room: str) -> bool:
        if not plain(connection, room):
            raise HTTPException(404, "nobody knows")
        return True

    class Object:
        async def __call__(self, connection: Connection, room: str, limit: int = 5) -> bool:
            return limit == 5 and await coroutine(connection, room)

        def method(self, connection: Connection, room: str) -> bool:
            return plain(connection, room)

    return {"plain": plain, "coroutine": coroutine, "raises": raises, "object": Object(), "method": Object().method}


FORMS = pytest.mark.parametrize("form", ["plain", "coroutine", "raises", "object", "method"])


@FORMS
@pytest.mark.parametrize("of", ["route", "extension"])
async def test_the_room_of_a_route_and_every_other_is_asked_for(stage, wire, form, of, asked, caplog):
    ask = forms(asked)[form]
    rooms = RoomsExtension(
        settings=RoomsSettings(wire=wire),
        # An extension's takes a connection and a room alone, which the object does as well.
        authorize_join=ask if of == "extension" else None,
    )
    add_chat(rooms, authorize_join=ask if of == "route" else None)
    async with stage.plays(rooms) as server:
        answer = await refused(server, "/ws/secret")
        assert (answer.status_code, answer.body) == (403, b'{"detail":"This room may not be joined."}')
        assert rooms.manager.stats().connections == 0
        async with server.client("/ws/open") as client:
            await client.send("secret")
            assert await client.receive_json() == {**REFUSED, "room": "secret"}
            await client.send("other")
            assert await client.receive_json() == ["open", "other"], "the socket stays"
            assert rooms.manager.active_rooms == ["open", "other"]
        assert counted(rooms.manager.stats().refused) == {Refusal.JOIN: 2}
    assert [room for room, _ in asked] == ["secret", "open", "secret", "other"]
    threads = {name for _, name in asked}
    assert (threads == {"uvicorn"}) == (form in ("coroutine", "object")), "a plain function runs in a thread"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def tenant_of(tenant: str) -> str:
    return f"tenant {tenant}"


class Member:
    """A dependency that keeps that it was asked, and cleaned up."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def __call__(self, websocket: WebSocket):
        self.told.append("solved")
        yield {"a", "b"}
        self.told.append("cleaned up")


async def test_further_parameters_are_solved_like_those_of_a_handler(rooms, stage):
    member = Member()
    asked = []
    router = APIRouter(prefix="/{tenant}")

    async def authorize(
        who: Connection,
        where: str,
        tenant: str,
        of: Annotated[str, Depends(tenant_of)],
        members: Annotated[set[str], Depends(member)],
        websocket: WebSocket,
        level: int = 1,
    ) -> bool:
        asked.append((who.user_id, where, tenant, of, websocket is who.websocket, level))
        return where in members

    @ws_route(router, "/{room_id}", room="{room_id}", user_id=lambda: "ann", authorize_join=authorize)
    async def chat(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> list[str]:
        await manager.join_room(connection, message)
        return sorted(connection.rooms)

    app = smallest_app(rooms)
    app.include_router(router)
    async with stage.plays(app) as server:
        async with server.client("/acme/a?level=7") as client:
            await client.send("b")
            assert await client.receive_json() == ["a", "b"]
            await client.send("c")
            assert await client.receive_json() == {**REFUSED, "room": "c"}
            assert member.told == ["solved"], "once, and kept for as long as the connection"
        await until(lambda: member.told == ["solved", "cleaned up"])
        assert asked == [("ann", room, "acme", "tenant acme", True, 7) for room in "abc"]
        assert (await refused(server, "/acme/a?level=high")).status_code == 403
        app.dependency_overrides[tenant_of] = lambda: "another"
        async with server.client("/acme/a") as client:
            await client.send("b")
            await client.receive_json()
        assert asked[-1] == ("ann", "b", "acme", "another", True, 1)


async def test_a_dependency_of_it_that_raises_is_answered_with_its_status(rooms, stage):
    def subscription() -> None:
        raise HTTPException(402)

    async def authorize(connection: Connection, room: str, paid: None = Depends(subscription)) -> bool:
        return True

    add_chat(rooms, authorize_join=authorize)
    async with stage.plays(rooms) as server:
        assert (await refused(server, "/ws/a")).status_code == 402


async def test_a_session_learns_of_it_by_an_exception_and_goes_on(rooms, stage, wire):
    @rooms.ws_route("/ws", authorize_join=lambda connection, room: room == "open")
    async def session(connection: ConnectionDep, manager: ManagerDep) -> None:
        async for room in connection.messages(str):
            try:
                await manager.join_room(connection, room)
            except JoinRefused as error:
                await connection.send(str(error))
        await manager.join_room(connection, "elsewhere", authorize=False)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("closed")
        assert await client.receive() == "authorize_join said no"
        await client.send("open")
        await until(lambda: rooms.manager.active_rooms == ["open"])


async def test_rooms_that_the_app_chooses_are_not_asked_for(stage, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire), authorize_join=lambda *_: False)

    @rooms.ws_route("/ws")
    async def lobby(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> list[str]:
        await manager.join_room(connection, "lobby", authorize=False)
        return sorted(connection.rooms)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("x")
        assert await client.receive_json() == ["lobby"]


async def test_a_client_that_goes_while_the_app_is_asked_leaves_nothing_behind(rooms, stage, wire, caplog):
    gates: list[asyncio.Event] = []

    async def authorize(connection: Connection, room: str) -> bool:
        if room == "slow":
            gates.append(asyncio.Event())
            await gates[-1].wait()
        return True

    add_chat(rooms, authorize_join=authorize)
    async with stage.plays(rooms) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET /ws/slow HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await until(lambda: gates)
        writer.transport.abort()
        async with server.client("/ws/a") as client:
            await client.send("slow")
            await until(lambda: len(gates) == 2)
            client.vanish()
            await until(lambda: rooms.manager.active_rooms == [])
        for gate in gates:
            await server.call(gate.set)
    assert rooms.manager.stats().connections == rooms.manager.stats().rooms == 0
    assert not rooms.manager._parts.admission._asking
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_route_without_a_room_of_its_own_asks_for_each(rooms, stage):
    add_chat(rooms, "/ws", room=None, authorize_join=lambda connection, room: room == "a")
    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("b")
        assert await client.receive_json() == {**REFUSED, "room": "b"}
        await client.send("a")
        assert await client.receive_json() == ["a"]


async def test_one_room_too_many_and_names_that_are_none_are_error_frames(stage, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, max_rooms_per_connection=2))
    add_chat(rooms)
    async with stage.plays(rooms) as server, server.client("/ws/a") as client:
        await client.send("b")
        await client.receive_json()
        await client.send("c")
        assert await client.receive_json() == {"type": "error", "code": "too_many_rooms", "room": "c"}
        for name in ("", "a\nb", "x" * 256, "\u2028", "e\u0301"):
            await client.send(name)
            assert await client.receive_json() == {"type": "error", "code": "invalid_name"}
        await client.send("b")
        assert await client.receive_json() == ["a", "b"]
        assert counted(rooms.manager.stats().refused) == {Refusal.MAX_ROOMS: 1, Refusal.INVALID_NAME: 5}


@pytest.mark.parametrize("path", ["/ws/a%0Ab", "/ws/" + "x" * 256, "/ws/e%CC%81", "/ws/%7F", "/ws/%E2%80%A8"])
async def test_a_name_that_a_client_chose_badly_is_refused_with_400(rooms, stage, path, caplog):
    add_chat(rooms)
    async with stage.plays(rooms) as server:
        answer = await refused(server, path)
        assert (answer.status_code, answer.body) == (400, b'{"detail":"A room or a user cannot be called that."}')
        assert counted(rooms.manager.stats().refused) == {Refusal.INVALID_NAME: 1}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_user_that_cannot_be_called_that_is_refused_with_400(rooms, stage):
    @rooms.ws_route("/ws", user_id=lambda name: name)
    async def route(message: Incoming[str]) -> None:
        """Take it."""

    async with stage.plays(rooms) as server:
        assert (await refused(server, "/ws?name=a%00b")).status_code == 400
        assert (await refused(server, "/ws?name=")).status_code == 400
        async with server.client("/ws?name=%C3%BC"):
            await until(lambda: rooms.manager.get_user_connections("ü"))


# Mistakes, found at decoration


class Body(BaseModel):
    text: str


def takes_one(connection):
    """Cannot be given a room."""


def takes_names(*, connection, room):
    """Cannot be given either by position."""


def takes_anything(connection, room, **values):
    """Cannot be solved."""


def takes_a_body(connection, room, body: Body):
    """Would be a body, which a handshake has not."""


def takes_a_manager(connection, room, manager: ConnectionManager):
    """Lacks its Depends."""


def takes_nobody_knows_what(connection, room, value: "Nowhere"):  # noqa: F821
    """Cannot be read."""


async def says_no_in_vain(connection, room):
    """Would let everybody in: a generator is true."""
    yield False


@pytest.mark.parametrize(
    ("function", "fix"),
    [
        (says_no_in_vain, "yields: write `return`"),
        (7, "authorize_join takes a function, not 7"),
        (takes_one, r"let takes_one\(\) take both"),
        (takes_names, r"let takes_names\(\) take both"),
        (takes_anything, "each parameter so that it can be passed by name"),
        (takes_a_body, r"takes_a_body\(\) cannot be given its parameter body"),
        (takes_a_manager, "write ManagerDep"),
        (takes_nobody_knows_what, "Define what they name at module level"),
    ],
)
def test_what_cannot_be_asked_is_found_at_decoration(function, fix):
    with pytest.raises(ConfigurationError, match=fix):
        ws_route(FastAPI(), "/ws", authorize_join=function)


def test_what_takes_any_two_can_be_asked():
    ws_route(FastAPI(), "/ws", authorize_join=lambda *connection_and_room: True)
