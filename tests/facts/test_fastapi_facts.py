"""What `fastapi_rooms.web` and `fastapi_rooms.engine` rely on in FastAPI, Starlette and pydantic."""

import contextlib
import inspect
import json
from contextlib import AsyncExitStack
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.exceptions import WebSocketException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount, compile_path
from starlette.websockets import WebSocketState
from support import RawClient, live, until
from websockets.exceptions import InvalidStatus

from fastapi_rooms.engine.admission.handshake_refused import is_default
from fastapi_rooms.engine.outbound.wire_choice import _SENDS, peel
from fastapi_rooms.web.outcome import _STACKS


@contextlib.contextmanager
def app_with(endpoint: Any, path: str = "/ws", **options: Any):
    """Serve an app with one WebSocket endpoint."""
    app = FastAPI(**options)
    app.add_api_websocket_route(path, endpoint)
    with live(app) as server:
        yield server


async def scope_of_an_endpoint(**options: Any) -> dict[str, Any]:
    """Return the scope as a WebSocket endpoint finds it."""
    scopes = []

    async def endpoint(websocket: WebSocket) -> None:
        scopes.append(dict(websocket.scope))
        await websocket.accept()
        await websocket.close()

    with app_with(endpoint, **options) as server:
        async with server.client("/ws") as client:
            await client.closed()
    return scopes[0]


# Dependencies


async def test_a_dependency_on_http_connection_is_given_the_request_or_the_websocket_itself():
    found: dict[str, Any] = {}

    async def dependency(connection: HTTPConnection) -> HTTPConnection:
        return connection

    async def endpoint(websocket: WebSocket, connection: Annotated[Any, Depends(dependency)]) -> None:
        found["websocket"] = connection is websocket
        await websocket.accept()
        await websocket.close()

    app = FastAPI()
    app.add_api_websocket_route("/ws", endpoint)

    @app.get("/http")
    async def http(connection: Annotated[Any, Depends(dependency)]) -> bool:
        return isinstance(connection, Request)

    with live(app) as server:
        async with server.client("/ws") as client, server.http() as web:
            await client.closed()
            assert (await web.get("/http")).json() is True
    assert found["websocket"], "current_connection tells HTTP from WebSocket by the class of what it is given"


async def test_an_http_exception_before_accept_reaches_the_client_as_an_http_response():
    async def refuse() -> None:
        raise HTTPException(429, "later", {"Retry-After": "7"})

    async def endpoint(websocket: WebSocket, nothing: Annotated[None, Depends(refuse)]) -> None:
        raise AssertionError("dependencies are solved before the endpoint is called")

    with app_with(endpoint) as server, pytest.raises(InvalidStatus) as refusal:
        async with server.client("/ws"):
            pass
    response = refusal.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (429, "7")
    assert json.loads(response.body) == {"detail": "later"}


async def test_an_endpoint_is_read_by_its_signature_and_called_with_keywords():
    async def colour() -> str:
        return "red"

    async def endpoint(**values: Any) -> None:
        websocket = values.pop("socket")
        await websocket.accept()
        await websocket.send_json(values)
        await websocket.close()

    def parameter(name: str, annotation: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)

    endpoint.__signature__ = inspect.Signature(
        [
            parameter("colour", Annotated[Any, Depends(colour)]),
            parameter("number", int),
            parameter("socket", WebSocket),
        ]
    )
    with app_with(endpoint, "/ws/{number}") as server:
        async with server.client("/ws/7") as client:
            assert await client.receive_json() == {"colour": "red", "number": 7}


async def test_dependencies_are_solved_in_order_those_of_routers_and_routes_first_all_before_accept():
    order = []

    def step(name: str) -> Any:
        async def dependency(connection: HTTPConnection) -> None:
            order.append((name, connection.application_state))

        return Depends(dependency)

    async def endpoint(
        websocket: WebSocket, one: Annotated[None, step("one")], two: Annotated[None, step("two")]
    ) -> None:
        await websocket.accept()
        await websocket.close()

    app, router = FastAPI(), APIRouter()
    router.add_api_websocket_route("/ws", endpoint, dependencies=[step("route")])
    app.include_router(router, dependencies=[step("router")])
    with live(app) as server:
        async with server.client("/ws") as client:
            await client.closed()
    assert order == [(name, WebSocketState.CONNECTING) for name in ("router", "route", "one", "two")]


async def test_the_exit_stacks_of_yield_dependencies_are_in_the_scope():
    scope = await scope_of_an_endpoint()
    for key in _STACKS:
        assert isinstance(scope.get(key), AsyncExitStack), f"FastAPI keeps no exit stack under {key!r} any more"


