"""What FastAPI can never fill on a WebSocket is refused at decoration, wherever it hangs."""

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, Request, Response, WebSocket
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.routing import Host
from support import live, until

from fastapi_rooms import ConfigurationError, Incoming, RoomsExtension, ws_route


class Model(BaseModel):
    number: int


def takes_request(request: Request) -> str:
    return request.url.path


def takes_response(response: Response) -> None: ...


def takes_tasks(tasks: BackgroundTasks) -> None: ...


def takes_body(model: Model) -> None: ...


def takes_values(values: dict[str, int]) -> None: ...


def takes_one_value(value: Annotated[int, Body()]) -> None: ...


def deeper(inner: Annotated[Any, Depends(takes_request)]) -> None: ...


class Site:
    def login(self) -> str:
        return "ann"


WRONG = [
    (takes_request, r"takes_request\(\) cannot be given its parameter 'request', a Request, .*HTTPConnection"),
    (deeper, r"takes_request\(\) cannot be given its parameter 'request'"),
    (takes_response, r"takes_response\(\) .* 'response', a Response, .*connect\(websocket, headers"),
    (takes_tasks, r"takes_tasks\(\) .* 'tasks', BackgroundTasks, .*connection\.start_task"),
    (takes_body, r"takes_body\(\) .* 'model', a body, .*Incoming\[\.\.\.\]"),
    (takes_values, r"takes_values\(\) .* 'values', a body"),
    (takes_one_value, r"takes_one_value\(\) .* 'value', a body"),
    (Site.login, r"Site\.login\(\) .* 'self' .*the method of an object"),
]


async def handle(message: Incoming[str]) -> None: ...


@pytest.mark.parametrize("option", ["user_id", "dependencies", "handler", "router"])
@pytest.mark.parametrize(("wrong", "said"), WRONG, ids=lambda one: getattr(one, "__qualname__", ""))
def test_it_is_refused_with_what_to_write_and_nothing_is_registered(option, wrong, said):
    async def asks(message: Incoming[str], found: Annotated[Any, Depends(wrong)]) -> None: ...

    router = APIRouter(dependencies=[Depends(wrong)] if option == "router" else [])
    options = {"user_id": wrong} if option == "user_id" else {}
    if option == "dependencies":
        options = {"dependencies": [wrong]}
    with pytest.raises(ConfigurationError, match=said):
        ws_route(router, "/ws", **options)(asks if option == "handler" else handle)
    assert router.routes == []


def test_what_a_handler_itself_takes_is_refused_by_its_name():
    rooms = RoomsExtension()

    async def chat(message: Incoming[str], tasks: BackgroundTasks) -> None: ...

    with pytest.raises(ConfigurationError, match=r"chat\(\) cannot be given its parameter 'tasks'"):
        rooms.ws_route("/ws")(chat)


def test_what_can_be_filled_is_registered():
    app = FastAPI()
    before = len(app.routes)

    def fine(connection: HTTPConnection, number: int, model: Annotated[Model, Depends()]) -> None: ...

    ws_route(app, "/ws", user_id=Site().login, dependencies=[fine])(handle)
    assert len(app.routes) == before + 2


# What the app and `include_router` add


UNOPENABLE = [one for one in WRONG if one[0] not in (takes_response, takes_tasks)]


def with_ws() -> RoomsExtension:
    rooms = RoomsExtension()
    rooms.ws_route("/ws")(handle)
    return rooms


def app_with(wrong: Any, where: str) -> tuple[FastAPI, RoomsExtension]:
    rooms = with_ws()
    of_app = FastAPI(dependencies=[Depends(wrong)] if where == "app" else [], lifespan=rooms.lifespan)
    if where == "app":
        of_app.include_router(rooms.router, prefix="/api")
    elif where == "include_router":
        of_app.include_router(rooms.router, prefix="/api", dependencies=[Depends(wrong)])
    elif where == "router in router":
        outer = APIRouter()
        outer.include_router(rooms.router, dependencies=[Depends(wrong)])
        of_app.include_router(outer, prefix="/api")
    else:
        mounted = FastAPI(dependencies=[Depends(wrong)])
        mounted.include_router(rooms.router)
        of_app.mount("/api", mounted)
    return of_app, rooms


@pytest.mark.parametrize("where", ["app", "include_router", "router in router", "mounted app"])
@pytest.mark.parametrize(("wrong", "said"), UNOPENABLE, ids=lambda one: getattr(one, "__qualname__", ""))
async def test_an_app_whose_own_dependency_shuts_a_route_does_not_start(where, wrong, said):
    app, rooms = app_with(wrong, where)
    with pytest.raises(ConfigurationError, match=rf"nobody could open the WebSocket route '/api/ws': {said}"):
        async with rooms.lifespan(app):
            pass
    assert not rooms.is_attached
    assert not hasattr(app.state, "rooms")


def takes_either(request: Request = None, websocket: WebSocket = None) -> None: ...


def may_take_body(model: Model | None = None) -> None: ...


@pytest.mark.parametrize("where", ["app", "include_router"])
@pytest.mark.parametrize("fine", [takes_either, takes_response, takes_tasks, may_take_body])
async def test_a_dependency_of_the_app_that_does_without_is_let_be(where, fine):
    app, rooms = app_with(fine, where)
    with live(app) as server:
        async with server.client("/api/ws") as client:
            await until(lambda: rooms.manager.active_connections == 1)
            await client.send("hello")


def test_a_dependency_for_both_kinds_of_routes_is_let_be_at_decoration_too():
    ws_route(APIRouter(), "/ws", dependencies=[takes_either])(handle)


async def test_other_routes_of_the_app_are_none_of_our_business():
    rooms = RoomsExtension()
    app = FastAPI(dependencies=[Depends(takes_request)], lifespan=rooms.lifespan)

    @app.websocket("/plain")
    async def plain(websocket: WebSocket) -> None: ...

    app.router.routes.append(Host("ws.example.com", FastAPI()))
    async with rooms.lifespan(app):
        assert rooms.is_attached
