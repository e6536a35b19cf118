"""A room that is named after the path is the room that the handler names: the value counts, not the text."""

import inspect
from collections.abc import Callable
from datetime import date
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from fastapi import APIRouter, Depends, FastAPI, Path, Query
from pydantic import AfterValidator
from stage import refused
from starlette.convertors import CONVERTOR_TYPES, Convertor

from fastapi_rooms import (
    ConfigurationError,
    Connection,
    ConnectionDep,
    Incoming,
    ManagerDep,
    RoomsExtension,
    ws_route,
)
from fastapi_rooms.web.plan import make_plan, read_options
from fastapi_rooms.web.room_template import RoomTemplate

CAPITALS = str(UUID(int=0xABCDEF << 100)).upper()


class Place(str, Enum):  # noqa: UP042 - as most apps have it; its text is "Place.KITCHEN"
    KITCHEN = "kitchen"


class Floor(Enum):
    FIRST = 1


class Nothing(Enum):
    pass


Lower = Annotated[str, AfterValidator(str.lower)]


@pytest.mark.parametrize(
    ("kind", "path", "text", "named"),
    [
        (int, "{key}", "007", "room:7"),
        (int, "{key:int}", "007", "room:7"),
        (float, "{key}", "1", "room:1.0"),
        (UUID, "{key}", CAPITALS, f"room:{CAPITALS.lower()}"),
        (UUID, "{key:uuid}", CAPITALS, f"room:{CAPITALS.lower()}"),
        (str, "{key:path}", "a/b", "room:a/b"),
        (Lower, "{key}", "Kitchen", "room:kitchen"),
        (Annotated[int, Path(ge=1)], "{key}", "007", "room:7"),
        (date, "{key}", "946684800", "room:2000-01-01"),
    ],
)
async def test_a_broadcast_to_the_room_that_the_handler_names_reaches_its_members(stage, kind, path, text, named):
    rooms = RoomsExtension()

    async def handler(key, message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room(f"room:{key}", message)

    handler.__annotations__["key"] = kind
    rooms.ws_route(f"/ws/{path}", room="room:{key}")(handler)
    async with stage.plays(rooms) as server, server.client(f"/ws/{text}") as client:
        await client.send("hello")
        assert await client.receive() == "hello"
        assert list(rooms.manager.active_rooms) == [named]


@pytest.mark.parametrize(
    ("kind", "path", "text"),
    [(Place, "{key}", "kitchen"), (Annotated[Place, Path()], "{key}", "kitchen"), (Floor, "{key:int}", "1")],
)
async def test_an_enum_is_filled_in_by_its_value(rooms, stage, kind, path, text):
    async def handler(message: Incoming[str], key, manager: ManagerDep) -> None:
        await manager.broadcast_to_room(f"room:{key.value}", f"{message} {key}")

    handler.__annotations__["key"] = kind
    rooms.ws_route(f"/ws/{path}", room="room:{key}")(handler)
    async with stage.plays(rooms) as server, server.client(f"/ws/{text}") as client:
        await client.send("at")
        assert await client.receive() in ("at Place.KITCHEN", "at Floor.FIRST")


def by_number(key: int) -> str:
    return f"number {key}"


def by_alias(of_the_path: Annotated[int, Path(alias="key", ge=1)]) -> str:
    return f"number {of_the_path}"


def by_default(of_the_path: int = Path(alias="key")) -> str:
    return f"number {of_the_path}"


def one_below(number: Annotated[str, Depends(by_number)]) -> str:
    return number


def without_a_type(key) -> dict[str, Any]:
    return {"is": key}


def cannot_be_read(key: "Nowhere") -> str:  # noqa: F821 - FastAPI says so at the first client
    raise NotImplementedError


async def may_join(connection: Connection, room: str, key: int) -> bool:
    return room == f"room:{key}"


@pytest.mark.parametrize(
    "options",
    [
        {"user_id": by_number},
        {"user_id": by_alias},
        {"user_id": by_default},
        {"user_id": one_below},
        {"dependencies": [by_number]},
        {"authorize_join": may_join},
    ],
)
async def test_what_the_handler_does_not_take_has_the_type_that_a_dependency_gives_it(rooms, stage, options):
    @rooms.ws_route("/ws/{key}", room="room:{key}", **options)
    async def session(connection: ConnectionDep) -> None:
        await connection.send(list(connection.rooms))

    async with stage.plays(rooms) as server:
        async with server.client("/ws/007") as client:
            assert await client.receive_json() == ["room:7"]
        assert (await refused(server, "/ws/seven")).status_code == 403


async def test_a_dependency_of_the_handler_says_the_type_too(rooms, stage):
    @rooms.ws_route("/ws/{key}", room="room:{key}")
    async def session(connection: ConnectionDep, key: Annotated[str, Depends(by_number)]) -> None:
        await connection.send([*connection.rooms, key])

    async with stage.plays(rooms) as server, server.client("/ws/007") as client:
        assert await client.receive_json() == ["room:7", "number 7"]


@pytest.mark.parametrize(
    ("path", "options", "room"),
    [
        ("{key}", {}, "room:007"),
        ("{key:int}", {}, "room:7"),
        ("{key:int}", {"metadata": without_a_type}, "room:7"),
    ],
)
async def test_what_nobody_takes_is_what_the_convertor_of_the_path_made(rooms, stage, path, options, room):
    @rooms.ws_route(f"/ws/{path}", room="room:{key}", **options)
    async def session(connection: ConnectionDep) -> None:
        await connection.send(list(connection.rooms))

    async with stage.plays(rooms) as server, server.client("/ws/007") as client:
        assert await client.receive_json() == [room]


def on_a_prefix_of_the_router(session: Callable[..., Any], app: FastAPI) -> None:
    router = APIRouter(prefix="/t/{tenant}")
    ws_route(router, "/ws/{key}", room="{tenant}/{key}")(session)
    app.include_router(router)


def on_a_prefix_where_it_is_included(session: Callable[..., Any], app: FastAPI) -> None:
    router = APIRouter()
    ws_route(router, "/ws/{key}", room="{tenant}/{key}")(session)
    app.include_router(router, prefix="/t/{tenant}")


def on_a_mount(session: Callable[..., Any], app: FastAPI) -> None:
    mounted = FastAPI()
    ws_route(mounted, "/ws/{key}", room="{tenant}/{key}")(session)
    app.mount("/t/{tenant}", mounted)


@pytest.mark.parametrize("put", [on_a_prefix_of_the_router, on_a_prefix_where_it_is_included, on_a_mount])
async def test_parameters_of_a_prefix_count_as_well(rooms, stage, put):
    async def session(connection: ConnectionDep, tenant: Annotated[int, Path()], key: int) -> None:
        await connection.send([*connection.rooms, tenant, key])

    app = FastAPI(lifespan=rooms.lifespan)
    put(session, app)
    async with stage.plays(app) as server, server.client("/t/01/ws/02") as client:
        assert await client.receive_json() == ["1/2", 1, 2]


async def test_a_dependency_may_take_the_parameter_of_a_prefix_for_the_template(rooms, stage):
    def of(tenant: Annotated[int, Path(ge=0)]) -> str:
        return f"tenant {tenant}"

    router = APIRouter()

    @ws_route(router, "/ws/{key}", room="{tenant}/{key}", user_id=of)
    async def session(connection: ConnectionDep) -> None:
        await connection.send([*connection.rooms, connection.user_id])

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(router, prefix="/t/{tenant}")
    async with stage.plays(app) as server, server.client("/t/01/ws/02") as client:
        assert await client.receive_json() == ["1/02", "tenant 1"]


@pytest.mark.parametrize("mark", [Query(), Depends(by_number)])
def test_what_does_not_come_from_the_path_is_no_part_of_a_room(mark):
    async def handler(tenant: Annotated[str, mark], message: Incoming[str]) -> None: ...

    with pytest.raises(
        ConfigurationError,
        match=r"names 'tenant', but the path has 'key': use these, a parameter of the handler that is marked with "
        r"Path\(\), or a dependency",
    ):
        ws_route(APIRouter(), "/ws/{key}", room="{tenant}/{key}")(handler)


def template_of(text: str, kind: Any, path: str = "/ws/{key}", **options: Any) -> RoomTemplate:
    async def handler(message: Incoming[str], key: Any = inspect.Parameter.empty) -> None: ...

    async def without(message: Incoming[str]) -> None: ...

    handler.__defaults__ = None
    handler.__annotations__["key"] = kind
    plan = make_plan(handler if kind is not None else without, read_options(path, room=text, **options))
    assert plan.template is not None
    return plan.template


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("{key:04d}", str, "/ws/{key}"),
        ("{key:04d}", Annotated[str, "doc"], "/ws/{key}"),
        ("{key:04d}", Place, "/ws/{key}"),
        ("{key:s}", int, "/ws/{key}"),
        ("{key:s}", None, "/ws/{key:int}"),
        ("{key:d}", None, "/ws/{key:uuid}"),
        ("{key:d}", None, "/ws/{key}"),
        ("{key!z}", str, "/ws/{key}"),
        ("{key", str, "/ws/{key}"),
    ],
)
def test_a_value_that_cannot_be_written_as_the_template_says_is_an_error_at_decoration(text, kind, path):
    with pytest.raises(ConfigurationError, match="cannot be filled in"):
        template_of(text, kind, path)


