"""What a middleware does in its `send` runs where it expects to be; what it raises there, the client is told."""

import asyncio
import logging
from contextvars import ContextVar

import pytest
from fastapi import FastAPI
from support import live, until

from fastapi_rooms import ConnectionDep, Hooks, Incoming, RoomsExtension, RoomsSettings


class Wrapping:
    """A middleware around every `send`; `before` is called with each event."""

    def __init__(self, app, before, *, is_opaque=False):
        self.app = app
        self.before = before
        self.is_opaque = is_opaque

    async def __call__(self, scope, receive, send):
        async def wrapped_receive():
            return await receive()

        async def wrapped_send(event):
            if scope["type"] == "websocket":
                await self.before(event)
            await send(event)

        await self.app(scope, wrapped_receive if self.is_opaque else receive, wrapped_send)


def app_under(before, hooks=None, *, is_opaque=False, **settings):
    rooms = RoomsExtension(settings=RoomsSettings(**settings), hooks=hooks)

    @rooms.ws_route("/ws", room="r")
    async def chat(message: Incoming[str]) -> None:
        await rooms.manager.broadcast_to_room("r", message)

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    app.add_middleware(Wrapping, before=before, is_opaque=is_opaque)
    return app, rooms.manager


async def test_a_client_whose_messages_a_middleware_does_not_let_out_is_told_with_1011_and_others_hear_them(
    loop, caplog
):
    async def refuse(event):
        if event.get("text") == "secret":
            raise LookupError("not for everybody")

    ended = []
    app, manager = app_under(refuse, Hooks(disconnected=ended.append))
    with live(app, loop) as server:
        async with server.client("/ws") as first, server.client("/ws") as second:
            await first.send("hello")
            assert [await first.receive(), await second.receive()] == ["hello", "hello"]
            await server.call(manager.broadcast, "secret")
            assert [await first.closed(), await second.closed()] == [(1011, ""), (1011, "")]
            await until(lambda: len(ended) == 2)
            assert {end.code for end in ended} == {1011}
            assert manager.stats().dropped["lost"] == 2
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [(record.name, record.exc_info[0]) for record in errors] == [("fastapi_rooms", LookupError)]


async def test_a_client_that_a_middleware_does_not_even_let_close_is_hung_up_on(loop, caplog):
    async def refuse(event):
        if event["type"] in ("websocket.send", "websocket.close"):
            raise LookupError("nothing for anybody")

    for is_opaque in (False, True):
        app, manager = app_under(refuse, is_opaque=is_opaque)
        caplog.clear()
        with live(app, loop) as server:
            async with server.client("/ws") as client:
                await client.send("hello")
                assert await client.closed() == (1006, "")
                await until(lambda manager=manager: manager.stats().connections == 0)
        errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.name for record in errors] == ["fastapi_rooms"]


# Where it runs

caller = ContextVar("caller")


class Remembering:
    """A middleware that keeps something in a context variable, and looks at it in `send` and `receive`."""

    def __init__(self, app, seen):
        self.app = app
        self.seen = seen

    async def __call__(self, scope, receive, send):
        async def looking_send(event):
            self.seen.append((event["type"], caller.get()))
            await asyncio.sleep(0)
            self.seen.append((event["type"], caller.get()))
            await send(event)

        async def looking_receive():
            event = await receive()
            self.seen.append((event["type"], caller.get()))
            return event

        if scope["type"] == "websocket":
            caller.set(scope["query_string"].decode())
            await self.app(scope, looking_receive, looking_send)
        else:
            await self.app(scope, receive, send)


@pytest.mark.parametrize("path", ["/per-message", "/busy", "/session"])
async def test_sends_and_receives_run_in_the_context_of_their_connection(loop, path):
    rooms = RoomsExtension()
    seen = []

    @rooms.ws_route("/per-message", room="r")
    async def per_message(message: Incoming[str]) -> None:
        await rooms.manager.broadcast_to_room("r", message)

    @rooms.ws_route("/busy", room="r")
    async def busy(message: Incoming[str]) -> None:
        await asyncio.sleep(0.01)  # so that a task reads on
        await rooms.manager.broadcast_to_room("r", message)

    @rooms.ws_route("/session", room="r")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await rooms.manager.broadcast_to_room("r", message)

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    app.add_middleware(Remembering, seen=seen)
    with live(app, loop) as server:
        async with server.client(f"{path}?a") as first, server.client(f"{path}?b") as second:
            for number in range(3):
                await first.send(str(number))
                assert [await first.receive(), await second.receive()] == [str(number)] * 2
            await server.call(rooms.manager.close_room, "r", 4000)
            assert [await first.closed(), await second.closed()] == [(4000, "")] * 2
            await until(lambda: rooms.manager.stats().closing == 0)
    for who in "ab":
        kinds = [kind for kind, by in seen if by == who]
        assert kinds.count("websocket.send") == 6
        assert kinds.count("websocket.close") == 2
        assert kinds.count("websocket.receive") == (3 if who == "a" else 0)
    assert {by for _, by in seen} == {"a", "b"}
