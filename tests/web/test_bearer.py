"""A bearer token among the subprotocols, on a real server: who gets in, what is selected, and that it shows nowhere."""

import logging
from base64 import urlsafe_b64encode
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from stage import FASTAPI, refused
from support import RawClient

from fastapi_rooms import ConfigurationError, ConnectionDep, Incoming, ManagerDep
from fastapi_rooms.web.bearer import BearerSubprotocol

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.t-IDcSemACt8x4iTMCda8Yhe3iZaWbvV5XKSTbuAn0M"
OPAQUE = "ab/cd+ef=="
USERS = {JWT: "ann", OPAQUE: "bob"}


def encoded(token):
    return "base64url.bearer." + urlsafe_b64encode(token.encode()).decode().rstrip("=")


def an_app(rooms, **options):
    bearer = BearerSubprotocol(**options)

    async def user(token: Annotated[str | None, Depends(bearer)]) -> str | None:
        if token is None:
            return None
        if token not in USERS:
            raise HTTPException(401, "unknown token")
        return USERS[token]

    @rooms.ws_route("/ws", user_id=user)
    async def ws(message: Incoming[str], connection: ConnectionDep) -> list[object]:
        return [connection.user_id, connection.websocket.scope["subprotocols"]]

    app = FastAPI()
    app.include_router(rooms.router)
    return app


async def comes_in(server, *offered, path="/ws"):
    """Offer subprotocols; return which one was selected, and who the server takes one for."""
    async with server.client(path, subprotocols=offered or None) as client:
        await client.send("who am I?")
        user, told = await client.receive_json()
        selected = client.websocket.subprotocol
        assert selected is None or selected in told
        assert not any("bearer." in one for one in told), "nobody selects the token by mistake"
        return selected, user


@pytest.mark.parametrize(
    ("offered", "user"),
    [
        (("bearer", f"bearer.{JWT}"), "ann"),
        ((f"bearer.{JWT}", "bearer"), "ann"),
        (("bearer", encoded(JWT)), "ann"),
        (("bearer", encoded(OPAQUE)), "bob"),
    ],
)
async def test_a_token_is_found_and_the_marker_selected(stage, wire, loop, rooms, offered, user):
    async with stage.plays(an_app(rooms)) as server:
        assert await comes_in(server, *offered) == ("bearer", user)


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        (("chat.v1", f"bearer.{JWT}"), "chat.v1"),
        (("chat.v1", "chat.v2", "bearer", f"bearer.{JWT}"), "chat.v2"),
        ((f"bearer.{JWT}", "chat.v3", "bearer"), "bearer"),
        ((f"bearer.{JWT}", "chat.v3"), None),
        ((f"bearer.{JWT}",), None),
    ],
)
async def test_what_the_app_supports_is_selected_before_the_marker_and_never_a_token(stage, rooms, offered, selected):
    async with stage.plays(an_app(rooms, supported=["chat.v2", "chat.v1"])) as server:
        assert await comes_in(server, *offered) == (selected, "ann")


@pytest.mark.parametrize(
    "offered",
    [
        (),
        ("bearer",),
        ("bearer", JWT),
        ("bearer", "bearer."),
        ("bearer", "Bearer." + JWT),
        ("bearer", f"bearer.{JWT}", encoded(OPAQUE)),
        ("bearer", "base64url.bearer."),
        ("bearer", "base64url.bearer.a"),
        ("bearer", "base64url.bearer.***"),
        ("bearer", encoded("tökén")),
        ("bearer", encoded("line\r\nbreak")),
        ("bearer", "base64url.bearer._w"),
    ],
)
async def test_who_has_no_token_or_several_is_refused_before_accept(stage, rooms, offered):
    async with stage.plays(an_app(rooms)) as server:
        response = await refused(server, "/ws", subprotocols=offered or None)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert bytes(response.body) == b'{"detail":"Valid credentials are needed."}'


async def test_a_token_may_be_left_out_where_that_is_allowed(stage, rooms):
    async with stage.plays(an_app(rooms, supported=["chat.v1"], auto_error=False)) as server:
        assert await comes_in(server) == (None, None)
        assert await comes_in(server, "chat.v1") == ("chat.v1", None)
        assert await comes_in(server, "chat.v1", f"bearer.{JWT}") == ("chat.v1", "ann")


