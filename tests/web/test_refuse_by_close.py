"""Clients that are accepted in order to be refused: where an HTTP status would not reach them."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, HTTPException
from stage import refused, smallest_app
from support import Client, counted, live, until
from websockets.asyncio.client import connect

from fastapi_rooms import BearerSubprotocol, Incoming, Refusal, RoomsExtension, RoomsSettings
from fastapi_rooms.engine.admission import handshake_refused


class NoDenials:
    """A middleware that makes of a server one that can answer a handshake with 403 alone."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope.pop("extensions", None)
        await self.app(scope, receive, send)


def rooms_with(policy: str, wire: str = "auto", **settings: Any) -> RoomsExtension:
    rooms = RoomsExtension(settings=RoomsSettings(refuse_by_close=policy, wire=wire, **settings))

    def login(status: int = 0, words: str = "Who are you?", later: str = "") -> str:
        if status:
            raise HTTPException(status, {"no": "text"} if words == "none" else words, {"Retry-After": later})
        return "ann"

    @rooms.ws_route("/ws", user_id=login)
    async def chat(message: Incoming[str]) -> str:
        return message

    return rooms


@pytest.fixture(params=["auto", "asgi"])
def wire(request):
    return request.param


async def told(server: Any, path: str = "/ws", **options: Any) -> tuple[int, str]:
    async with connect(server.url(path), **options) as websocket:
        return await Client(websocket).closed()


def app_of(rooms: RoomsExtension, server: str) -> Any:
    app = smallest_app(rooms)
    return NoDenials(app) if server == "without" else app


@pytest.mark.parametrize(("policy", "server"), [("auto", "without"), ("always", "without"), ("always", "with")])
async def test_who_is_refused_is_told_by_a_close_code(policy, server, wire):
    rooms = rooms_with(policy, wire, max_connections=1)
    with live(app_of(rooms, server)) as running:
        assert await told(running, "/ws?status=401") == (4401, "Who are you?")
        assert await told(running, "/ws?status=429&words=Later.&later=7") == (1013, "Later. Retry after 7 s.")
        assert await told(running, "/ws?status=503&words=none&later=tomorrow") == (1013, "")
        assert await told(running, "/ws?status=400&words=" + "x" * 200) == (1008, "x" * 123)
        assert await told(running, "/ws?status=500") == (1011, "Who are you?")
        async with running.client("/ws"):
            await until(lambda: rooms.manager.active_connections == 1)
            assert await told(running) == (1013, "The server has too many connections. Retry after 5 s.")
        await running.call(rooms.manager.drain, 5)
        code, reason = await told(running)
        assert code == 1012
        assert reason.startswith("The server restarts. Retry after ")
    assert counted(rooms.manager.stats().refused) == {
        Refusal.APP: 5,
        Refusal.MAX_CONNECTIONS: 1,
        Refusal.DRAINING: 1,
    }


@pytest.mark.parametrize("policy", ["never", "auto"])
async def test_where_the_status_reaches_the_client_it_is_told_that(policy):
    with live(app_of(rooms_with(policy), "with")) as server:
        assert (await refused(server, "/ws?status=401")).status_code == 401
        assert (await refused(server, "/ws?status=503")).status_code == 503


async def test_by_default_nobody_is_accepted_who_is_refused(caplog, monkeypatch):
    caplog.set_level("INFO", "fastapi_rooms")
    monkeypatch.setattr(handshake_refused, "_denials_said", type(handshake_refused._denials_said)(60.0))
    with live(app_of(rooms_with("never"), "without")) as server:
        assert (await refused(server, "/ws?status=401")).status_code == 403
    assert 'RoomsSettings(refuse_by_close="auto")' in caplog.text


@pytest.mark.parametrize("policy", ["never", "auto"])
async def test_a_403_that_loses_no_more_than_its_body_needs_no_advice(policy, caplog, monkeypatch):
    caplog.set_level("INFO", "fastapi_rooms")
    monkeypatch.setattr(handshake_refused, "_denials_said", type(handshake_refused._denials_said)(60.0))
    with live(app_of(rooms_with(policy), "without")) as server:
        assert (await refused(server, "/ws?status=403")).status_code == 403
    assert "403 alone" not in caplog.text


@pytest.mark.parametrize("server", ["with", "without"])
async def test_a_403_is_never_accepted_nor_any_foreign_page(server):
    rooms = rooms_with("always")
    with live(app_of(rooms, server)) as running:
        assert (await refused(running, "/ws?status=403")).status_code == 403
        foreign = {"origin": "https://evil.example"}
        assert (await refused(running, "/ws", **foreign)).status_code == 403
        assert (await refused(running, "/ws?status=401", **foreign)).status_code == 403
        await running.call(rooms.manager.drain, 5)
        assert (await refused(running, "/ws", **foreign)).status_code == 403, "not even while everybody is refused"


async def test_a_subprotocol_is_selected_and_never_a_token():
    rooms = rooms_with("always")

    async def bearer(token: Annotated[str, Depends(BearerSubprotocol())]) -> str:
        raise HTTPException(401, "not this one")

    @rooms.ws_route("/bearer", user_id=bearer)
    async def chat(message: Incoming[str]) -> None: ...

    with live(app_of(rooms, "with")) as server:
        for path, offered, selected in [
            ("/bearer", ["bearer", "bearer.secret"], "bearer"),
            ("/ws?status=401", ["bearer.secret", "chat.v1"], "chat.v1"),
            ("/ws?status=401", ["bearer.secret"], None),
            ("/ws?status=401", [], None),
        ]:
            async with connect(server.url(path), subprotocols=offered or None) as websocket:
                assert websocket.subprotocol == selected
                assert (await Client(websocket).closed())[0] == 4401


async def test_who_goes_before_it_is_told_leaves_no_traceback(caplog):
    caplog.set_level("DEBUG", "fastapi_rooms")

    class Gone:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def gone(event: Any) -> None:
                if event["type"] == "websocket.close":
                    raise OSError("gone")
                await send(event)

            await self.app(scope, receive, gone if scope["type"] == "websocket" else send)

    with live(Gone(app_of(rooms_with("always"), "with"))) as server:
        await told(server, "/ws?status=401")
    assert "a handshake could not be refused by a close: " in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
