"""What a handler sends to its own client: when it is on the wire, how fast, and what ends with the client."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator

import pytest
from fastapi import WebSocket
from stage import smallest_app
from support import until

from fastapi_rooms import (
    ConfigurationError,
    ConnectionDep,
    ConnectionEnded,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
)

BLOCKED_SECONDS = 2
"""How long the loop is blocked at most while a client is to get what was sent before."""


@pytest.fixture
def rooms(wire):
    return RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.05))


class Blocking:
    """What blocks the loop until a client says that it has got something, and notes whether it had to wait in vain."""

    def __init__(self):
        self.seen = threading.Event()
        self.in_time = []

    def step(self):
        self.in_time.append(self.seen.wait(BLOCKED_SECONDS))
        self.seen.clear()


# On the wire before the app's code goes on


async def test_what_is_sent_arrives_while_the_next_step_blocks_the_loop(rooms, stage, wire, loop):
    work = Blocking()

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.send("begun")
        work.step()

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for _ in range(3):
            await client.send("go")
            assert await client.receive() == "begun"
            work.seen.set()
        await until(lambda: len(work.in_time) == 3)
    assert work.in_time == [True] * 3


async def test_what_is_streamed_arrives_while_the_next_value_is_computed(rooms, stage, wire, loop):
    work = Blocking()

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]) -> AsyncIterator[str]:
        for number in range(3):
            time.sleep(0.002)  # it computes
            yield str(number)
            work.step()

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        for number in range(3):
            assert await client.receive() == str(number)
            work.seen.set()
        await until(lambda: len(work.in_time) == 3)
    assert work.in_time == [True] * 3


async def test_what_was_broadcast_goes_out_with_the_next_broadcast_of_a_tick_that_lasts(rooms, stage, wire):
    if wire == "asgi":
        pytest.skip("an ASGI send needs a tick of its own")
    work = Blocking()

    @rooms.ws_route("/ws", room="all")
    async def handler(message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room("all", "one")
        time.sleep(0.01)
        await manager.broadcast_to_room("all", "two")
        work.step()

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert await client.receive() == "one"
        work.seen.set()
        assert await client.receive() == "two"
    assert work.in_time == [True]


# No faster than the client takes it


async def test_who_sends_in_a_loop_leaves_others_their_turn(rooms, stage, wire, loop):
    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        while connection.is_open:
            await connection.send("x" * 100)

    app = smallest_app(rooms)

    @app.get("/alive")
    async def alive() -> str:
        return "yes"

    async with stage.plays(app) as server, server.http() as http:
        async with server.client("/ws") as client:
            for _ in range(3):
                assert await client.receive() == "x" * 100
                assert (await http.get("/alive")).json() == "yes"
            client.vanish()  # to close it would take as long as it takes to read all that is on its way
        await until(lambda: not rooms.manager.active_connections)


async def test_who_sends_to_a_client_that_does_not_read_waits_and_nobody_is_closed_for_it(rooms, stage, wire):
    sent = []

    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        while connection.is_open:
            await connection.send("x" * 50_000)
            sent.append(len(sent))

    async with stage.plays(rooms) as server, server.client("/ws", max_queue=1, compression=None) as client:
        before = -1

        def stands_still():
            nonlocal before
            before, now = len(sent), before
            return now == before > 0

        await until(stands_still, pause=0.3)
        assert rooms.manager.stats().queued_messages < 100
        for number in range(len(sent) + 10):
            assert len(await client.receive()) == 50_000, number
        assert rooms.manager.stats().closed["slow_consumer"] == 0
        client.vanish()


# What ends with the client


async def test_who_pushes_in_a_task_of_the_apps_own_learns_that_the_client_has_gone(rooms, stage, wire):
    pushing = []

    async def push(connection):
        while True:
            await connection.send("news")
            await asyncio.sleep(0.01)

    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        pushing.append(asyncio.create_task(push(connection)))
        async for _ in connection.messages(str):
            pass

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "news"
        await client.websocket.close()
        await until(pushing[0].done)
        with pytest.raises(ConnectionEnded):
            pushing[0].result()


async def test_a_send_that_finds_the_client_gone_ends_a_handler_quietly(rooms, stage, wire, tracebacks):
    ends = []

    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        try:
            while True:
                await connection.send("tick")
                await asyncio.sleep(0.01)
        except ConnectionEnded:
            ends.append("ended")
            raise

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "tick"
    await until(lambda: not rooms.manager.active_connections)
    assert ends in (["ended"], []), "or it was cancelled while it slept"
    assert tracebacks() == []


@pytest.fixture
def others(rooms):
    """The connections of a route."""
    here = []

    @rooms.ws_route("/other")
    async def other(connection: ConnectionDep) -> None:
        here.append(connection)
        await connection.send("here")
        async for _ in connection.messages(str):
            pass

    return here


@contextlib.asynccontextmanager
async def one_has_gone(stage, rooms, others):
    """Serve, when one of the others has come and gone."""
    async with stage.plays(rooms) as server:
        async with server.client("/other") as client:
            assert await client.receive() == "here"
        await until(lambda: not others[0].is_open)
        yield server


def warnings_of(caplog) -> list[str]:
    """Return what an operator finds in the log, which are warnings with a traceback."""
    found = [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]
    assert [(record.levelname, bool(record.exc_info)) for record in found] == [("WARNING", True)] * len(found)
    return [record.getMessage() for record in found]


@pytest.mark.parametrize("is_group", [False, True])
async def test_to_send_to_somebody_else_who_has_gone_ends_the_call_for_one_message(
    stage, rooms, others, caplog, is_group
):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]) -> str:
        if message == "tell" and is_group:
            async with asyncio.TaskGroup() as group:
                group.create_task(others[0].send("psst"))
        elif message == "tell":
            await others[0].send("psst")
        return "done"

    async with one_has_gone(stage, rooms, others) as server, server.client("/ws") as client:
        for text in ("tell", "tell", "else"):
            await client.send(text)
        assert await client.receive() == "done", "of the last message"
    [text] = warnings_of(caplog)
    assert "a handler on '/ws' ended early" in text
    assert "call manager.send_personal there" in text


async def test_to_send_to_somebody_else_who_has_gone_ends_a_session_as_a_failure_that_is_told_once_a_minute(
    stage, rooms, others, caplog
):
    errors = []

    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except ConnectionEnded as error:
            errors.append(error)
            raise

    @rooms.ws_route("/ws", dependencies=[transaction])
    async def session() -> None:
        await others[0].send("psst")

    async with one_has_gone(stage, rooms, others) as server:
        for number in range(2):
            async with server.client("/ws") as client:
                assert (await client.closed())[0] == 1011
            await until(lambda: len(errors) == number + 1)  # noqa: B023 - called within the loop
        await until(lambda: rooms.manager.stats().closing == 0)
    assert [error.connection for error in errors] == others[:1] * 2, "a dependency learns what was not done"
    assert len(warnings_of(caplog)) == 1


async def test_an_error_beside_the_end_of_somebody_else_is_an_error(rooms, stage, wire, tracebacks):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]) -> None:
        raise ExceptionGroup("a task group", [ConnectionEnded("gone"), ValueError("a bug")])

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert (await client.closed())[0] == 1011
    [text] = tracebacks()
    assert "ValueError: a bug" in text


# Tasks beside a handler


async def test_a_task_of_a_connection_is_cancelled_when_its_client_has_gone_and_the_grace_is_over(rooms, stage, wire):
    tasks, ends = [], []

    async def push():
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        tasks.append(connection.start_task(push()))
        await connection.send("started")
        async for _ in connection.messages(str):
            pass

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "started"
        assert ends == []
        await client.websocket.close()
        await until(tasks[0].cancelled)
    assert ends == ["cancelled"]


async def test_a_task_that_fails_closes_its_client_as_a_handler_that_raises(rooms, stage, wire, caplog):
    async def push():
        raise ValueError("a bug")

    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        connection.start_task(push())
        async for _ in connection.messages(str):
            pass

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.closed() == (1011, "")
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info[0] is ValueError
    assert "closed with 1011" in record.message


async def test_a_task_that_finds_its_client_gone_ends_quietly(rooms, stage, wire, caplog):
    tasks = []

    async def push(connection):
        while True:
            await connection.send("news")
            await asyncio.sleep(0.001)

    @rooms.ws_route("/ws")
    async def handler(connection: ConnectionDep) -> None:
        tasks.append(connection.start_task(push(connection)))
        async for _ in connection.messages(str):
            pass

    async with stage.plays(rooms) as server:
        async with server.client("/ws") as client:
            assert await client.receive() == "news"
        await until(tasks[0].done)
        with contextlib.suppress(asyncio.CancelledError), pytest.raises(ConnectionEnded):
            tasks[0].result()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# What a client sent before it went


async def test_all_that_a_client_sent_before_its_close_is_handled_however_long_that_takes(stage, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.3))
    handled = []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[int]) -> str:
        await asyncio.sleep(0.02)
        handled.append(message)
        return "nobody hears this"

    async with stage.plays(rooms) as server:
        async with server.client("/ws") as client:
            for number in range(40):
                await client.send(str(number))
        await until(lambda: len(handled) == 40)
    assert handled == list(range(40))
    assert rooms.manager.stats().dropped["unhandled"] == 0


async def test_what_a_handler_has_no_time_for_any_more_is_counted_and_logged(stage, wire, caplog):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.05))
    caplog.set_level("INFO", "fastapi_rooms")
    taken = []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[int]) -> None:
        taken.append(message)
        if message == 2:
            await asyncio.Event().wait()

    async with stage.plays(rooms) as server:
        async with server.client("/ws") as client:
            for number in range(10):
                await client.send(str(number))
            await until(lambda: taken == [0, 1, 2])
        await until(lambda: rooms.manager.stats().dropped["unhandled"] == 7)
    assert taken == [0, 1, 2]
    assert [
        record.message for record in caplog.records if "7 messages that its handler had not taken" in record.message
    ]


async def test_what_waits_when_this_node_closes_a_client_is_counted(stage, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.05))
    taken = []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[int], connection: ConnectionDep) -> None:
        taken.append(message)
        await until(lambda: connection._reader.received == 5, pause=0.001)
        await connection.close(4000)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for number in range(5):
            await client.send(str(number))
        assert await client.closed() == (4000, "")
        await until(lambda: rooms.manager.stats().dropped["unhandled"] == 4)
    assert taken == [0]


# Receiving beside the reader


RECEIVING = {
    "receive_text": lambda websocket: websocket.receive_text(),
    "receive_bytes": lambda websocket: websocket.receive_bytes(),
    "receive_json": lambda websocket: websocket.receive_json(),
    "receive": lambda websocket: websocket.receive(),
    "iter_text": lambda websocket: anext(websocket.iter_text()),
    "accept": lambda websocket: websocket.accept(),
}


@pytest.mark.parametrize("call", RECEIVING)
async def test_a_handler_that_uses_the_websocket_itself_is_told_what_to_write(stage, wire, call, tracebacks):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))

    @rooms.ws_route("/session")
    async def session(websocket: WebSocket) -> None:
        await RECEIVING[call](websocket)

    @rooms.ws_route("/handler")
    async def handler(websocket: WebSocket, message: Incoming[str]) -> None:
        await RECEIVING[call](websocket)

    said = "accepted already: leave" if call == "accept" else r"async for message in connection.messages(str)"
    async with stage.plays(rooms) as server:
        async with server.client("/session") as client:
            assert (await client.closed())[0] == 1011
        async with server.client("/handler") as client:
            await client.send("hello")
            assert (await client.closed())[0] == 1011
    assert [said in traceback for traceback in tracebacks()] == [True, True]


async def test_an_endpoint_that_iterates_over_messages_cannot_receive_beside_that(stage):
    rooms = RoomsExtension()
    facts = []

    @rooms.router.websocket("/ws")
    async def endpoint(websocket: WebSocket, manager: ManagerDep) -> None:
        connection = await manager.connect(websocket)
        facts.append(await websocket.receive_text())
        messages = connection.messages(str)
        with pytest.raises(ConfigurationError):
            await websocket.receive_text()
        facts.append(await anext(messages))

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("one")
        await until(lambda: facts == ["one"])
        await client.send("two")
        await until(lambda: facts == ["one", "two"])


async def test_a_websocket_of_a_class_of_the_apps_own_is_left_as_it_is(stage):
    class Mine(WebSocket):
        pass

    rooms = RoomsExtension()
    kinds = []

    @rooms.router.websocket("/ws")
    async def endpoint(websocket: WebSocket, manager: ManagerDep) -> None:
        connection = await manager.connect(Mine(websocket.scope, websocket._receive, websocket._send))
        connection.messages(str)
        kinds.append(type(connection.websocket))

    async with stage.plays(rooms) as server, server.client("/ws"):
        await until(lambda: kinds == [Mine])
