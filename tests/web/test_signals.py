"""What becomes of a server's signal handlers while an app runs. With real servers: tests/integration/test_drain.py."""

import asyncio
import contextlib
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import uvloop
from fastapi import FastAPI
from fastapi.testclient import TestClient
from stage import smallest_app
from support import live, until

from fastapi_rooms import RoomsExtension, RoomsSettings
from fastapi_rooms.web import signals

BOTH = (signal.SIGTERM, signal.SIGINT)


class Server:
    """The handlers that a server has installed, and the signals that reached it."""

    def __init__(self):
        self.told = []

    def handle(self, number, frame):
        self.told.append(signal.Signals(number))


@pytest.fixture
def server():
    made = Server()
    before = {number: signal.signal(number, made.handle) for number in BOTH}
    try:
        yield made
        assert [signal.getsignal(number) for number in BOTH] == [made.handle] * 2, "everything is as it was"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def rooms():
    return Slow()


class Slow(RoomsExtension):
    """Its drain lasts until a test lets it end."""

    def __init__(self, settings=None):
        super().__init__(settings=settings)
        self.drains = 0
        self.go_on = asyncio.Event()
        self.manager.drain = self._drain

    async def _drain(self, seconds=None):
        self.drains += 1
        await self.go_on.wait()


@contextlib.contextmanager
def later(monkeypatch, seconds):
    """Let the clock of signals be ahead."""
    with monkeypatch.context() as changed:
        original = signals.time.monotonic
        changed.setattr(signals.time, "monotonic", lambda: original() + seconds)
        yield


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", BOTH)
async def test_the_first_signal_drains_and_then_the_server_gets_it(server, rooms, number):
    async with rooms.lifespan(FastAPI()):
        send(number)
        await until(lambda: rooms.drains == 1)
        assert server.told == []
        rooms.go_on.set()
        await until(lambda: server.told)
        assert server.told == [number]
    assert server.told == [number]


async def test_the_real_drain_is_what_is_called(server, caplog):
    caplog.set_level("INFO", "fastapi_rooms")
    rooms = RoomsExtension(settings=RoomsSettings(drain_timeout=3))
    async with rooms.lifespan(FastAPI()):
        send(signal.SIGTERM)
        await until(lambda: server.told)
        assert rooms.manager.is_draining
        assert [record.getMessage().split(":")[0] for record in caplog.records] == ["draining", "drained"]
    assert not rooms.manager.is_draining


async def test_nothing_happens_within_the_step_of_the_loop_that_a_signal_interrupts(server, rooms):
    loop = asyncio.get_running_loop()
    if hasattr(asyncio, "eager_task_factory"):
        loop.set_task_factory(asyncio.eager_task_factory)
    async with rooms.lifespan(FastAPI()):
        send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) != server.handle
        assert rooms.drains == 0
        rooms.go_on.set()
        await until(lambda: server.told)


async def test_a_loop_that_sleeps_is_woken(server, rooms):
    rooms.go_on.set()
    told = asyncio.Event()
    server.told = SimpleNamespace(append=lambda _: told.set())
    async with rooms.lifespan(FastAPI()):
        threading.Timer(0.05, send, (signal.SIGTERM,)).start()
        async with asyncio.timeout(5):  # no other timer is set
            await told.wait()


async def test_echoes_within_a_second_are_swallowed_and_a_second_signal_skips_the_rest(
    server, rooms, monkeypatch, caplog
):
    async with rooms.lifespan(FastAPI()):
        send(signal.SIGINT)
        await until(lambda: rooms.drains)
        for number in (*BOTH, *BOTH):
            send(number)
        await asyncio.sleep(0)
        assert (server.told, rooms.drains) == ([], 1)
        with later(monkeypatch, 1.01):
            send(signal.SIGTERM)
            assert server.told == [signal.SIGINT], "the first one, since that is what the process ends with"
            send(signal.SIGINT)
            assert server.told == [signal.SIGINT] * 2, "what comes now goes straight through"
        assert caplog.records == [], "who was interrupted may hold the lock of a log handler"
        await until(lambda: caplog.records)
        assert [record.getMessage() for record in caplog.records] == [
            "a second signal: the rest of the connections is left to the server"
        ]
    assert server.told == [signal.SIGINT] * 2, "the drain that was skipped tells nobody again"
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_echoes_are_swallowed_although_the_drain_is_over_with_the_last_connection(server, rooms, monkeypatch):
    """uvicorn takes a second SIGINT for an order to leave everything as it is."""
    rooms.go_on.set()
    async with rooms.lifespan(FastAPI()):
        send(signal.SIGINT)
        await until(lambda: server.told)
        send(signal.SIGINT)
        assert server.told == [signal.SIGINT]
        with later(monkeypatch, 1.01):
            send(signal.SIGINT)
        assert server.told == [signal.SIGINT] * 2