async def test_an_exit_stack_that_was_taken_over_is_not_run_again_and_the_function_scope_is_left_first():
    left = []

    def resource(name: str) -> Any:
        async def dependency():
            yield
            left.append(name)

        return dependency

    async def endpoint(
        websocket: WebSocket,
        a: Annotated[None, Depends(resource("request"), scope="request")],
        b: Annotated[None, Depends(resource("function"), scope="function")],
    ) -> None:
        await websocket.accept()
        taken = AsyncExitStack()
        for key in _STACKS:
            await taken.enter_async_context(websocket.scope[key].pop_all())
        await taken.aclose()
        left.append("endpoint")
        await websocket.close()

    with app_with(endpoint) as server:
        async with server.client("/ws") as client:
            await client.closed()
            await until(lambda: not server.uvicorn.server_state.tasks)
    assert left == ["function", "request", "endpoint"]


# Exception handlers


async def test_exception_handlers_lie_in_the_scope_by_class_and_by_status():
    async def handle(websocket: WebSocket, error: Exception) -> None: ...

    scope = await scope_of_an_endpoint(exception_handlers={ValueError: handle, 418: handle})
    by_class, by_status = scope["starlette.exception_handlers"]
    assert by_class[ValueError] is handle
    assert by_status[418] is handle


async def test_the_handlers_that_are_there_by_default_come_from_modules_that_we_know():
    by_class, by_status = (await scope_of_an_endpoint())["starlette.exception_handlers"]
    assert WebSocketException in by_class
    assert all(map(is_default, by_class.values()))
    assert by_status == {}


