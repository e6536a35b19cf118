"""A dependency that says no, and a parameter that is not valid: answered as FastAPI does, counted, and quiet."""

import logging
import math
from types import SimpleNamespace

import pytest
import sentry_sdk
import sentry_sdk.integrations.starlette as of_sentry
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketException
from fastapi.exceptions import WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from stage import refused, smallest_app
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from support import counted, live, until

from fastapi_rooms import ConnectionDep, HandshakeRefused, Hooks, Incoming, Refusal, RoomsExtension
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.admission import handshake_refused
from fastapi_rooms.web import refused_by_app


@pytest.fixture
def told():
    return []


@pytest.fixture
def rooms(told, monkeypatch):
    monkeypatch.setattr(refused_by_app, "_invalid_said", type(refused_by_app._invalid_said)())
    rooms = RoomsExtension(hooks=Hooks(refused=lambda one: told.append(one.reason)))

    def login(token: str = "") -> str:
        if token == "starlette":
            raise StarletteHTTPException(451, "no")
        if token == "empty":
            raise HTTPException(304)
        if token == "closed":
            raise WebSocketException(1008, "no")
        if not token:
            raise HTTPException(401, "Who are you?", {"WWW-Authenticate": "Bearer"})
        return token

    @rooms.ws_route("/ws/{room}", room="{room}", user_id=login)
    async def chat(room: str, number: int, message: Incoming[str]) -> str:
        if message == "raise":
            raise HTTPException(400, "after accept")
        return message

    return rooms


async def test_what_a_dependency_raises_reaches_the_client_without_an_error_in_the_log(rooms, told, caplog):
    with live(smallest_app(rooms)) as server:
        answer = await refused(server, "/ws/a?number=1")
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert answer.body == b'{"detail":"Who are you?"}'
        answer = await refused(server, "/ws/a?number=1&token=starlette")
        assert (answer.status_code, answer.body) == (451, b'{"detail":"no"}')
        answer = await refused(server, "/ws/a?number=1&token=empty")
        assert (answer.status_code, answer.body) == (304, b"")
        assert (await refused(server, "/ws/a?number=1&token=closed")).status_code == 403
    assert counted(rooms.manager.stats().refused) == {Refusal.APP: 3}
    assert told == [Refusal.APP] * 3
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_parameter_that_is_not_valid_is_named_once(rooms, told, caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    with live(smallest_app(rooms)) as server:
        for query in ("", "&number=x"):
            assert (await refused(server, f"/ws/a?token=ann{query}")).status_code == 403
    said = [record.getMessage() for record in caplog.records if record.name == "fastapi_rooms"]
    assert [line for line in said if "handshake" in line] == [
        "refused a handshake on '/ws/a', query.number: Field required (said once a minute)"
    ]
    assert counted(rooms.manager.stats().refused) == {Refusal.PARAMETERS: 2}
    assert told == [Refusal.PARAMETERS] * 2


async def test_who_is_let_in_is_not_concerned_nor_is_plain_http(rooms):
    app = smallest_app(rooms)

    @app.get("/no")
    def no() -> None:
        raise HTTPException(418, "no")

    with live(app) as server:
        await refused(server, "/ws/a?number=1")
        async with server.http() as http:
            answer = await http.get("/no")
            assert (answer.status_code, answer.json()) == (418, {"detail": "no"})
        async with server.client("/ws/a?number=1&token=ann") as client:
            await client.send("hello")
            assert await client.receive() == "hello"
            await client.send("raise")
            assert (await client.closed())[0] == 1011
    assert counted(rooms.manager.stats().refused) == {Refusal.APP: 1}


async def answer_async(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"ours": str(error)}, 409)


def answer_in_a_thread(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"ours": str(error)}, 409)


class NotWelcomeError(Exception):
    """Of the app."""


@pytest.mark.parametrize("handler", [answer_async, answer_in_a_thread])
@pytest.mark.parametrize(
    ("kind", "raised", "reason"),
    [
        (StarletteHTTPException, HTTPException(401, "no"), Refusal.APP),
        (HTTPException, HTTPException(401, "no"), Refusal.APP),
        (401, HTTPException(401, "no"), Refusal.APP),
        (NotWelcomeError, NotWelcomeError("no"), Refusal.APP),
        (WebSocketRequestValidationError, WebSocketRequestValidationError([]), Refusal.PARAMETERS),
    ],
)
async def test_the_apps_own_handlers_answer_as_quietly_and_are_counted(told, caplog, handler, kind, raised, reason):
    rooms = RoomsExtension(hooks=Hooks(refused=lambda one: told.append(one.reason)))

    def login() -> str:
        raise raised

    @rooms.ws_route("/ws", user_id=login)
    async def chat(message: Incoming[str]) -> None: ...

    app = smallest_app(rooms)
    app.add_exception_handler(kind, handler)

    @app.get("/ours")
    def ours() -> None:
        raise raised

    with live(app) as server:
        for _ in range(2):
            answer = await refused(server, "/ws")
            assert (answer.status_code, answer.body[:8]) == (409, b'{"ours":')
        async with server.http() as http:
            assert (await http.get("/ours")).status_code == 409
    assert counted(rooms.manager.stats().refused) == {reason: 2}
    assert told == [reason] * 2
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_an_app_answers_by_itself_is_let_be(rooms, told, caplog):
    app = smallest_app(rooms)

    @app.exception_handler(StarletteHTTPException)
    async def handle(websocket: WebSocket, error: StarletteHTTPException) -> None:
        if error.status_code == 451:
            await websocket.accept()
        await websocket.close(4001, "by hand")

    with live(app) as server:
        assert (await refused(server, "/ws/a?number=1")).status_code == 403
        async with server.client("/ws/a?number=1&token=starlette") as client:
            assert await client.closed() == (4001, "by hand")
    assert told == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_response_keeps_its_own_background_task_and_may_be_used_again(rooms, caplog):
    done = []
    shared = JSONResponse({}, 409, background=BackgroundTask(done.append, "done"))
    app = smallest_app(rooms)

    @app.exception_handler(HandshakeRefused)
    async def handle(request: Request, error: HandshakeRefused) -> JSONResponse:
        return shared

    with live(app) as server:
        for _ in range(2):
            assert (await refused(server, "/ws/a?number=1&token=ann", origin="http://evil.example")).status_code == 409
        await until(lambda: done == ["done"] * 2)
    assert counted(rooms.manager.stats().refused) == {Refusal.HTTP_ORIGIN: 2}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def sentry(monkeypatch):
    """Sentry as it stands around the handlers of each app from now on; returns what it hears of."""
    heard = []
    for name in ("__init__", "__call__"):  # which it replaces
        monkeypatch.setattr(ExceptionMiddleware, name, getattr(ExceptionMiddleware, name))
    found = SimpleNamespace(failed_request_status_codes=frozenset(range(500, 600)))
    monkeypatch.setattr(sentry_sdk, "get_client", lambda: SimpleNamespace(get_integration=lambda _: found))
    monkeypatch.setattr(of_sentry, "_capture_exception", lambda error, **_: heard.append(error.status_code))
    monkeypatch.setattr(of_sentry, "_add_user_to_sentry_scope", lambda _: None)
    of_sentry.patch_exception_middleware(ExceptionMiddleware)
    return heard