async def test_an_app_that_ends_while_it_drains_does_not_swallow_the_signal(server, rooms):
    async with rooms.lifespan(FastAPI()):
        send(signal.SIGTERM)
        await until(lambda: rooms.drains)
    assert server.told == [signal.SIGTERM]
    async with rooms.lifespan(FastAPI()):
        send(signal.SIGTERM)  # and nothing has run since
    assert (server.told, rooms.drains) == ([signal.SIGTERM] * 2, 1)
    assert rooms.drains == 1


async def test_a_signal_and_the_end_within_one_step_leave_no_task(server, rooms):
    drain = signals.drain_at_signal(rooms.manager)
    send(signal.SIGTERM)
    await drain.remove(rooms.manager)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert (server.told, rooms.drains) == ([signal.SIGTERM], 0)


async def test_a_drain_that_fails_does_not_swallow_the_signal(server, rooms, monkeypatch):
    async def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(rooms.manager, "drain", fail)
    failed = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context["exception"]))
    async with rooms.lifespan(FastAPI()):
        send(signal.SIGTERM)
        await until(lambda: server.told)
    import gc

    gc.collect()
    assert [type(error) for error in failed] == [ZeroDivisionError], "and it is reported"


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_the_manager_is_stopped_although_the_end_of_listening_fails(server, rooms, monkeypatch, error):
    remove = signals.SignalledDrain.remove

    async def fail(self, manager):
        await remove(self, manager)
        raise error

    async def stop():
        stopped.append(app.state.rooms)

    stopped = []
    monkeypatch.setattr(signals.SignalledDrain, "remove", fail)
    monkeypatch.setattr(rooms.manager, "stop", stop)
    app = FastAPI()
    with pytest.raises(error):
        async with rooms.lifespan(app):
            pass
    assert stopped == [rooms.manager]
    assert not hasattr(app.state, "rooms")


async def test_the_app_forgets_the_manager_although_its_stop_fails(server, rooms, monkeypatch):
    async def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(rooms.manager, "stop", fail)
    app = FastAPI()
    with pytest.raises(ZeroDivisionError):
        async with rooms.lifespan(app):
            pass
    assert not hasattr(app.state, "rooms")


# Where nothing is installed


async def test_without_a_drain_timeout_the_handlers_are_left_alone(server):
    rooms = RoomsExtension(settings=RoomsSettings(drain_timeout=None))
    async with rooms.lifespan(FastAPI()):
        assert [signal.getsignal(number) for number in BOTH] == [server.handle] * 2


async def test_where_no_server_has_installed_a_handler_none_is_installed():
    kept = {number: signal.getsignal(number) for number in BOTH}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        async with RoomsExtension().lifespan(FastAPI()):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_handlers_of_the_loop_are_left_alone_since_the_loop_would_not_wait(new_loop, caplog):
    """So granian and hypercorn hear of signals."""
    caplog.set_level("INFO", "fastapi_rooms")

    async def main():
        loop, heard = asyncio.get_running_loop(), []
        for number in BOTH:
            loop.add_signal_handler(number, heard.append, number)
        installed = [signal.getsignal(number) for number in BOTH]
        rooms = Slow()
        async with rooms.lifespan(FastAPI()):
            assert [signal.getsignal(number) for number in BOTH] == installed
            send(signal.SIGTERM)
            await until(lambda: heard)
        assert rooms.drains == 0
        [told] = [record.getMessage() for record in caplog.records]
        assert told.startswith("this server hears of signals through its event loop, so that nobody is drained")
        assert "await manager.drain() before" in told
        assert "RoomsSettings(heartbeat_interval=...)" in told
        for number in BOTH:
            loop.remove_signal_handler(number)

    kept = {number: signal.getsignal(number) for number in BOTH}
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_in_a_test_client_nothing_is_installed(server):
    with TestClient(smallest_app(RoomsExtension())) as client:
        assert client.get("/docs").status_code == 200
        assert [signal.getsignal(number) for number in BOTH] == [server.handle] * 2


async def test_in_a_server_in_a_thread_nothing_is_installed(server):
    with live(smallest_app(RoomsExtension())):
        assert [signal.getsignal(number) for number in BOTH] == [server.handle] * 2


