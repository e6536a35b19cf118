"""How a `ws_route` ends: handlers that raise or return, clients that go, dependencies that clean up."""

import asyncio
import functools
import logging
from typing import Annotated, Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocket, WebSocketDisconnect, WebSocketException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from stage import smallest_app
from starlette.exceptions import HTTPException as StarletteHTTPException
from support import until

from fastapi_rooms import (
    ConnectionDep,
    ConnectionEnded,
    Incoming,
    ManagerDep,
    MessageError,
    RefusedError,
    RoomsExtension,
    RoomsSettings,
    ws_route,
)


class AppError(Exception):
    """What an app raises and handles by itself."""


class Cleanup:
    """A `yield` dependency that keeps what it saw."""

    def __init__(self, reaction: Exception | str | None = None) -> None:
        self.saw: list[BaseException | None] = []  # one entry per clean-up; None: no exception
        self.connections_open: list[bool] = []
        self.reaction = reaction  # None: pass the exception on; "swallow"; or what to raise instead

    async def __call__(self, connection: ConnectionDep):
        try:
            yield self
        except Exception as error:
            self.saw.append(error)
            if isinstance(self.reaction, Exception):
                raise self.reaction from error
            if self.reaction is None:
                raise
        else:
            self.saw.append(None)
        finally:
            self.connections_open.append(connection.is_open)