@pytest.mark.skipif(FASTAPI < (0, 146), reason="the security classes of this FastAPI are for HTTP alone")
async def test_programs_send_the_same_token_in_a_header(stage, rooms):
    in_header, in_subprotocol = HTTPBearer(auto_error=False), BearerSubprotocol(auto_error=False)

    async def user(
        header: Annotated[HTTPAuthorizationCredentials | None, Depends(in_header)],
        subprotocol: Annotated[str | None, Depends(in_subprotocol)],
    ) -> str:
        token = header.credentials if header is not None else subprotocol
        if token not in USERS:
            raise HTTPException(401)
        return USERS[token]

    @rooms.ws_route("/ws", user_id=user)
    async def ws(message: Incoming[str], connection: ConnectionDep) -> list[object]:
        return [connection.user_id, []]

    @rooms.router.get("/http")
    async def http_route(user_id: Annotated[str, Depends(user)]) -> str:
        return user_id

    app = FastAPI()
    app.include_router(rooms.router)
    header = {"Authorization": f"Bearer {JWT}"}
    async with stage.plays(app) as server, server.http() as http:
        async with server.client("/ws", additional_headers=header) as client:
            await client.send("who am I?")
            assert await client.receive_json() == ["ann", []]
        assert (await http.get("/http", headers=header)).json() == "ann"
        assert (await http.get("/http")).status_code == 401


async def test_a_token_is_in_no_answer_and_in_no_log(stage, rooms, caplog):
    caplog.set_level(logging.DEBUG, "fastapi_rooms")
    caplog.set_level(logging.INFO, "uvicorn")
    async with stage.plays(an_app(rooms)) as server:
        for offered in (("bearer", f"bearer.{JWT}"), ("bearer", encoded(OPAQUE))):
            async with server.client("/ws", subprotocols=offered) as client:
                shown = str(client.websocket.response.headers)
                assert shown.lower().count("sec-websocket-protocol: bearer\r\n") == 1
                assert not any(secret in shown for secret in (JWT, OPAQUE, offered[1]))
        response = await refused(server, "/ws", subprotocols=["bearer", "bearer.unknown-t0k3n"])
        assert "unknown-t0k3n" not in f"{response.headers}{response.body}"
    logged = "\n".join(caplog.handler.format(record) for record in caplog.records)
    assert "connection open" in logged
    assert not any(secret in logged for secret in (JWT, OPAQUE, encoded(OPAQUE), "unknown-t0k3n"))


async def test_what_is_offered_may_come_in_several_lines(stage, rooms):
    async with stage.plays(an_app(rooms)) as server:
        path = f"/ws HTTP/1.1\r\nSec-WebSocket-Protocol: bearer\r\nSec-WebSocket-Protocol:  bearer.{JWT} ,\r\nX: "
        RawClient(server, path).close()  # it was let in


async def test_what_an_app_selects_itself_counts_more(stage, rooms):
    bearer = BearerSubprotocol()
    app = FastAPI()
    app.include_router(rooms.router)

    @app.websocket("/ws")
    async def ws(request_manager: ManagerDep, connection: ConnectionDep, token: Annotated[str, Depends(bearer)]):
        await request_manager.connect(connection.websocket, subprotocol="chat.v1")
        async for _ in connection.messages(str):
            await connection.send(["ann", connection.websocket.scope["subprotocols"]])
        request_manager.disconnect(connection)

    async with stage.plays(app) as server:
        assert await comes_in(server, "chat.v1", "bearer", f"bearer.{JWT}") == ("chat.v1", "ann")


async def test_without_the_dependency_nothing_is_selected(stage, rooms):
    @rooms.ws_route("/ws")
    async def ws(message: Incoming[str], connection: ConnectionDep) -> list[object]:
        return [connection.user_id, ["chat.v1"]]

    async with stage.plays(rooms) as server:
        assert await comes_in(server, "chat.v1") == (None, None)


@pytest.mark.parametrize("supported", ["chat.v1", [""], ["a b"], ["a,b"], ["é"], ["bearer.x"], ["base64url.bearer.x"]])
def test_what_can_be_no_subprotocol_is_refused(supported):
    with pytest.raises(ConfigurationError, match=r"supported takes a list|can be no subprotocol"):
        BearerSubprotocol(supported)


def test_it_shows_what_the_app_supports():
    assert repr(BearerSubprotocol(["chat.v1"])) == "<BearerSubprotocol supported=['chat.v1']>"


async def test_an_http_request_has_no_subprotocols(stage):
    app = FastAPI()

    @app.get("/")
    async def get(request: Request, token: Annotated[str | None, Depends(BearerSubprotocol(auto_error=False))]) -> bool:
        return token is None

    async with stage.plays(app) as server, server.http() as http:
        assert (await http.get("/")).json() is True
