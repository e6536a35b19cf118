"""Pages of foreign HTTP origins: refused before accept, before dependencies run, before Redis hears of it."""

import asyncio
import logging
from typing import Any

import pytest
from engine.scripted import ScriptedBackend
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse
from stage import smallest_app
from starlette.exceptions import HTTPException as StarletteHTTPException
from support import counted, live, until

from fastapi_rooms import (
    ConnectionDep,
    HandshakeRefused,
    Hooks,
    Incoming,
    ManagerDep,
    Refusal,
    RoomsError,
    RoomsExtension,
    RoomsSettings,
    ws_route,
)
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.engine.sessions import sessions_of

HOST = "chat.example.com"


class Answer:
    """What a server says to a handshake."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


async def knock(server, path: str, *headers: tuple[str, str], host: str = HOST) -> Answer:
    """Send a handshake with just these headers, read the answer, and go."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers),
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    async with asyncio.timeout(10):
        data = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in data.splitlines()[0]:
            data += await reader.read()
    writer.transport.abort()
    return Answer(data)


class Recording(ScriptedBackend):
    """A backend that keeps every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def subscribe(self, targets):
        self.calls.append(targets)
        return super().subscribe(targets)

    def publish(self, envelope):
        self.calls.append(envelope)
        return super().publish(envelope)


class House:
    """An app whose routes keep what they did, on a backend that does the same."""

    def __init__(self, **settings: Any) -> None:
        self.ran: list[str] = []
        self.refused: list[Refusal] = []
        self.backend = Recording()
        self.rooms = rooms = RoomsExtension(
            self.backend,
            settings=RoomsSettings(**settings),
            hooks=Hooks(refused=lambda refused: self.refused.append(refused.reason)),
        )

        def user(connection: ConnectionDep) -> str:
            self.ran.append("user")
            return "ann"

        def dependency() -> None:
            self.ran.append("dependency")

        async def authorize(connection: Any, room: str, user: str = Depends(user)) -> bool:
            self.ran.append("authorize")
            return True

        @rooms.ws_route("/route", room="a", user_id=user, dependencies=[dependency], authorize_join=authorize)
        async def route(message: Incoming[str], more: None = Depends(dependency)) -> None:
            """Take it."""

        @rooms.ws_route("/{number}/session", user_id=user)
        async def session(number: int, connection: ConnectionDep) -> None:
            async for _ in connection.messages(str):
                pass

        @rooms.router.websocket("/plain")
        async def plain(websocket: WebSocket, manager: ManagerDep) -> None:
            connection = await manager.connect(websocket, "a", "ann")
            async for _ in connection.messages(str):
                pass

        @rooms.router.websocket("/accepted")
        async def accepted(websocket: WebSocket, manager: ManagerDep) -> None:
            await websocket.accept()
            await manager.connect(websocket, "a", "ann")

        self.app = smallest_app(rooms)

    def assert_nothing_ran(self) -> None:
        assert self.ran == []
        assert self.backend.calls == [(EVERYBODY,)], "that of the start"
        assert self.rooms.manager.stats().connections == 0


def assert_calm(caplog) -> None:
    """No error in the operator's log; uvicorn has one for whoever returns before it has sent an answer."""
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert [record.name for record in caplog.records if record.levelno == logging.WARNING] in ([], ["fastapi_rooms"])


FOREIGN = [
    "https://evil.example",
    "http://evilchat.example.com",
    "http://chat.example.com.evil.example",
    "http://chat.example.com:81",
    "https://chat.example.com",
    "ws://chat.example.com",
    "http://chat.example.com@evil.example",
    "http://evil.example/http://chat.example.com",
    "http://evil.example#http://chat.example.com",
    "http://chat.example.com/",
    "http://chat.example.comm",
    "http://example.com",
    "http://*.example.com",
    "http://chat.example.com.",
    "http://chat.example.com, https://evil.example",
    "http://chat\u00e9.example.com",
    "chat.example.com",
    "*",
    "null",
    "",
    "file://",
]


@pytest.mark.parametrize("path", ["/route", "/7/session", "/plain"])
async def test_foreign_pages_are_refused_before_anything_else_happens(stage, loop, path, caplog):
    house = House()
    async with stage.plays(house.app) as server:
        for origin in FOREIGN:
            answer = await knock(server, path, ("Origin", origin))
            assert answer.status == 403, origin
            assert answer.body == b'{"detail":"Connections from this HTTP origin, or from none, are refused."}'
            house.assert_nothing_ran()
        await until(lambda: len(house.refused) == len(FOREIGN))
        assert counted(house.rooms.manager.stats().refused) == {Refusal.HTTP_ORIGIN: len(FOREIGN)}
    assert_calm(caplog)