def app_that_raises(rooms: RoomsExtension, error: Exception, *cleanups: Any) -> FastAPI:
    """Make an app whose handler and session raise; both greet first, so that the socket is surely open."""

    @rooms.ws_route("/handler", room="hall", dependencies=cleanups)
    async def handler(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.send("before")
        raise error

    @rooms.ws_route("/session", room="hall", dependencies=cleanups)
    async def session(connection: ConnectionDep) -> None:
        async for _ in connection.messages(str):
            await connection.send("before")
            raise error

    return smallest_app(rooms)


async def how_it_ends(server, path: str) -> tuple[int, str]:
    async with server.client(path) as client:
        await client.send("go")
        assert await client.receive() == "before"
        return await client.closed()


PATHS = pytest.mark.parametrize("path", ["/handler", "/session"])


# The handler raises


@PATHS
async def test_a_handler_that_raises_closes_with_1011_and_leaves_one_traceback(
    rooms, stage, wire, loop, path, tracebacks
):
    app = app_that_raises(rooms, ValueError("secret detail"))
    async with stage.plays(app) as server:
        assert await how_it_ends(server, path) == (1011, "")
        await until(lambda: rooms.manager.active_connections == 0)
        assert rooms.manager.active_rooms == []
    (traceback,) = tracebacks()
    assert traceback.count("ValueError: secret detail") == 1


async def test_whatever_raises_ends_with_1011_and_one_traceback(rooms, stage, wire, tracebacks):
    @rooms.ws_route("/plain")
    def plain(message: Incoming[str]) -> None:
        raise ValueError(message)

    @rooms.ws_route("/stream")
    async def stream(message: Incoming[str]):
        yield "before"
        raise ValueError(message)

    @rooms.ws_route("/answer")
    async def answer(message: Incoming[str]) -> Any:
        return object()

    @rooms.ws_route("/group")
    async def group(message: Incoming[str]) -> None:
        async def fail() -> None:
            raise ValueError(message)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    @rooms.ws_route("/timeout")
    async def timeout(message: Incoming[str]) -> None:
        raise TimeoutError(message)

    async with stage.plays(rooms) as server:
        for path in ("/plain", "/stream", "/answer", "/group", "/timeout"):
            async with server.client(path) as client:
                await client.send("go")
                assert await client.closed() == (1011, ""), path
    assert len(tracebacks()) == 5
    assert len([traceback for traceback in tracebacks() if MessageError.__name__ in traceback]) == 1


@PATHS
@pytest.mark.parametrize("kind", ["async", "sync", "object", "partial"])
async def test_an_exception_handler_sees_the_error_once_and_its_response_is_dropped(
    rooms, stage, wire, path, kind, tracebacks
):
    seen = []
    app = app_that_raises(rooms, error := AppError("why"))

    async def handle(request: Any, error: Exception) -> JSONResponse:
        seen.append((isinstance(request, WebSocket), error))
        return JSONResponse({"error": str(error)}, 400)

    def handle_in_a_thread(request: Any, error: Exception) -> JSONResponse:
        seen.append((isinstance(request, WebSocket), error))
        return JSONResponse({"error": str(error)}, 400)

    class Handle:
        async def __call__(self, request: Any, error: Exception) -> JSONResponse:
            return await handle(request, error)

    handlers = {
        "async": handle,
        "sync": handle_in_a_thread,
        "object": Handle(),
        "partial": functools.partial(handle),
    }
    app.add_exception_handler(AppError, handlers[kind])
    async with stage.plays(app) as server:
        assert await how_it_ends(server, path) == (1011, "")
    assert seen == [(True, error)]
    assert tracebacks() == []


async def test_an_exception_handler_for_a_parent_class_is_found(rooms, stage, tracebacks):
    seen = []

    class SpecialError(AppError):
        pass

    app = app_that_raises(rooms, SpecialError())

    @app.exception_handler(AppError)
    async def handle(request: Any, error: Exception) -> JSONResponse:
        seen.append(type(error))
        return JSONResponse({}, 400)

    async with stage.plays(app) as server:
        assert (await how_it_ends(server, "/handler"))[0] == 1011
    assert seen == [SpecialError]
    assert tracebacks() == []


async def test_an_exception_handler_of_the_outer_app_serves_a_mounted_app(stage, wire, tracebacks):
    seen = []
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    sub_app = FastAPI()

    @ws_route(sub_app, "/handler")
    async def handler(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.send("before")
        raise AppError

    app = FastAPI(lifespan=rooms.lifespan)
    app.mount("/sub", sub_app)

    @app.exception_handler(AppError)
    async def handle(request: Any, error: Exception) -> JSONResponse:
        seen.append(isinstance(request, WebSocket))
        return JSONResponse({}, 400)

    async with stage.plays(app) as server:
        assert (await how_it_ends(server, "/sub/handler"))[0] == 1011
    assert seen == [True]
    assert tracebacks() == []


@PATHS
async def test_an_exception_handler_may_close_with_its_own_code(rooms, stage, wire, loop, path, tracebacks):
    app = app_that_raises(rooms, AppError("why"))

    @app.exception_handler(AppError)
    async def handle(websocket: WebSocket, error: Exception) -> None:
        await websocket.close(4002, str(error))

    async with stage.plays(app) as server, server.client(path) as client:
        await client.send("go")
        assert await client.closed() == (4002, "why")
        await until(lambda: rooms.manager.active_connections == 0)
    assert tracebacks() == []


async def test_what_was_sent_before_an_error_arrives_before_the_close_of_an_exception_handler(rooms, stage, wire):
    app = app_that_raises(rooms, AppError("why"))

    @app.exception_handler(AppError)
    async def handle(websocket: WebSocket, error: Exception) -> None:
        await websocket.close(4002, str(error))

    async with stage.plays(app) as server:
        assert await how_it_ends(server, "/handler") == (4002, "why")


async def test_an_exception_handler_may_send_a_last_word_and_close_through_the_manager(rooms, stage, wire, tracebacks):
    app = app_that_raises(rooms, AppError("why"))

    @app.exception_handler(AppError)
    async def handle(websocket: WebSocket, error: Exception) -> None:
        await rooms.manager.send_personal(websocket, f"sorry: {error}")
        await rooms.manager.close(websocket, 4003, "why")

    async with stage.plays(app) as server, server.client("/handler") as client:
        await client.send("go")
        assert await client.receive() == "before"
        assert await client.receive() == "sorry: why"
        assert await client.closed() == (4003, "why")
    assert tracebacks() == []


async def test_an_exception_handler_that_raises_leaves_one_traceback_and_1011(rooms, stage, wire, tracebacks):
    app = app_that_raises(rooms, AppError("first"))

    @app.exception_handler(AppError)
    async def handle(websocket: WebSocket, error: Exception) -> None:
        raise ValueError("second") from error

    async with stage.plays(app) as server:
        assert (await how_it_ends(server, "/handler"))[0] == 1011
    (traceback,) = tracebacks()
    assert "ValueError: second" in traceback


@PATHS
@pytest.mark.parametrize("error", [HTTPException(403, "no"), StarletteHTTPException(404), HTTPException(200)])
async def test_an_http_exception_after_accept_is_1011_without_a_traceback(rooms, stage, wire, path, error, tracebacks):
    async with stage.plays(app_that_raises(rooms, error)) as server:
        assert await how_it_ends(server, path) == (1011, "")
    assert tracebacks() == []


@pytest.mark.parametrize("key", [StarletteHTTPException, HTTPException, 418])
async def test_an_apps_own_handler_for_http_exceptions_sees_those_raised_after_accept(
    rooms, stage, wire, key, tracebacks
):
    seen = []
    app = app_that_raises(rooms, error := HTTPException(418))

    @app.exception_handler(key)
    async def handle(request: Any, error: Exception) -> JSONResponse:
        seen.append(error)
        return JSONResponse({}, 418)

    async with stage.plays(app) as server:
        assert await how_it_ends(server, "/handler") == (1011, "")
    assert seen == [error]
    assert tracebacks() == []


@PATHS
async def test_a_websocket_exception_closes_with_its_own_code_and_reason(rooms, stage, wire, loop, path, tracebacks):
    async with stage.plays(app_that_raises(rooms, WebSocketException(4001, "why"))) as server:
        assert await how_it_ends(server, path) == (4001, "why")
    assert tracebacks() == []


async def test_a_long_reason_is_cut_at_a_character(rooms, stage, wire):
    async with stage.plays(app_that_raises(rooms, WebSocketException(4001, "ü" * 100))) as server:
        assert await how_it_ends(server, "/handler") == (4001, "ü" * 61)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2000, 5000, 70000])
