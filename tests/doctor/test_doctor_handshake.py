"""What of the server arrives at a WebSocket route, and what is left of having looked."""

import asyncio
import contextlib
import functools
import threading
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, WebSocket
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from support import DEADLINE, fair_time

from fastapi_rooms.doctor import handshake
from fastapi_rooms.doctor.app_facts import look_at_app
from fastapi_rooms.doctor.handshake import Arrival, arrival_of, goes_on, wrappers_of_send, wraps_send

OURS = Arrival(send=None, leads_back=True)


class Stubborn:
    """Refuses every handshake."""

    def __init__(self, app):
        pass

    async def __call__(self, scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.close"})
        assert (await receive())["type"] == "websocket.disconnect"
        assert (await receive())["type"] == "websocket.disconnect"


class Broken:
    def __init__(self, app):
        raise RuntimeError("not without a database")


class Slow:
    """Waits, and then wraps `send`."""

    def __init__(self, app, seconds):
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope, receive, send):
        async def mine(event):
            await send(event)

        await asyncio.sleep(self.seconds)
        await self.app(scope, receive, mine)


@pytest.mark.parametrize(
    ("middleware", "wraps"),
    [
        (Middleware(SessionMiddleware, secret_key="x"), False),
        (Middleware(Slow, 0), True),
        (Middleware(Slow, seconds=60), False),
        (Middleware(GZipMiddleware), False),
        (Middleware(CORSMiddleware, allow_origins=["*"]), False),
        (Middleware(TrustedHostMiddleware, allowed_hosts=["example.com"]), False),
        (Middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request)), False),
        (Middleware(Stubborn), False),
        (Middleware(Broken), False),
    ],
    ids=lambda one: one.cls.__name__ if isinstance(one, Middleware) else str(one),
)
def test_middleware_that_passes_a_send_of_its_own(monkeypatch, middleware, wraps):
    monkeypatch.setattr(handshake, "PATIENCE_SECONDS", 0.05)
    assert wraps_send(middleware, FastAPI()) is wraps


# Through a whole app


def arrival(app, outermost=None, path="/ws"):
    return arrival_of(outermost or app, app, path)


def test_nothing_is_between():
    assert arrival(FastAPI()) == OURS


def test_middleware_that_passes_on_what_it_got():
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(SessionMiddleware, secret_key="x")
    assert arrival(app) == OURS


def test_middleware_with_a_send_of_its_own():
    app = FastAPI()
    app.add_middleware(Slow, seconds=0)
    assert arrival(app) == Arrival(send=f"{__name__}.Slow.__call__", leads_back=True)


def with_both(app):
    async def wrapper(scope, receive, send):
        async def listen():
            return await receive()

        async def speak(event):
            await send(event)

        await app(scope, listen, speak)

    return wrapper


def test_a_wrapper_around_the_app():
    app = FastAPI()
    assert arrival(app, with_both(app)) == Arrival(send=f"{__name__}.with_both", leads_back=False)


def test_a_wrapper_that_says_what_it_wraps():
    app = FastAPI()

    async def wrapper(scope, receive, send):
        @functools.wraps(receive)
        async def listen():
            return await receive()

        await app(scope, listen, send)

    assert arrival(app, wrapper) == OURS


def test_what_patches_the_building_of_the_stack():
    app = FastAPI()
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: with_both(build())
    assert arrival(app) == Arrival(send=f"{__name__}.with_both", leads_back=False)


@pytest.mark.parametrize("middleware", [Stubborn, Broken], ids=lambda one: one.__name__)
def test_a_handshake_that_does_not_come_through(middleware):
    app = FastAPI()
    app.add_middleware(middleware)
    assert arrival(app) is None


def test_what_is_looked_at_may_go_by_the_path():
    class OnlyBelow:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            wrapped = with_both(self.app) if scope["path"].startswith("/ws/") else self.app
            await wrapped(scope, receive, send)

    app = FastAPI()
    app.add_middleware(OnlyBelow)
    assert arrival(app, path="/news") == OURS
    assert arrival(app, path="/ws/lobby").send == f"{__name__}.with_both"


def test_no_code_of_a_route_is_called():
    called = []
    app = FastAPI()

    @app.websocket("/{path:path}")
    async def everything(websocket: WebSocket, _: Annotated[None, Depends(lambda: called.append("dependency"))]):
        called.append("handler")

    assert arrival(app) == OURS
    assert called == []


def test_the_app_is_as_it_was():
    app = FastAPI()
    app.add_api_route("/page", lambda: None)
    routes = app.router.routes
    before = list(routes)
    arrival(app)
    assert app.router.routes is routes
    assert routes == before
    app.add_middleware(GZipMiddleware)  # which raises once an app has started


