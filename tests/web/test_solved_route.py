"""What FastAPI can never fill on a WebSocket is refused at decoration, wherever it hangs."""

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, Request, Response
from pydantic import BaseModel
from starlette.requests import HTTPConnection

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