async def test_a_code_that_may_not_be_sent_becomes_1011_and_is_reported(rooms, stage, wire, caplog, tracebacks, code):
    async with stage.plays(app_that_raises(rooms, WebSocketException(code, "why"))) as server:
        assert (await how_it_ends(server, "/handler"))[0] == 1011
    assert tracebacks() == []
    assert f"{code} is no close code that may be sent" in caplog.text


@pytest.mark.parametrize("error", [HTTPException(403, "no"), WebSocketException(1006)])
async def test_no_client_fills_the_log_with_how_it_ends_or_forges_a_line_of_it(rooms, stage, wire, caplog, error):
    @rooms.ws_route("/rooms/{name}")  # which takes line breaks, unlike {name:path}
    async def handler(name: str, message: Incoming[str]) -> None:
        raise error

    forged = "%0d%0aERROR:%20all%20is%20lost%1b[2J%e2%80%a8%e2%80%ae"  # line breaks, an escape, a turn of direction
    async with stage.plays(rooms) as server:
        for number in range(5):
            async with server.client(f"/rooms/{forged}{number}{'x' * 1_000}") as client:
                await client.send("go")
                assert (await client.closed())[0] == 1011
    [record] = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert record.name == "fastapi_rooms"
    said = record.getMessage()
    assert said.isprintable()
    assert said.endswith("(said once a minute)")
    assert len(said) < 400
    if isinstance(error, HTTPException):
        assert said.startswith(
            r"HTTPException 403 was raised after accept on '/rooms/\r\nERROR: all is lost\x1b[2J\u2028\u202e0x"
        )


async def test_a_refusal_with_the_clients_own_words_is_logged_in_one_line(rooms, stage, wire, caplog):
    caplog.set_level(logging.DEBUG, "fastapi_rooms")

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]) -> None:
        raise RefusedError(f"there is no {message}")

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("cake\nERROR: all is lost" + "x" * 1_000)
        assert (await client.receive_json())["code"] == "refused"
    [said] = [record.getMessage() for record in caplog.records if "was refused" in record.getMessage()]
    assert said.isprintable()
    assert len(said) < 400


async def test_a_validation_error_of_fastapi_after_accept_is_1011_and_reported_once(rooms, stage, wire, caplog):
    async with stage.plays(app_that_raises(rooms, RequestValidationError([]))) as server:
        assert (await how_it_ends(server, "/handler"))[0] == 1011
    (report,) = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert "RequestValidationError" in caplog.handler.format(report)
    assert "RuntimeError" not in caplog.text