@pytest.mark.parametrize(
    ("text", "kind", "path", "value", "room"),
    [
        ("{key:04d}", int, "/ws/{key}", 7, "0007"),
        ("{key:04d}", None, "/ws/{key:int}", 7, "0007"),
        ("{key:%Y}", date, "/ws/{key}", date(2026, 11, 22), "2026"),
        ("{key:{key}}", int, "/ws/{key}", 3, "  3"),
        ("{key:02d}", Floor, "/ws/{key}", Floor.FIRST, "01"),
        ("{key:x}", Nothing, "/ws/{key}", 255, "ff"),
        ("{key:x}", Annotated[Any, "of the app"], "/ws/{key}", 255, "ff"),
    ],
)
def test_a_template_writes_a_value_as_it_says(text, kind, path, value, room):
    template = template_of(text, kind, path)
    assert template.parameters == ()
    assert template.fill({} if kind is None else {"key": value}, {"key": value if kind is None else "raw"}) == room


def test_a_value_that_nobody_can_imagine_is_left_to_the_first_client(monkeypatch):
    class Never(Convertor[Any]):
        regex = "x"

        def convert(self, value: str) -> Any:
            raise ValueError(value)

    monkeypatch.setitem(CONVERTOR_TYPES, "never", Never())
    assert template_of("{key:d}", None, "/ws/{key:never}").filled_by == {}


def test_a_dependency_that_cannot_be_read_says_no_type():
    assert template_of("{key}", None, user_id=cannot_be_read).filled_by == {}


def test_a_parameter_of_a_prefix_without_a_type_may_be_anything():
    async def handler(message: Incoming[str], tenant=Path()) -> None: ...  # noqa: B008

    plan = make_plan(handler, read_options("/ws", room="{tenant:x}"))
    assert plan.template is not None
    assert plan.template.fill({"tenant": 255}, {}) == "ff"
