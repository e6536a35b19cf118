"""What can be seen of an app without starting it."""

from dataclasses import dataclass

import pytest

from fastapi_rooms.doctor.app_facts import look_at_app
from fastapi_rooms.doctor.situation import Mounted, Start

# Old ways to start things are what some of it is about.
pytestmark = pytest.mark.filterwarnings("ignore")

HEAD = """\
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from fastapi_rooms import ConnectionManager, DistributedWebSocketManager, RoomsExtension, RoomsSettings

def hook(): ...

"""


@dataclass
class Seen:
    app: object
    rooms: object


@pytest.fixture
def see(workshop):
    def look(text):
        return Seen(*look_at_app(workshop.load(HEAD + text)))

    return look


ATTACHED = {
    "as the lifespan": "rooms = RoomsExtension()\napp = FastAPI(lifespan=rooms.lifespan)",
    "by its router": "rooms = RoomsExtension()\napp = FastAPI()\napp.include_router(rooms.router)",
    "by its router, below another lifespan": """\
rooms = RoomsExtension()
app = FastAPI(lifespan=asynccontextmanager(lambda app: None))
app.include_router(APIRouter())
app.include_router(rooms.router)
""",
    "in a router that is included": """\
rooms = RoomsExtension()
api = APIRouter(prefix="/api")
api.include_router(rooms.router)
app = FastAPI()
app.include_router(api)
""",
    "twice": "rooms = RoomsExtension()\napp = FastAPI(lifespan=rooms.lifespan)\napp.include_router(rooms.router)",
    "by a factory": """\
def app():
    rooms = RoomsExtension()
    return FastAPI(lifespan=rooms.lifespan)
""",
}


@pytest.mark.parametrize("text", ATTACHED.values(), ids=ATTACHED)
def test_an_extension_is_attached(see, text):
    seen = see(text)
    assert (seen.app.start, seen.app.extensions, seen.app.managers) == (Start.EXTENSION, 1, 1)
    assert seen.rooms.needs_start
    assert seen.app.lost_routes == seen.app.ignored_hooks == seen.app.mounted == ()


def test_a_lifespan_that_enters_the_extensions(see):
    seen = see("""
class Container:
    rooms = RoomsExtension(settings=RoomsSettings(key_prefix="shop"))

@asynccontextmanager
async def lifespan(app):
    async def inner():
        async with Container.rooms.lifespan(app):
            pass
    yield

app = FastAPI(lifespan=lifespan)
""")
    assert (seen.app.start, seen.app.extensions) == (Start.OWN_LIFESPAN, 0)
    assert seen.rooms.settings.key_prefix == "shop"


@pytest.mark.parametrize(
    "text",
    [
        "@asynccontextmanager\nasync def own(app): yield\nrooms = RoomsExtension()\napp = FastAPI(lifespan=own)",
        "class Own:\n    def __call__(self, app): ...\nrooms = RoomsExtension()\napp = FastAPI(lifespan=Own())",
        "rooms = RoomsExtension()\napp = FastAPI(on_startup=[hook])",
        """\
rooms = RoomsExtension()
app = FastAPI(lifespan=rooms.lifespan)
app.router.lifespan_context = asynccontextmanager(hook)
""",
    ],
    ids=["a function", "an object", "a hook", "put over the extension's"],
)
def test_a_start_in_which_no_extension_can_be_seen(see, text):
    assert see(text).app.start is Start.UNSEEN


def test_an_app_that_starts_nothing(see):
    seen = see("rooms = RoomsExtension()\napp = FastAPI()")
    assert (seen.app.start, seen.app.extensions, seen.app.managers) == (Start.NOBODY, 0, 1)


def test_an_app_without_rooms(see):
    assert see("app = FastAPI()").rooms is None


def test_a_manager_alone_needs_no_start(see):
    rooms = see("manager = ConnectionManager()\napp = FastAPI()").rooms
    assert (rooms.backend, rooms.joins_processes, rooms.needs_start) == (None, False, False)


def test_the_manager_of_many_nodes_needs_one(see):
    rooms = see("manager = DistributedWebSocketManager('redis://localhost')\napp = FastAPI()").rooms
    assert (rooms.backend, rooms.joins_processes, rooms.needs_start) == ("RedisBackend", True, True)