# Dependencies with `yield`


@PATHS
@pytest.mark.parametrize("scope", ["function", "request"])
async def test_a_yield_dependency_sees_the_exception_once_and_after_the_close(
    rooms, stage, wire, path, scope, tracebacks
):
    cleanup = Cleanup()
    app = app_that_raises(rooms, error := ValueError("why"), Depends(cleanup, scope=scope))
    async with stage.plays(app) as server:
        assert await how_it_ends(server, path) == (1011, "")
    assert cleanup.saw == [error]
    assert cleanup.connections_open == [False]
    assert len(tracebacks()) == 1


@PATHS
async def test_a_yield_dependency_may_swallow_the_exception(rooms, stage, wire, path, tracebacks):
    cleanup = Cleanup("swallow")
    app = app_that_raises(rooms, error := ValueError("why"), Depends(cleanup))
    async with stage.plays(app) as server:
        assert (await how_it_ends(server, path))[0] == 1011
    assert cleanup.saw == [error]
    assert tracebacks() == []


async def test_yield_dependencies_see_the_exception_from_the_inside_out(rooms, stage, wire, tracebacks):
    outer, middle, inner = Cleanup("swallow"), Cleanup(AppError("changed")), Cleanup()
    app = app_that_raises(
        rooms,
        error := ValueError("why"),
        Depends(outer, scope="request"),
        Depends(middle, scope="request"),
        Depends(inner, scope="function"),
    )
    async with stage.plays(app) as server:
        assert (await how_it_ends(server, "/handler"))[0] == 1011
    assert inner.saw == [error]
    assert middle.saw == [error]
    assert outer.saw == [middle.reaction]
    assert tracebacks() == []


async def test_a_yield_dependency_may_change_the_exception_for_the_exception_handlers(rooms, stage, wire, tracebacks):
    seen = []
    cleanup = Cleanup(AppError("changed"))
    app = app_that_raises(rooms, error := ValueError("why"), Depends(cleanup))

    @app.exception_handler(AppError)
    async def handle(request: Any, error: Exception) -> JSONResponse:
        seen.append(error)
        return JSONResponse({}, 400)

    async with stage.plays(app) as server:
        assert (await how_it_ends(server, "/handler"))[0] == 1011
    assert cleanup.saw == [error]
    assert seen == [cleanup.reaction]
    assert tracebacks() == []


async def test_a_yield_dependency_that_changes_an_exception_spares_the_traceback(rooms, stage, wire, tracebacks):
    """Its cleanup runs after the close, so the client has its code by then."""
    cleanup = Cleanup(WebSocketException(4001, "changed"))
    app = app_that_raises(rooms, ValueError("why"), Depends(cleanup))
    async with stage.plays(app) as server:
        assert await how_it_ends(server, "/handler") == (1011, "")
    assert len(cleanup.saw) == 1
    assert tracebacks() == []


async def test_a_yield_dependency_that_fails_at_the_end_leaves_one_traceback(rooms, stage, wire, tracebacks):
    async def fragile():
        yield
        raise ValueError("at the end")

    @rooms.ws_route("/ws", dependencies=[Depends(fragile)])
    async def session(connection: ConnectionDep) -> None:
        await connection.send("served")

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "served"
        assert await client.closed() == (1000, "")
    (traceback,) = tracebacks()
    assert "ValueError: at the end" in traceback


async def test_an_exception_handler_is_called_after_the_dependencies_saw_the_error(rooms, stage, tracebacks):
    """As FastAPI has it: a database session is rolled back before the handler reports."""
    cleanup = Cleanup()
    order = []
    app = app_that_raises(rooms, AppError(), Depends(cleanup))

    @app.exception_handler(AppError)
    async def handle(request: Any, error: Exception) -> JSONResponse:
        order.append(len(cleanup.saw))
        return JSONResponse({}, 400)

    async with stage.plays(app) as server:
        assert (await how_it_ends(server, "/handler"))[0] == 1011
    assert order == [1]
    assert len(cleanup.saw) == 1
    assert tracebacks() == []