async def test_a_response_of_an_exception_handler_breaks_an_accepted_websocket(caplog):
    """The reason for `web/outcome.py`: were this to end well some day, it could go."""

    async def handle(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({}, 400)

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        raise ValueError

    with app_with(endpoint, exception_handlers={ValueError: handle}) as server:
        async with server.client("/ws") as client:
            assert await client.closed() == (1006, "")
    assert "RuntimeError" in caplog.text


# The wrapper around `send`


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_the_wrapper_that_fastapi_puts_around_send_can_be_peeled(depth):
    kinds: list[Any] = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        send = websocket._send
        while not hasattr(send, "__self__"):
            kinds.append((send.__module__, send.__qualname__))
            send = dict(zip(send.__code__.co_freevars, send.__closure__, strict=True))["send"].cell_contents
        kinds.append(type(send.__self__).__name__)
        await websocket.close()

    app: Any = FastAPI()
    app.add_api_websocket_route("/ws", endpoint)
    for _ in range(depth):
        outer = FastAPI()
        outer.mount("/sub", app)
        app = outer
    with live(app) as server:
        async with server.client("/sub" * depth + "/ws") as client:
            await client.closed()
    assert set(kinds[:-1]) <= _SENDS, "send is wrapped in something that engine/outbound/wire_choice.py does not know"
    assert kinds[-1] == "WebSocketsSansIOProtocol"


async def test_the_session_middleware_passes_all_of_a_websocket_through_a_wrapper_that_can_be_peeled():
    sent: list[Any] = []

    async def below(scope: Any, receive: Any, send: Any) -> None:
        assert peel(send) is server
        for kind in ("websocket.accept", "websocket.send", "websocket.close"):
            event = {"type": kind, "text": "hi"}
            await send(event)
            assert sent.pop() is event
            assert event == {"type": kind, "text": "hi"}, "it adds nothing"

    async def server(event: Any) -> None:
        sent.append(event)

    app = SessionMiddleware(below, secret_key="x")
    await app({"type": "websocket", "headers": []}, None, server)  # type: ignore[arg-type]


# Lifespans and mounted apps


def recording(events: list[str], name: str, state: dict[str, Any] | None) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(app: Any):
        events.append(f"{name} starts on {app.title}")
        yield state
        events.append(f"{name} ends")

    return lifespan


async def test_include_router_merges_lifespans_and_their_states_also_through_a_router_in_between():
    events: list[str] = []
    inner = APIRouter(lifespan=recording(events, "inner", {"inner": 1}))
    outer = APIRouter(lifespan=recording(events, "outer", {"outer": 2}))
    outer.include_router(inner)
    app = FastAPI(title="the app", lifespan=recording(events, "own", {"own": 3}))
    app.include_router(outer)

    @app.get("/state")
    async def state(request: Request) -> dict[str, int]:
        return request.scope["state"]

    with live(app) as server:
        async with server.http() as http:
            assert (await http.get("/state")).json() == {"inner": 1, "outer": 2, "own": 3}
    starts = [f"{name} starts on the app" for name in ("own", "outer", "inner")]
    assert events == [*starts, "inner ends", "outer ends", "own ends"]


async def test_a_mounted_apps_lifespan_never_runs_and_lifespan_state_reaches_it():
    events: list[str] = []
    found: list[Any] = []

    async def look(connection: HTTPConnection) -> None:
        found.append((connection.scope["state"]["seen"], connection.app is sub_app))

    async def endpoint(websocket: WebSocket, nothing: Annotated[None, Depends(look)]) -> None:
        await websocket.accept()
        await websocket.close()

    sub_app = FastAPI(title="sub", lifespan=recording(events, "sub", None))
    sub_app.add_api_websocket_route("/ws", endpoint)
    sub_app.add_api_route("/http", lambda: None, dependencies=[Depends(look)])
    app = FastAPI(title="app", lifespan=recording(events, "app", {"seen": True}))
    app.mount("/sub", sub_app)
    with live(app) as server:
        async with server.client("/sub/ws") as client, server.http() as http:
            await client.closed()
            assert (await http.get("/sub/http")).status_code == 200
    assert found == [(True, True), (True, True)]
    assert events == ["app starts on app", "app ends"]


async def test_a_lifespan_that_yields_nothing_leaves_no_state():
    """The reason for putting the manager on `app.state` too."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        async with recording([], "rooms", {"rooms": 1})(app):
            yield

    assert not (await scope_of_an_endpoint(lifespan=lifespan)).get("state")


def test_the_routes_of_an_app_show_what_is_mounted():
    app, sub_app = FastAPI(), FastAPI()
    app.mount("/sub", sub_app)
    assert [route.app for route in app.routes if isinstance(route, Mount)] == [sub_app]


# Small things


def test_websocket_routes_can_be_added_to_apps_and_routers_alike():
    async def endpoint(websocket: WebSocket) -> None: ...

    app, router = FastAPI(), APIRouter(prefix="/v1")
    app.add_api_websocket_route("/ws/{a}", endpoint, "on the app", dependencies=[])
    router.add_api_websocket_route("/ws/{a}", endpoint, "on the router", dependencies=[])
    app.include_router(router)
    assert app.url_path_for("on the app", a=1) == "/ws/1"
    assert app.url_path_for("on the router", a=1) == "/v1/ws/1"


def test_compile_path_names_the_parameters_of_a_path():
    assert set(compile_path("/v1/{a}/ws/{b:int}")[2]) == {"a", "b"}


async def test_the_states_of_a_websocket_follow_its_own_close_and_the_clients():
    states: list[Any] = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        states.append((websocket.application_state, websocket.client_state))
        await websocket.close()
        states.append(websocket.application_state)

    async def listening(websocket: WebSocket) -> None:
        await websocket.accept()
        assert (await websocket.receive())["type"] == "websocket.disconnect"
        states.append(websocket.client_state)

    app = FastAPI()
    app.add_api_websocket_route("/closing", endpoint)
    app.add_api_websocket_route("/listening", listening)
    with live(app) as server:
        async with server.client("/closing") as client:
            await client.closed()
        RawClient(server, "/listening").close()
        await until(lambda: len(states) == 3)
    connected = WebSocketState.CONNECTED
    assert states == [(connected, connected), WebSocketState.DISCONNECTED, WebSocketState.DISCONNECTED]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 30_000 + "]" * 30_000,
        "9" * 5000,
        r'"\ud800"',
        r'{"\udc00":1}',
        "{nonsense",
        "",
    ],
    ids=["nesting", "a huge integer", "a surrogate", "a surrogate as a key", "nonsense", "nothing"],
)
def test_pydantic_turns_every_bad_json_into_an_error_that_we_catch(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the class is the fact
        from_json(text)
    with pytest.raises(ValidationError):
        TypeAdapter(Any).validate_json(text)


def test_pydantic_reads_nan_and_writes_it_as_null_when_asked():
    assert from_json("NaN") != from_json("NaN")
    assert to_json([float("nan"), float("inf")], inf_nan_mode="null") == b"[null,null]"
    with pytest.raises(ValueError):  # noqa: PT011 - the class is the fact
        from_json("NaN", allow_inf_nan=False)


def test_pydantics_error_reports_leave_the_input_out_when_asked():
    with pytest.raises(ValidationError) as error:
        TypeAdapter(int).validate_json('"hunter2"')
    (report,) = error.value.errors(include_url=False, include_context=False, include_input=False)
    assert set(report) == {"type", "loc", "msg"}
