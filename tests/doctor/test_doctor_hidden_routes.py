"""Which sockets no client can reach, and what stands before them."""

import pytest
from starlette.convertors import Convertor, register_url_convertor

from fastapi_rooms.doctor.app_facts import look_at_app
from fastapi_rooms.doctor.hidden_routes import VALUES, paths_of
from fastapi_rooms.doctor.situation import Hidden

HEAD = """\
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Match, Mount, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

from fastapi_rooms import Incoming, RoomsExtension, ws_route

rooms = RoomsExtension()


def socket(path, on=rooms.router):
    @ws_route(on, path)
    async def chat(message: Incoming[str]): ...


app, sub = FastAPI(), FastAPI()
"""


@pytest.fixture
def hidden(workshop):
    def look(text):
        return look_at_app(workshop.load(HEAD + text))[0].hidden_routes

    return look


OWN_TYPES = """\
from starlette.convertors import Convertor, register_url_convertor


class Type(Convertor):
    def __init__(self, regex):
        self.regex = regex

    def convert(self, value):
        return value


class Broken(Type):
    def convert(self, value):
        raise LookupError(value)


for name, regex in {"colour": "red|green", "hexes": "[0-9a-f]+", "plain": "[0-9a-z.-]+"}.items():
    register_url_convertor(name, Type(regex))
register_url_convertor("broken", Broken("[a-z]+"))
"""

REACHED = {
    "alone": "socket('/ws/{room}')\napp.include_router(rooms.router)",
    "before a mount": "socket('/ws/{room}')\napp.include_router(rooms.router)\napp.mount('/', sub)",
    "before a mount, but registered later": "app.include_router(rooms.router)\napp.mount('/', sub)\nsocket('/ws')",
    "beside a mount": "socket('/ws')\napp.mount('/ws', sub)\napp.include_router(rooms.router)",
    "behind a page": "app.add_api_route('/ws', lambda: None)\nsocket('/ws')\napp.include_router(rooms.router)",
    "behind one for numbers": "socket('/{n:int}')\nsocket('/{room}')\napp.include_router(rooms.router)",
    "behind one for a name": "socket('/ws/lobby')\nsocket('/ws/{room}')\napp.include_router(rooms.router)",
    "in a mounted app": "socket('/ws', sub)\napp.mount('/sub/{shop}', sub)",
    "in a mounted router": "app.mount('/sub', rooms.router)\nsocket('/ws')",
    "in routers in routers": """\
api = APIRouter(prefix="/api")
api.include_router(rooms.router, prefix="/v1")
app.include_router(api)
socket("/ws/{room}/{path:path}")
""",
    "twice": "socket('/ws')\napp.include_router(rooms.router)\napp.include_router(rooms.router)",
    "behind another host": "app.host('example.com', sub)\nsocket('/ws')\napp.include_router(rooms.router)",
    "not by us": "app.mount('/', sub)\n@app.websocket('/ws')\nasync def theirs(websocket: WebSocket): ...",
    "in a host, of which nothing is said": "socket('/ws', sub)\napp.mount('/', FastAPI())\napp.host('a.com', sub)",
    "behind who knows what": """\
class Everything(BaseRoute):
    def matches(self, scope):
        return Match.FULL, {}

app.router.routes.append(Everything())
socket("/ws")
app.include_router(rooms.router)
""",
    "in who knows what": """\
class Group(BaseRoute):
    routes = rooms.router.routes

    def matches(self, scope):
        return Match.NONE, {}

app.router.routes.append(Group())
socket("/ws")
""",
    "with a parameter that cannot be made up": f"""\
{OWN_TYPES}
app.mount("/", sub)
socket("/{{name:colour}}")
app.include_router(rooms.router)
""",
    "with a type of its own, behind one for numbers": f"""\
{OWN_TYPES}
socket("/ws/{{number:int}}")
socket("/ws/{{code:hexes}}")
app.include_router(rooms.router)
""",
    "behind a type of the app's own": f"""\
{OWN_TYPES}
socket("/ws/{{name:plain}}")
socket("/ws/{{room}}")
app.include_router(rooms.router)
""",
    "behind a mount with a type of the app's own": f"""\
{OWN_TYPES}
sub.mount("/", FastAPI())
app.mount("/{{name:plain}}", sub)
socket("/{{shop}}/ws")
app.include_router(rooms.router)
""",
    "behind a type that cannot be read": f"""\
{OWN_TYPES}
app.mount("/{{name:broken}}", sub)
app.mount("/", sub)
socket("/ws/news")
app.include_router(rooms.router)
""",
    "behind what raises": """\
class Tenant(BaseRoute):
    def matches(self, scope):
        raise KeyError("x-tenant")

app.router.routes.append(Tenant())
app.mount("/", sub)
socket("/ws")
app.include_router(rooms.router)
""",
    "with a name that the mount has, too": "socket('/ws/{id}', sub)\napp.mount('/t/{id}', sub)",
}


