"""Who asks for the path of a WebSocket route by plain HTTP is told what it is."""

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from stage import smallest_app
from support import live

from fastapi_rooms import Incoming, RoomsExtension, ws_route


def needs_a_socket(websocket: WebSocket) -> str:
    return websocket.url.path


@pytest.fixture
def app(rooms):
    app = FastAPI(lifespan=rooms.lifespan)
    inner = APIRouter(prefix="/inner", dependencies=[Depends(needs_a_socket)])

    for router, path in ((inner, "/ws/{name}"), (inner, "/page"), (app, "/ws"), (app, "/page")):

        @ws_route(router, path)
        async def echo(message: Incoming[str]) -> str:
            return message

    outer = APIRouter(prefix="/outer")
    outer.include_router(inner)
    app.include_router(outer)

    @app.get("/outer/inner/page")
    @app.get("/page")
    def page() -> str:
        return "a page"

    return app


@pytest.mark.filterwarnings("ignore:The `__fields__` attribute")  # an old FastAPI looks at it
async def test_a_plain_get_says_what_may_be_wrong_where_nothing_else_answers(app):
    with live(app) as server:
        async with server.http() as http:
            for path in ("/ws", "/outer/inner/ws/ann"):
                answer = await http.get(path)
                assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
                assert answer.headers["connection"].lower() == "upgrade"
                assert "a proxy in front of the app has removed its Upgrade header" in answer.text
            assert (await http.post("/ws")).status_code == 404
            for path in ("/page", "/outer/inner/page"):
                assert (await http.get(path)).json() == "a page"
            assert list((await http.get("/openapi.json")).json()["paths"]) == ["/page", "/outer/inner/page"]
        for path in ("/ws", "/page", "/outer/inner/ws/ann", "/outer/inner/page"):
            async with server.client(path) as client:
                await client.send("hello")
                assert await client.receive() == "hello"


@pytest.mark.parametrize(("version", "expected"), [("1.0", {"upgrade", "connection"}), ("2", set()), ("3", set())])
async def test_from_http_2_on_there_is_no_header_to_upgrade(app, version, expected):
    sent = []
    scope = {"type": "http", "method": "GET", "path": "/ws", "raw_path": b"/ws", "query_string": b"", "headers": []}
    scope |= {"http_version": version, "scheme": "http", "root_path": "", "state": {}}

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event):
        sent.append(event)

    await app(scope, receive, send)
    assert sent[0]["status"] == 426
    assert {name.decode() for name, _ in sent[0]["headers"]} & {"upgrade", "connection"} == expected


def test_the_name_of_a_route_leads_to_its_socket():
    rooms = RoomsExtension()

    @rooms.ws_route("/ws/{name}", name="chat")
    async def chat(name: str, message: Incoming[str]) -> None: ...

    assert smallest_app(rooms).url_path_for("chat", name="ann") == "/ws/ann"