@pytest.mark.parametrize("ending", ["return", "client closes", "client vanishes", "closed by the manager"])
async def test_clean_up_runs_once_however_it_ends(rooms, stage, wire, loop, tracebacks, ending):
    cleanup = Cleanup()

    @rooms.ws_route("/ws", room="hall", dependencies=[Depends(cleanup)])
    async def session(connection: ConnectionDep) -> None:
        async for _ in connection.messages(str):
            await connection.send("before")
            if ending == "return":
                return

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert await client.receive() == "before"
        if ending == "client closes":
            await client.websocket.close()
        elif ending == "client vanishes":
            client.vanish()
        elif ending == "closed by the manager":
            await server.call(rooms.manager.close_room, "hall", 4000)
            assert await client.closed() == (4000, "")
        await until(lambda: cleanup.saw)
    assert cleanup.saw == [None]
    assert cleanup.connections_open == [False]
    assert tracebacks() == []


# The handler returns


async def test_a_session_that_returns_is_closed_with_1000(rooms, stage, wire, loop):
    @rooms.ws_route("/ws", room="hall")
    async def session(connection: ConnectionDep, manager: ManagerDep) -> None:
        await manager.broadcast_to_room("hall", "one")
        await connection.send("two")

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "one"
        assert await client.receive() == "two"
        assert await client.closed() == (1000, "")
        await until(lambda: not rooms.manager.active_rooms)


async def test_a_handler_may_close_by_itself_and_is_not_called_again(rooms, stage, wire, loop, tracebacks):
    called = []

    @rooms.ws_route("/connection")
    async def through_the_connection(message: Incoming[str], connection: ConnectionDep) -> None:
        called.append(message)
        await connection.send("bye")
        await connection.close(4004, "enough")

    @rooms.ws_route("/manager")
    async def through_the_manager(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> str:
        called.append(message)
        await connection.send("bye")
        await manager.close(connection.connection_id, 4004, "enough")
        return "lost"

    async with stage.plays(rooms) as server:
        for path in ("/connection", "/manager"):
            async with server.client(path) as client:
                for text in ("first", "second", "third"):
                    await client.send(text)
                assert await client.receive() == "bye"
                assert await client.closed() == (4004, "enough")
    assert called == ["first", "first"]
    assert tracebacks() == []


async def test_a_handler_that_closes_the_websocket_itself_does_no_harm(rooms, stage, wire, loop, tracebacks):
    @rooms.ws_route("/ws", room="hall")
    async def session(websocket: WebSocket, connection: ConnectionDep) -> None:
        await websocket.close(4005, "mine")
        await connection.send("too late")  # neither raises nor waits

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.closed() == (4005, "mine")
        await until(lambda: rooms.manager.active_connections == 0)
        assert rooms.manager.active_rooms == []
    assert tracebacks() == []


# The client goes


@pytest.mark.parametrize("ending", ["closes", "vanishes"])
async def test_a_handler_that_waits_for_messages_ends_quietly_when_its_client_goes(
    rooms, stage, wire, loop, tracebacks, ending
):
    ended = []

    @rooms.ws_route("/handler", room="hall")
    async def handler(message: Incoming[str]) -> str:
        return message

    @rooms.ws_route("/session", room="hall")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(str):
            await connection.send(message)
        ended.append(connection.is_open)

    async with stage.plays(rooms) as server:
        for path in ("/handler", "/session"):
            async with server.client(path) as client:
                await client.send("hi")
                assert await client.receive() == "hi"
                if ending == "closes":
                    await client.websocket.close(4000, "my reasons")
                else:
                    client.vanish()
                await until(lambda: not rooms.manager.active_rooms)
    assert ended == [False]
    assert tracebacks() == []


@pytest.mark.parametrize("ending", ["closes", "vanishes"])
async def test_a_busy_handler_is_cancelled_after_the_grace_time(stage, wire, loop, tracebacks, ending):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.05))
    facts = []

    @rooms.ws_route("/ws", room="hall")
    async def handler(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.send("busy")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            facts.append("cancelled")
            raise
        finally:
            facts.append("finally")

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert await client.receive() == "busy"
        if ending == "closes":
            await client.websocket.close()
        else:
            client.vanish()
        await until(lambda: facts)
    assert facts == ["cancelled", "finally"]
    assert tracebacks() == []


async def test_within_the_grace_time_a_handler_may_finish_its_work(stage, wire, tracebacks):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=60))
    gate, facts = {}, []

    @rooms.ws_route("/ws", room="hall")
    async def handler(message: Incoming[str], connection: ConnectionDep, manager: ManagerDep) -> str:
        gate["event"] = asyncio.Event()
        await connection.send("busy")
        await gate["event"].wait()
        is_sent = await manager.send_personal(connection, "anybody?")
        facts.append((connection.is_open, is_sent, manager.get_room_members("hall")))
        return "nobody takes this"

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert await client.receive() == "busy"
        await client.websocket.close()
        await until(lambda: not rooms.manager.active_connections)
        assert facts == []
        await server.call(gate["event"].set)
        await until(lambda: facts)
    assert facts == [(False, False, [])]
    assert tracebacks() == []