async def test_under_sentry_all_is_as_it_is_without_and_it_hears_of_it(sentry, told, caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    rooms = RoomsExtension(hooks=Hooks(refused=lambda one: told.append(one.reason)))

    def login(status: int) -> str:
        if status:
            raise HTTPException(status, "no")
        return "ann"

    @rooms.ws_route("/ws", user_id=login)
    async def chat(message: Incoming[str]) -> None:
        if message == "policy":
            raise WebSocketException(4001, "by the app")
        raise HTTPException(502, "after accept")

    with live(smallest_app(rooms)) as server:
        for status in (401, 503):
            answer = await refused(server, f"/ws?status={status}")
            assert (answer.status_code, answer.body) == (status, b'{"detail":"no"}')
        assert (await refused(server, "/ws?status=x")).status_code == 403
        assert (await refused(server, "/ws?status=0", origin="http://evil.example")).status_code == 403
        for message, close in (("policy", (4001, "by the app")), ("other", (1011, ""))):
            async with server.client("/ws?status=0") as client:
                await client.send(message)
                assert await client.closed() == close
        await server.call(rooms.manager.drain, 5)
        assert (await refused(server, "/ws?status=0")).status_code == 503
    assert sentry == [503, 502, 503]
    assert told[:4] == [Refusal.APP, Refusal.APP, Refusal.PARAMETERS, Refusal.HTTP_ORIGIN]
    assert counted(rooms.manager.stats().refused)[Refusal.APP] == 2
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert "HTTPException 502 was raised after accept" in caplog.text


async def test_a_route_of_the_apps_own_is_answered_alike_and_not_counted(rooms, caplog):
    app = smallest_app(rooms)

    @app.websocket("/plain")
    async def plain(websocket: WebSocket, number: int) -> None:
        if number:
            await websocket.accept()
        raise HTTPException(403, "no")

    with live(app) as server:
        await refused(server, "/ws/a?number=1")
        assert (await refused(server, "/plain?number=0")).status_code == 403
        assert (await refused(server, "/plain")).status_code == 403
        async with server.client("/plain?number=1") as client:
            assert (await client.closed())[0] == 1006, "what becomes of it after accept is the app's business"
    assert counted(rooms.manager.stats().refused) == {Refusal.APP: 1}


async def test_what_is_not_valid_after_accept_is_no_refusal(rooms, told):
    app = smallest_app(rooms)

    @app.websocket("/late")
    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        raise WebSocketRequestValidationError([])

    with live(app) as server:
        await refused(server, "/ws/a?number=1")  # from now on it is us who answer
        async with server.client("/late") as client:
            assert (await client.closed())[0] == 1008
    assert told == [Refusal.APP]


async def test_a_server_without_answers_to_handshakes_closes_and_that_is_said_once(rooms, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    monkeypatch.setattr(handshake_refused, "_denials_said", Seldom(math.inf))
    app = smallest_app(rooms)

    async def without_the_extension(scope, receive, send):
        scope.pop("extensions", None)
        await app(scope, receive, send)

    with live(without_the_extension) as server:
        for _ in range(2):
            assert (await refused(server, "/ws/a?number=1")).status_code == 403
    assert counted(rooms.manager.stats().refused) == {Refusal.APP: 2}
    said = [record.getMessage() for record in caplog.records if "403 alone" in record.getMessage()]
    assert len(said) == 1
    assert "a refusal with 401" in said[0]


async def test_an_app_that_has_no_manager_counts_nothing():
    rooms = RoomsExtension()

    @rooms.ws_route("/ws")
    async def chat(connection: ConnectionDep, message: Incoming[str]) -> None: ...

    app = FastAPI()
    app.include_router(rooms.router)
    refused_by_app._count(WebSocket({"type": "websocket", "app": app, "headers": []}, None, None), Refusal.APP)
    assert counted(rooms.manager.stats().refused) == {}
