"""A dependency that says no, and a parameter that is not valid: answered as FastAPI does, counted, and quiet."""

import logging
import math

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketException
from fastapi.exceptions import WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from stage import refused, smallest_app
from starlette.exceptions import HTTPException as StarletteHTTPException
from support import counted, live

from fastapi_rooms import ConnectionDep, Hooks, Incoming, Refusal, RoomsExtension
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


async def test_handlers_of_the_app_stay(rooms):
    app = smallest_app(rooms)

    @app.exception_handler(StarletteHTTPException)
    async def handle(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"ours": error.detail}, 409)

    with live(app) as server:
        answer = await refused(server, "/ws/a?number=1")
        assert (answer.status_code, answer.body) == (409, b'{"ours":"Who are you?"}')


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