class Busy:
    """Does not come to an end, nor does what it has begun, and takes a cancellation badly."""

    def __init__(self, app, cancellations, tasks):
        self.app = app
        self.cancellations = cancellations
        self.tasks = tasks

    async def __call__(self, scope, receive, send):
        self.tasks += [asyncio.create_task(self.work()), asyncio.current_task()]
        await self.app(scope, receive, send)
        await self.work()

    async def work(self):
        for _ in range(self.cancellations):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue


@pytest.mark.parametrize("cancellations", [1, 2, 3])
def test_nothing_goes_on(monkeypatch, cancellations):
    monkeypatch.setattr(handshake, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("fastapi_rooms.tasks.AGAIN_SECONDS", 0.01)
    tasks = []
    app = FastAPI()
    app.add_middleware(Busy, cancellations=cancellations, tasks=tasks)
    assert arrival(app) == OURS
    for thread in threads_of_handshakes():
        thread.join(DEADLINE)
    assert len(tasks) == 2
    assert all(task.done() for task in tasks)


def threads_of_handshakes():
    """Those that were left alone."""
    return [one for one in threading.enumerate() if one.name == "fastapi_rooms doctor's handshake"]


async def blocks(released):
    """Let nothing else run."""
    released.wait()


async def cannot_be_cancelled(released):
    while not released.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("wait", [blocks, cannot_be_cancelled], ids=lambda one: one.__name__)
def test_what_does_not_end_is_left_alone_and_leads_nowhere(monkeypatch, wait):
    monkeypatch.setattr(handshake, "GIVE_UP_SECONDS", 0.05)
    released, called = threading.Event(), []
    app = FastAPI()

    @app.websocket("/ws")
    async def theirs(websocket: WebSocket):
        called.append(websocket)

    async def wrapper(scope, receive, send):
        await wait(released)
        await app(scope, receive, send)

    begin = fair_time()
    assert arrival(app, wrapper) is None
    assert fair_time() - begin < 1
    [thread] = threads_of_handshakes()
    released.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert called == [], "it came late, and would have come to a route"


def test_a_handshake_that_cannot_begin(monkeypatch):
    def fail(_thread):
        raise RuntimeError("can't start new thread")

    app = FastAPI()
    routes = app.router.routes
    with monkeypatch.context() as patches:
        patches.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            arrival(app)
    assert app.router.routes is routes
    assert arrival(app) == OURS


class Blocking:
    """Lets nothing else run."""

    def __init__(self, app, released, asked):
        self.released = released
        self.asked = asked

    async def __call__(self, scope, receive, send):
        self.asked.append(self)
        self.released.wait()


def test_all_middleware_has_one_time_together(monkeypatch):
    monkeypatch.setattr(handshake, "GIVE_UP_SECONDS", 0.3)
    released, asked = threading.Event(), []
    app = FastAPI()
    for _ in range(3):
        app.add_middleware(Blocking, released=released, asked=asked)
    app.add_middleware(Slow, seconds=0)
    assert not goes_on()
    assert [one.cls for one in wrappers_of_send(app, "/ws")] == [Slow], "it was reached"
    assert len(asked) == 1, "who blocks has used the time of the others up"
    [thread] = threads_of_handshakes()
    assert goes_on()
    released.set()
    thread.join(DEADLINE)
    assert not goes_on()


# What the facts say


def facts(workshop, text):
    return look_at_app(workshop.load(text))[0]


LOUD = """
from fastapi import FastAPI

class Loud:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def shout(event):
            await send({**event, "text": event.get("text", "").upper()})

        await self.app(scope, receive, shout)

app = FastAPI()
"""


def test_middleware_is_named(workshop):
    found = facts(workshop, f"{LOUD}\napp.add_middleware(Loud)")
    assert (found.came_through, found.arriving_send) == (True, "shop.Loud.__call__")
    assert (found.send_wrappers, found.arriving_receive_is_lost) == (("Loud",), False)


def test_a_wrapper_is_no_middleware(workshop):
    found = facts(workshop, f"{LOUD}\napp = Loud(app)")
    assert (found.arriving_send, found.send_wrappers, found.outer_layers) == ("shop.Loud.__call__", (), ("Loud",))


def test_middleware_is_asked_alone_where_nothing_comes_through(workshop):
    found = facts(
        workshop,
        f"{LOUD}\nfrom starlette.middleware.trustedhost import TrustedHostMiddleware\napp.add_middleware(Loud)\n"
        "app.add_middleware(TrustedHostMiddleware, allowed_hosts=['example.com'])",
    )
    assert (found.came_through, found.arriving_send, found.send_wrappers) == (False, None, ("Loud",))


def test_traces_do_not_record_it():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = FastAPI()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    assert arrival(app).send == "opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware._get_otel_send"
    assert exporter.get_finished_spans() == ()