def test_a_hub_in_memory_joins_no_processes(see):
    rooms = see(
        "from fastapi_rooms.backends.memory import Hub, MemoryBackend\n"
        "rooms = RoomsExtension(MemoryBackend(Hub()))\napp = FastAPI(lifespan=rooms.lifespan)"
    ).rooms
    assert (rooms.backend, rooms.joins_processes) == ("MemoryBackend", False)


def test_of_several_managers_the_one_that_starts_is_looked_at(see):
    seen = see("""
other = RoomsExtension(settings=RoomsSettings(key_prefix="other"))
rooms = RoomsExtension(settings=RoomsSettings(key_prefix="shop"))
app = FastAPI(lifespan=rooms.lifespan)
""")
    assert (seen.app.extensions, seen.app.managers, seen.rooms.settings.key_prefix) == (1, 2, "shop")


def test_two_extensions_on_one_app(see):
    seen = see("""
one, other = RoomsExtension(), RoomsExtension()
app = FastAPI(lifespan=one.lifespan)
app.include_router(other.router)
""")
    assert seen.app.extensions == 2


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("app = FastAPI(on_startup=[hook])", ()),
        ("app = FastAPI(on_startup=[hook])\napp.include_router(rooms.router)", ()),
        ("app = FastAPI(lifespan=rooms.lifespan, on_startup=[hook], on_shutdown=[hook])", ("hook",)),
        ("app = FastAPI(lifespan=rooms.lifespan)\nplain = APIRouter(on_startup=[hook])\napp.include_router(plain)", ()),
    ],
    ids=["without lifespan", "beside the router", "beside the lifespan", "of a router that has none"],
)
def test_hooks_that_will_not_be_called(see, text, ignored):
    assert see(f"rooms = RoomsExtension()\n{text}").app.ignored_hooks == ignored


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("app = FastAPI(lifespan=rooms.lifespan)", ("/ws",)),
        ("app = FastAPI()\napp.include_router(rooms.router)", ()),
        ("app, sub = FastAPI(), FastAPI()\nsub.include_router(rooms.router)\napp.mount('/sub', sub)", ()),
    ],
    ids=["not included", "included", "included in a mounted app"],
)
def test_routes_on_a_router_that_is_not_in_the_app(see, text, lost):
    route = "rooms = RoomsExtension()\n@rooms.ws_route('/ws')\nasync def chat(): ...\n"
    assert see(route + text).app.lost_routes == lost


def test_mounted_apps_with_something_to_start(see):
    seen = see("""
from starlette.applications import Starlette
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles

rooms = RoomsExtension()
inner = FastAPI(lifespan=rooms.lifespan)
hooked = FastAPI(on_shutdown=[hook])
hooked.mount("/inner", inner)
app = FastAPI(lifespan=rooms.lifespan)
app.mount("/quiet", FastAPI())
app.mount("/plain", Starlette())
app.mount("/files", StaticFiles(directory="."))
app.mount("/hooked", hooked)
router = APIRouter()
router.mount("/below", FastAPI(lifespan=asynccontextmanager(hook)))
app.include_router(router)
""")
    found = set(seen.app.mounted)
    assert Mounted(path="/hooked") in found
    assert Mounted(path="/hooked/inner", has_rooms=True) in found
    assert {one.path for one in found} <= {"/hooked", "/hooked/inner", "/below"}


def test_what_routes_take_in_place_of_the_node(see):
    seen = see("""\
from fastapi_rooms import Incoming, Limits, ws_route

rooms = RoomsExtension(settings=RoomsSettings(max_message_bytes=1000))


def socket(on, path, **limits):
    @ws_route(on, path, limits=Limits(**limits) if limits else None)
    async def chat(message: Incoming[str]): ...


socket(rooms.router, "/ws")
socket(rooms.router, "/upload/{name}", max_message_bytes=5000)
socket(rooms.router, "/any", max_message_bytes=None)
socket(rooms.router, "/news", outbox_messages=5)
app, sub, host = FastAPI(), FastAPI(), FastAPI()
app.include_router(rooms.router, prefix="/api")
socket(sub, "/in", max_message_bytes=6000)
app.mount("/sub", sub)
socket(host, "/host", max_message_bytes=7000)
app.host("example.com", host)
""")
    assert seen.rooms.message_bytes_of_routes == (
        ("/api/upload/{name}", 5000),
        ("/api/any", None),
        ("/api/news", 1000),
        ("/sub/in", 6000),
        ("/host", 7000),
    )