async def test_a_handler_that_listens_to_something_else_is_cancelled_when_its_client_goes(stage, wire, tracebacks):
    """Without anybody iterating over its messages: a push-only session."""
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.05))
    ended = []

    @rooms.ws_route("/ws", room="ticker")
    async def session(connection: ConnectionDep) -> None:
        await connection.send("subscribed")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(connection.is_open)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "subscribed"
        await client.send("nobody reads this")
        client.vanish()
        await until(lambda: ended)
    assert ended == [False]
    assert tracebacks() == []


async def push(connection):
    while True:
        await connection.send("news")
        await asyncio.sleep(0.01)


async def pushed_until_the_end(connection: ConnectionDep):
    yield
    async with asyncio.TaskGroup() as group:
        group.create_task(push(connection))


async def pushes_with_asyncio(connection: ConnectionDep) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(push(connection))
        async for _ in connection.messages(str):
            pass


async def pushes_with_anyio(connection: ConnectionDep) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(push, connection)
        async for _ in connection.messages(str):
            pass


async def pushes_in_a_dependency(
    connection: ConnectionDep, until_the_end: Annotated[None, Depends(pushed_until_the_end)]
) -> None:
    await connection.send("news")
    await connection.wait_until_closed()


async def takes_in_a_group(connection: ConnectionDep) -> None:
    async def take():
        messages = connection.messages(str)
        while True:
            await anext(messages)

    async with asyncio.TaskGroup() as group:
        group.create_task(push(connection))
        group.create_task(take())


async def uses_the_socket(connection: ConnectionDep) -> None:
    await connection.send("news")
    await connection.wait_until_closed()
    raise ExceptionGroup("a task group", [WebSocketDisconnect(1000)])


async def pushes_per_message(message: Incoming[str], connection: ConnectionDep) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(push(connection))


@pytest.mark.parametrize(
    "handler",
    [
        pushes_with_asyncio,
        pushes_with_anyio,
        pushes_in_a_dependency,
        takes_in_a_group,
        uses_the_socket,
        pushes_per_message,
    ],
)
async def test_a_task_group_that_finds_the_client_gone_ends_quietly(stage, rooms, tracebacks, handler):
    ended = []

    async def mark():
        try:
            yield
        finally:
            ended.append("cleaned up, after the others")

    rooms.ws_route("/ws", dependencies=[mark])(handler)
    async with stage.plays(rooms) as server:
        async with server.client("/ws") as client:
            await client.send("hello")
            assert await client.receive() == "news"
        await until(lambda: ended)
    assert tracebacks() == [], "and the server has ended"


async def test_what_else_a_client_sent_is_handled_when_a_task_group_finds_it_gone(stage, rooms, tracebacks):
    handled = []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str], connection: ConnectionDep) -> None:
        handled.append(message)
        await connection.wait_until_closed()
        async with asyncio.TaskGroup() as group:
            group.create_task(push(connection))

    async with stage.plays(rooms) as server:
        async with server.client("/ws") as client:
            for number in range(3):
                await client.send(str(number))
        await until(lambda: len(handled) == 3)
        await until(lambda: rooms.manager.stats().closing == rooms.manager.active_connections == 0)
    assert tracebacks() == []