# An app's own handlers


async def test_a_handler_that_an_app_installed_before_is_called_after_the_drain(server, rooms):
    told = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        before = signal.signal(signal.SIGTERM, lambda *args: (told.append("app"), before(*args)))
        async with rooms.lifespan(app):
            yield
        signal.signal(signal.SIGTERM, before)

    async with lifespan(FastAPI()):
        send(signal.SIGTERM)
        await until(lambda: rooms.drains)
        assert told == []
        rooms.go_on.set()
        await until(lambda: server.told)
        assert told == ["app"]


async def test_a_handler_that_an_app_installed_later_is_called_at_once_and_passes_on_to_ours(server, rooms):
    told = []

    async with rooms.lifespan(FastAPI()):
        ours = signal.signal(signal.SIGTERM, lambda *args: (told.append("app"), ours(*args)))
        theirs = signal.getsignal(signal.SIGTERM)
        send(signal.SIGTERM)
        assert told == ["app"]
        await until(lambda: rooms.drains)
        rooms.go_on.set()
        await until(lambda: server.told)
    assert signal.getsignal(signal.SIGTERM) is theirs, "it is not ours to take away"
    assert signal.getsignal(signal.SIGINT) == server.handle
    send(signal.SIGTERM)  # what is left of ours lets it through
    assert (told, server.told) == (["app"] * 2, [signal.SIGTERM] * 2)
    assert rooms.drains == 1
    signal.signal(signal.SIGTERM, server.handle)


async def test_a_handler_that_was_replaced_is_not_put_back(server, rooms):
    async with rooms.lifespan(FastAPI()):
        for number in BOTH:
            signal.signal(number, signal.SIG_IGN)
    assert [signal.getsignal(number) for number in BOTH] == [signal.SIG_IGN] * 2
    for number in BOTH:
        signal.signal(number, server.handle)


# Several


async def test_an_extension_that_is_attached_twice_is_installed_once_and_until_the_last_end(server, rooms):
    one, two = rooms.lifespan(FastAPI()), rooms.lifespan(FastAPI())
    await one.__aenter__()
    ours = signal.getsignal(signal.SIGTERM)
    await two.__aenter__()
    assert signal.getsignal(signal.SIGTERM) == ours
    await one.__aexit__(None, None, None)
    assert signal.getsignal(signal.SIGTERM) == ours
    send(signal.SIGTERM)
    await until(lambda: rooms.drains)
    rooms.go_on.set()
    await until(lambda: server.told)
    await two.__aexit__(None, None, None)
    assert server.told == [signal.SIGTERM]
    assert rooms.drains == 1


@pytest.mark.parametrize("first", [0, 1])
async def test_several_apps_in_one_process_drain_at_the_same_time_and_end_in_any_order(server, first):
    extensions = [Slow(), Slow()]
    apps = [rooms.lifespan(FastAPI()) for rooms in extensions]
    for app in apps:
        await app.__aenter__()
    send(signal.SIGTERM)
    await until(lambda: [rooms.drains for rooms in extensions] == [1, 1])
    extensions[first].go_on.set()
    await apps[first].__aexit__(None, None, None)
    assert server.told == [], "one still drains"
    extensions[1 - first].go_on.set()
    await until(lambda: server.told)
    await apps[1 - first].__aexit__(None, None, None)
    assert server.told == [signal.SIGTERM]


async def test_of_several_apps_each_hears_of_a_signal_after_another_has_ended(server):
    extensions = [Slow(), Slow()]
    async with extensions[0].lifespan(FastAPI()):
        async with extensions[1].lifespan(FastAPI()):
            pass
        send(signal.SIGTERM)
        await until(lambda: extensions[0].drains)
        extensions[0].go_on.set()
        await until(lambda: server.told)
    assert extensions[1].drains == 0


def test_an_app_whose_loop_died_stands_in_nobodys_way(server, rooms):
    """Its lifespan never ended, so our handlers are still there."""
    kept = []

    async def start():
        kept.append(rooms.lifespan(FastAPI()))
        await kept[0].__aenter__()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    assert signal.getsignal(signal.SIGTERM) != server.handle

    async def again():
        other = Slow()
        other.go_on.set()
        async with other.lifespan(FastAPI()):
            send(signal.SIGTERM)
            await until(lambda: server.told)
            assert other.drains == 1

    asyncio.run(again())
    send(signal.SIGTERM)
    assert server.told == [signal.SIGTERM] * 2
    for number in BOTH:
        signal.signal(number, server.handle)