async def test_what_is_wrong_with_the_path_is_not_looked_at_before(stage):
    house = House()
    async with stage.plays(house.app) as server:
        answer = await knock(server, "/no-number/session", ("Origin", "null"))
        assert answer.status == 403
        assert b"origin" in answer.body, "and not FastAPI's bare one"
        assert (await knock(server, "/no-number/session")).body == b""


async def test_two_origins_are_none(stage):
    house = House()
    own = ("Origin", f"http://{HOST}")
    async with stage.plays(house.app) as server:
        for origins in ([own, ("Origin", "http://evil.example")], [("Origin", "null"), own], [own, own]):
            assert (await knock(server, "/route", *origins)).status == 400, "uvicorn's default protocol says it itself"
            house.assert_nothing_ran()
    with live(house.app, ws="wsproto") as server:
        for origins in ([own, ("Origin", "http://evil.example")], [("Origin", "null"), own], [own, own]):
            assert (await knock(server, "/route", *origins)).status == 403
        assert house.ran == []
    assert counted(house.rooms.manager.stats().refused) == {Refusal.HTTP_ORIGIN: 3}


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_two_hosts_are_none(http, caplog):
    house = House(allowed_origins=["https://app.example"])
    origins = [f"http://{HOST}", "http://evil.example", "https://app.example", None]
    with live(house.app, http=http) as server:
        for origin in origins:
            headers = [] if origin is None else [("Origin", origin)]
            for hosts in ((HOST, "evil.example"), ("evil.example", HOST), (HOST, HOST)):
                answer = await knock(server, "/route", ("Host", hosts[1]), *headers, host=hosts[0])
                assert answer.status == (403 if http == "httptools" else 400), "h11 says it itself"
        house.assert_nothing_ran()
        assert (await knock(server, "/route", ("Origin", origins[0]))).status == 101
    if http == "httptools":
        assert house.refused == [Refusal.HTTP_ORIGIN] * 3 * len(origins)
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert f"for the host ['{HOST}', 'evil.example']" in record.getMessage()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (HOST, f"http://{HOST}"),
        (HOST, f"http://{HOST}:80"),
        (f"{HOST}:80", f"http://{HOST}"),
        ("CHAT.example.com", f"http://{HOST}"),
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        (HOST, None),
    ],
)
async def test_pages_of_the_host_itself_and_who_is_no_browser_come_in(stage, host, origin):
    house = House()
    headers = [] if origin is None else [("Origin", origin)]
    async with stage.plays(house.app) as server:
        for path in ("/route", "/7/session", "/plain"):
            assert (await knock(server, path, *headers, host=host)).status == 101
    assert set(house.ran) == {"dependency", "user", "authorize"}
    assert house.refused == []


@pytest.mark.parametrize(
    ("settings", "origin", "status"),
    [
        ({"require_origin": True}, None, 403),
        ({"require_origin": True}, f"http://{HOST}", 101),
        ({"require_origin": True}, "null", 403),
        ({"allowed_origins": ["https://app.example"]}, "https://app.example", 101),
        ({"allowed_origins": ["https://app.example"]}, "https://app.example:443", 101),
        ({"allowed_origins": ["https://app.example"]}, "http://app.example", 403),
        ({"allowed_origins": ["https://app.example"]}, "https://app.example.evil.example", 403),
        ({"allowed_origins": ["https://app.example"]}, "https://evil-app.example", 403),
        ({"allowed_origins": ["https://app.example"]}, f"http://{HOST}", 101),
        ({"allowed_origins": ["https://app.example"]}, None, 101),
        ({"allowed_origins": ["*"]}, "https://evil.example", 101),
        ({"allowed_origins": ["*"]}, "null", 101),
        ({"allowed_origins": ["*"]}, None, 101),
        ({"allowed_origins": ["*"], "require_origin": True}, None, 403),
    ],
)
async def test_the_settings_open_and_close(stage, settings, origin, status):
    house = House(**settings)
    async with stage.plays(house.app) as server:
        headers = [] if origin is None else [("Origin", origin)]
        assert (await knock(server, "/route", *headers)).status == status
        assert (await knock(server, "/plain", *headers)).status == status
    if status == 403:
        house.assert_nothing_ran()


async def test_behind_a_proxy_that_the_server_trusts_the_scheme_is_that_of_the_page(stage):
    house = House()
    async with stage.plays(house.app) as server:
        page = ("Origin", f"https://{HOST}")
        assert (await knock(server, "/route", page)).status == 403
        assert (await knock(server, "/route", page, ("X-Forwarded-Proto", "https"))).status == 101
        plain = ("Origin", f"http://{HOST}")
        assert (await knock(server, "/route", plain, ("X-Forwarded-Proto", "https"))).status == 403