@pytest.mark.parametrize("path", ["/session", "/handler"])
async def test_another_error_of_a_task_group_is_an_error_though_the_client_has_gone(stage, rooms, tracebacks, path):
    async def session(connection: ConnectionDep) -> None:
        await connection.wait_until_closed()
        raise ExceptionGroup("a task group", [ConnectionEnded("gone"), ValueError("a bug")])

    async def handler(message: Incoming[str], connection: ConnectionDep) -> None:
        await session(connection)

    rooms.ws_route("/session")(session)
    rooms.ws_route("/handler")(handler)
    async with stage.plays(rooms) as server:
        async with server.client(path) as client:
            await client.send("hello")
            await until(lambda: rooms.manager.stats().received_messages == 1)
        await until(tracebacks)
    assert "ValueError: a bug" in tracebacks()[0]


async def test_a_disconnect_that_the_handler_raises_itself_ends_quietly(rooms, stage, wire, tracebacks):
    @rooms.ws_route("/ws")
    async def session(connection: ConnectionDep) -> None:
        async for _ in connection.messages(str):
            raise WebSocketDisconnect(1001)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert (await client.closed())[0] == 1000
    assert tracebacks() == []


async def test_a_task_that_was_cancelled_inside_a_handler_is_an_error_of_the_handler(rooms, stage, wire):
    """Nobody cancels the handler: it awaits something of its own that was cancelled."""

    @rooms.ws_route("/ws", room="hall")
    async def handler(message: Incoming[str]) -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        task.cancel()
        await task

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert (await client.closed())[0] == 1011
        await until(lambda: not rooms.manager.active_rooms)


async def test_one_connection_that_fails_costs_the_others_nothing(rooms, stage, wire, loop, tracebacks):
    app = app_that_raises(rooms, ValueError("why"))
    router = APIRouter()

    @ws_route(router, "/listen", room="hall")
    async def listen(message: Incoming[str]) -> str:
        return message

    app.include_router(router)
    async with stage.plays(app) as server, server.client("/listen") as listener:
        for path in ("/handler", "/session"):
            assert await how_it_ends(server, path) == (1011, "")
        await until(lambda: rooms.manager.active_connections == 1)
        assert await server.call(rooms.manager.broadcast_to_room, "hall", "still here") == 1
        assert await listener.receive() == "still here"
        await listener.send("me too")
        assert await listener.receive() == "me too"
    assert len(tracebacks()) == 2


@pytest.mark.parametrize("path", ["/session", "/handler", "/yields"])
async def test_who_asks_for_one_more_message_of_a_client_that_has_gone_ends_quietly(stage, rooms, tracebacks, path):
    ended = []

    @rooms.ws_route("/session")
    async def session(connection: ConnectionDep) -> None:
        messages = connection.messages(str)
        try:
            await anext(messages)
            await anext(messages)
        finally:
            ended.append(path)

    @rooms.ws_route("/handler")
    async def handler(message: Incoming[str], connection: ConnectionDep) -> None:
        await connection.wait_until_closed()
        ended.append(path)
        raise StopAsyncIteration

    @rooms.ws_route("/yields")
    async def yields(connection: ConnectionDep) -> Any:
        messages = connection.messages(str)
        try:
            while True:
                yield await anext(messages)
        finally:
            ended.append(path)

    async with stage.plays(rooms) as server:
        async with server.client(path) as client:
            await client.send("hello")
            await until(lambda: rooms.manager.stats().received_messages == 1)
        await until(lambda: ended)
        await until(lambda: rooms.manager.stats().closing == rooms.manager.active_connections == 0)
    assert tracebacks() == []


@pytest.mark.parametrize("path", ["/handler", "/yields"])
async def test_a_stop_of_something_else_is_an_error_of_the_handler(stage, rooms, tracebacks, path):
    async def nothing() -> Any:
        for _ in ():
            yield

    @rooms.ws_route("/handler")
    async def handler(message: Incoming[str]) -> None:
        await anext(nothing())

    @rooms.ws_route("/yields")
    async def yields(message: Incoming[str]) -> Any:
        yield await anext(nothing())

    async with stage.plays(rooms) as server, server.client(path) as client:
        await client.send("hello")
        assert (await client.closed())[0] == 1011
    assert len(tracebacks()) == 1