@pytest.mark.parametrize("text", REACHED.values(), ids=REACHED)
def test_what_can_be_reached(hidden, text):
    assert hidden(text) == ()


A_MOUNT = "the mount of FastAPI"
A_SOCKET = "the WebSocket route of chat"

HIDDEN = {
    "a mount at the root": (
        "app.mount('/', sub)\nsocket('/ws/{room}')\napp.include_router(rooms.router)",
        Hidden(path="/ws/{room}", behind=A_MOUNT, at="/"),
    ),
    "files at the root": (
        "app.mount('/', StaticFiles(directory='.'))\nsocket('/ws')\napp.include_router(rooms.router)",
        Hidden(path="/ws", behind="the mount of StaticFiles", at="/"),
    ),
    "a mount at a prefix": (
        "app.mount('/api', sub)\nsocket('/ws')\napp.include_router(rooms.router, prefix='/api')",
        Hidden(path="/api/ws", behind=A_MOUNT, at="/api"),
    ),
    "routes in a mount": (
        "app.router.routes.append(Mount('/api', routes=[]))\nsocket('/api/ws')\napp.include_router(rooms.router)",
        Hidden(path="/api/ws", behind="the mount", at="/api"),
    ),
    "a mount in a mount": (
        "sub.mount('/in', FastAPI())\napp.mount('/api', sub)\nsocket('/api/in/ws', app)",
        Hidden(path="/api/in/ws", behind=A_MOUNT, at="/api/in"),
    ),
    "a mount before a mount": (
        "app.mount('/a', FastAPI())\nsocket('/b/ws', sub)\napp.mount('/a', sub)",
        Hidden(path="/a/b/ws", behind=A_MOUNT, at="/a"),
    ),
    "the same path": (
        "socket('/ws')\napp.include_router(rooms.router)\nsocket('/ws', app)",
        Hidden(path="/ws", behind=A_SOCKET, at="/ws"),
    ),
    "a parameter that takes more": (
        "socket('/ws/{room}')\nsocket('/ws/{number:int}')\napp.include_router(rooms.router)",
        Hidden(path="/ws/{number:int}", behind=A_SOCKET, at="/ws/{room}"),
    ),
    "a parameter that takes a name": (
        "socket('/{path:path}')\nsocket('/ws/lobby')\napp.include_router(rooms.router, prefix='/api')",
        Hidden(path="/api/ws/lobby", behind=A_SOCKET, at="/api/{path:path}"),
    ),
    "somebody else's socket": (
        """\
@app.websocket("/ws/{name}")
async def theirs(websocket: WebSocket): ...

socket("/ws/{room}")
app.include_router(rooms.router)
""",
        Hidden(path="/ws/{room}", behind="the WebSocket route of theirs", at="/ws/{name}"),
    ),
    "a name that the mount has, too": (
        "socket('/{path:path}', sub)\nsocket('/ws/{id}', sub)\napp.mount('/t/{id}', sub)",
        Hidden(path="/t/{id}/ws/{id}", behind=A_SOCKET, at="/t/{id}/{path:path}"),
    ),
    "beside a type of the app's own": (
        f"{OWN_TYPES}\nsocket('/x/{{n:hexes}}', app)\napp.mount('/', sub)\nsocket('/ws', app)",
        Hidden(path="/ws", behind=A_MOUNT, at="/"),
    ),
    "beside pages of the app's own kind": (
        """\
from fastapi.routing import APIRoute

class ByTenant(APIRoute):
    def matches(self, scope):
        return super().matches(scope)

app.router.add_api_route("/page", lambda: None, route_class_override=ByTenant)
app.mount("/", sub)
socket("/ws", app)
""",
        Hidden(path="/ws", behind=A_MOUNT, at="/"),
    ),
    "all hosts": (
        "app.router.routes.append(Host('{any:path}', sub))\nsocket('/ws')\napp.include_router(rooms.router)",
        Hidden(path="/ws", behind="the Host", at="/"),
    ),
}


@pytest.mark.parametrize(("text", "found"), HIDDEN.values(), ids=HIDDEN)
def test_what_no_client_can_reach(hidden, text, found):
    assert hidden(text) == (found,)


def test_a_mount_in_a_router(hidden):
    text = "api = APIRouter()\napi.mount('/ws', sub)\napp.include_router(api)\nsocket('/ws/{room}', app)"
    behind = Hidden(path="/ws/{room}", behind=A_MOUNT, at="/ws")
    assert hidden(text) in [(behind,), ()], "older versions of FastAPI leave such a mount out"


def test_paths_fit_their_template():
    assert list(paths_of("/ws")) == ["/ws"]
    assert list(paths_of("/{n:int}/x")) == ["/70517/x"]
    assert set(paths_of("/{room}")) == {f"/{value}" for value in VALUES if "/" not in value}
    assert len(list(paths_of("/{a}/{b}/{c}/{d}/{e}"))) == 100


def test_types_of_ones_own():
    class Even(Convertor):
        regex = "[0-9]*[02468]"

    register_url_convertor("even", Even())
    assert list(paths_of("/{n:even}")) == []