async def test_who_was_accepted_before_is_closed_with_1008(stage, wire, caplog):
    house = House(wire=wire)
    async with stage.plays(house.app) as server:
        async with server.client("/accepted", origin="https://evil.example") as client:
            assert await client.closed() == (1008, "Connections from this HTTP origin, or from none, are refused.")
        house.assert_nothing_ran()
    assert_calm(caplog)


async def test_a_route_that_asks_a_database_first_can_refuse_before(stage):
    house = House()

    @house.rooms.router.websocket("/database")
    async def database(websocket: WebSocket, manager: ManagerDep) -> None:
        sessions_of(manager).check_handshake(websocket)
        house.ran.append("database")
        await manager.connect(websocket)

    async with stage.plays(smallest_app(house.rooms)) as server:
        assert (await knock(server, "/database", ("Origin", "null"))).status == 403
        house.assert_nothing_ran()
        assert (await knock(server, "/database")).status == 101
        assert house.ran == ["database"]


async def test_a_route_in_a_mounted_app_refuses_as_well(stage, caplog):
    rooms = RoomsExtension()
    inner, outer = FastAPI(), FastAPI(lifespan=rooms.lifespan)

    @ws_route(inner, "/route")
    async def route(message: Incoming[str]) -> None:
        """Take it."""

    outer.mount("/inner", inner)
    async with stage.plays(outer) as server:
        assert (await knock(server, "/inner/route", ("Origin", "null"))).status == 403
        assert (await knock(server, "/inner/route")).status == 101
    assert_calm(caplog)


@pytest.mark.parametrize("kind", [StarletteHTTPException, HandshakeRefused, RoomsError, 403])
async def test_the_apps_own_exception_handler_decides_about_the_answer(stage, kind, caplog):
    house = House()

    @house.app.exception_handler(kind)
    async def answer(request: Request, error: HandshakeRefused) -> JSONResponse:
        await asyncio.sleep(0)
        return JSONResponse({"mine": error.reason, "detail": error.detail}, 418)

    async with stage.plays(house.app) as server:
        for path in ("/route", "/plain"):
            answer = await knock(server, path, ("Origin", "null"))
            assert (answer.status, answer.body) == (
                418,
                b'{"mine":"http_origin","detail":"Connections from this HTTP origin, or from none, are refused."}',
            )
        house.assert_nothing_ran()
    assert not [record for record in caplog.records if record.exc_info]


async def test_other_errors_of_the_app_are_answered_as_ever(stage, caplog):
    """The answer without an error in the log is for our refusals: nobody else's are touched."""
    house = House()

    def refuse() -> None:
        raise HTTPException(402, "pay first", {"X-Price": "1"})

    @house.rooms.ws_route("/paid", dependencies=[refuse])
    async def paid(message: Incoming[str]) -> None:
        """Never comes to this."""

    @house.rooms.router.get("/http")
    async def http() -> None:
        raise HTTPException(404, "not here")

    async with stage.plays(smallest_app(house.rooms)) as server:
        assert (await knock(server, "/paid", ("Origin", "null"))).status == 403
        answer = await knock(server, "/paid")
        assert (answer.status, answer.headers["x-price"], answer.body) == (402, "1", b'{"detail":"pay first"}')
        async with server.http() as client:
            assert (await client.get("/http")).json() == {"detail": "not here"}
    assert not [record for record in caplog.records if record.exc_info]


class Old:
    """Hides that the server can answer a handshake with an HTTP response, as some cannot."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, "extensions": {}}, receive, send)


async def test_a_server_that_knows_no_denial_response_refuses_bare(stage, caplog):
    house = House()
    house.app.add_middleware(Old)
    async with stage.plays(house.app) as server:
        for path in ("/route", "/plain"):
            answer = await knock(server, path, ("Origin", "null"))
            assert (answer.status, answer.body) == (403, b"")
        house.assert_nothing_ran()
    assert_calm(caplog)


async def test_wsproto_is_calm_as_well(caplog):
    house = House()
    with live(house.app, ws="wsproto") as server:
        answer = await knock(server, "/route", ("Origin", "null"))
        assert answer.status == 403
        assert answer.body == b'{"detail":"Connections from this HTTP origin, or from none, are refused."}'
        await until(lambda: not server.uvicorn.server_state.tasks)
    assert_calm(caplog)


async def test_an_answer_that_is_no_json_is_the_apps_to_give(stage):
    house = House()

    @house.app.exception_handler(HandshakeRefused)
    def answer(request: Request, error: HandshakeRefused) -> PlainTextResponse:  # in a thread
        return PlainTextResponse(f"no: {error.reason}", error.status_code, error.headers)

    async with stage.plays(house.app) as server:
        answer = await knock(server, "/route", ("Origin", "null"))
        assert (answer.status, answer.body) == (403, b"no: http_origin")
