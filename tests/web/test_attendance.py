"""How long a handler goes on when its client does not, and whose cancellation it was."""

import asyncio
import gc

import pytest
from engine.fakes import run_clocked
from fastapi import APIRouter, FastAPI
from support import live, until

from fastapi_rooms import ConnectionDep, Incoming, RoomsExtension, RoomsSettings, ws_route
from fastapi_rooms.web.attendance import Attendance

GRACE = 5.0


class FakeReader:
    """What an attendance knows of a reader."""

    def __init__(self):
        self.is_inline = False
        self.has_ended = False
        self._on_end = None

    def call_at_end(self, callback):
        self._on_end = callback
        if callback is not None and self.has_ended:
            callback()

    def end(self):
        self.has_ended = True
        if self._on_end is not None:
            self._on_end()

    def drop_unhandled(self):
        assert self._on_end is None

    @property
    def is_attended(self):
        return self._on_end is not None


class Visit:
    """A task that attends a handler as `serve` does, and what came of it."""

    def __init__(self, handler, around=None):
        self.reader = FakeReader()
        self.outcome = None  # of the handler, once it has ended: what it returned, or raised
        self.is_absent = None  # what `leave` said
        self.cancelling = None  # requests that are left then
        self.attendance = None
        self._handler = handler
        self.task = asyncio.create_task(self.run() if around is None else around(self))

    async def run(self):
        self.attendance = Attendance(self.reader, GRACE)
        try:
            self.outcome = await self._handler()
        except BaseException as error:
            self.outcome = type(error)
            raise
        finally:
            self.is_absent = self.attendance.leave()
            self.cancelling = asyncio.current_task().cancelling()
            assert not self.reader.is_attended

    async def end(self):
        """Wait for the end of the task, and see that no timer is left."""
        await asyncio.wait([self.task])
        timer = self.attendance._timer
        assert timer is None or timer.cancelled() or timer.when() <= asyncio.get_running_loop().time()
        return self.task.cancelled()


async def for_ever():
    await asyncio.Event().wait()


def now():
    return asyncio.get_running_loop().time()


@pytest.fixture
def clocked():
    """Run a test on a clock that jumps."""
    return run_clocked


# The client's end


@pytest.mark.parametrize(("is_inline", "seconds"), [(True, 0), (False, GRACE)])
def test_who_only_waits_for_a_message_is_cancelled_at_once_and_who_is_busy_after_the_grace(clocked, is_inline, seconds):
    async def main():
        visit = Visit(for_ever)
        await asyncio.sleep(0)
        visit.reader.is_inline = is_inline
        visit.reader.end()
        assert await visit.end()
        assert now() == pytest.approx(seconds)
        assert (visit.outcome, visit.is_absent, visit.cancelling) == (asyncio.CancelledError, True, 0)

    clocked(main)


def test_an_end_that_came_before_the_handler_gives_it_the_grace_too(clocked):
    async def main():
        reader = FakeReader()
        reader.end()
        visit = Visit(for_ever)
        visit.reader = reader
        assert await visit.end()
        assert now() == pytest.approx(GRACE)
        assert (visit.is_absent, visit.cancelling) == (True, 0)

    clocked(main)


@pytest.mark.parametrize("comes_to_an_end", [True, False])
def test_a_handler_that_returns_in_time_is_not_cancelled_and_no_timer_is_left(clocked, comes_to_an_end):
    async def main():
        async def handler():
            await asyncio.sleep(GRACE - 1)
            return "done"

        visit = Visit(handler)
        await asyncio.sleep(0.5)
        if comes_to_an_end:
            visit.reader.end()
        assert not await visit.end()
        assert (visit.outcome, visit.is_absent, visit.cancelling) == ("done", False, 0)
        await asyncio.sleep(2 * GRACE)  # a timer that was left would cancel a task that has ended, or worse
        assert visit.task.cancelling() == 0

    clocked(main)


def test_an_end_after_the_handler_cancels_nobody(clocked):
    async def main():
        async def handler():
            return "done"

        visit = Visit(handler)
        await visit.end()
        visit.reader.end()
        await asyncio.sleep(2 * GRACE)
        assert (visit.task.cancelling(), visit.attendance._timer) == (0, None)

    clocked(main)


def test_a_handler_that_swallows_the_cancellation_and_returns_has_ended_well(clocked):
    async def main():
        async def handler():
            try:
                await for_ever()
            except asyncio.CancelledError:
                return "swallowed"

        visit = Visit(handler)
        await asyncio.sleep(0)
        visit.reader.end()
        assert not await visit.end()
        assert (visit.outcome, visit.is_absent, visit.cancelling) == ("swallowed", True, 0)

    clocked(main)


def test_a_handler_that_ignores_the_cancellation_goes_on_and_is_cancelled_once(clocked):
    async def main():
        times = []

        async def handler():
            for _ in range(2):
                try:
                    await asyncio.sleep(3 * GRACE)
                except asyncio.CancelledError:
                    times.append(now())
            return "at last"

        visit = Visit(handler)
        await asyncio.sleep(0)
        visit.reader.end()
        assert not await visit.end()
        assert times == [pytest.approx(GRACE)]
        assert now() == pytest.approx(4 * GRACE)
        assert (visit.outcome, visit.is_absent, visit.cancelling) == ("at last", True, 0)

    clocked(main)


@pytest.mark.parametrize("is_inline", [True, False])
def test_a_handler_that_raises_something_else_on_its_cancellation_has_raised_that(clocked, is_inline):
    async def main():
        async def handler():
            try:
                await for_ever()
            finally:
                raise ValueError("in the clean-up")

        visit = Visit(handler)
        await asyncio.sleep(0)
        visit.reader.is_inline = is_inline
        visit.reader.end()
        with pytest.raises(ValueError, match="in the clean-up"):
            await visit.task
        await visit.end()
        assert (visit.is_absent, visit.cancelling) == (True, 0)

    clocked(main)


# Somebody else's


def test_a_cancellation_by_somebody_else_is_not_taken_for_ours(clocked):
    async def main():
        visit = Visit(for_ever)
        await asyncio.sleep(1)
        visit.task.cancel()
        assert await visit.end()
        assert (visit.is_absent, visit.cancelling) == (False, 1)

    clocked(main)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_inline", [True, False])
def test_both_at_once_are_not_ours_alone_whoever_comes_first(clocked, is_first, is_inline):
    async def main():
        visit = Visit(for_ever)
        await asyncio.sleep(0)
        visit.reader.is_inline = is_inline
        if not is_inline:
            visit.reader.end()
            await asyncio.sleep(GRACE - 1e-9)
        steps = [visit.reader.end, visit.task.cancel] if is_inline else [visit.attendance._cancel, visit.task.cancel]
        for step in steps if is_first else reversed(steps):
            step()
        visit.attendance._timer and visit.attendance._timer.cancel()
        assert await visit.end()
        assert (visit.is_absent, visit.cancelling) == (False, 1)

    clocked(main)


def test_a_cancellation_by_somebody_else_within_the_grace_leaves_no_timer(clocked):
    async def main():
        visit = Visit(for_ever)
        await asyncio.sleep(0)
        visit.reader.end()
        await asyncio.sleep(1)
        visit.task.cancel()
        assert await visit.end()
        assert visit.attendance._timer.cancelled()
        assert (visit.is_absent, visit.cancelling, now()) == (False, 1, 1)

    clocked(main)


def test_requests_of_others_that_were_there_before_are_left_alone(clocked):
    async def main():
        async def around(visit):
            asyncio.current_task().cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:  # somebody who cleans up, and has not taken it back
                await visit.run()

        visit = Visit(for_ever, around)
        await until(lambda: visit.attendance)
        visit.reader.is_inline = True
        visit.reader.end()
        assert await visit.end()
        assert (visit.is_absent, visit.cancelling) == (True, 1)

    clocked(main)


@pytest.mark.parametrize("ends_first", ["nobody", "client"])
def test_a_time_limit_around_it_still_works(clocked, ends_first):
    async def main():
        async def around(visit):
            async with asyncio.timeout(2):
                await visit.run()

        visit = Visit(for_ever, around)
        await asyncio.sleep(0)
        if ends_first == "client":
            visit.reader.end()  # and the limit is over before the grace is
        with pytest.raises(TimeoutError):
            await visit.task
        assert (visit.is_absent, visit.cancelling, now()) == (False, 1, pytest.approx(2))
        assert visit.task.cancelling() == 0, "the limit takes its own back"

    clocked(main)


def test_a_time_limit_around_it_that_is_not_over_takes_nothing_for_its_own(clocked):
    async def main():
        async def around(visit):
            async with asyncio.timeout(100):
                try:
                    await visit.run()
                except asyncio.CancelledError:
                    assert visit.is_absent
            return "quiet"

        visit = Visit(for_ever, around)
        await asyncio.sleep(0)
        visit.reader.end()
        assert await visit.task == "quiet"
        assert visit.task.cancelling() == 0

    clocked(main)


@pytest.mark.parametrize(("limit", "outcome"), [(1, "limited"), (GRACE, asyncio.CancelledError)])
def test_a_time_limit_of_the_handlers_own_still_works(clocked, limit, outcome):
    async def main():
        async def handler():
            try:
                async with asyncio.timeout(limit):
                    await for_ever()
            except TimeoutError:
                return "limited"

        visit = Visit(handler)
        await asyncio.sleep(0)
        visit.reader.end()
        visit.attendance._cancel() if limit == GRACE else None
        await visit.end()
        assert (visit.outcome, visit.is_absent) == (outcome, limit == GRACE)
        assert visit.cancelling == 0

    clocked(main)


def test_a_task_group_of_the_handler_ends_with_it(clocked):
    async def main():
        ended = []

        async def child():
            try:
                await for_ever()
            finally:
                ended.append(now())

        async def handler():
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(child())

        visit = Visit(handler)
        await asyncio.sleep(0)
        visit.reader.end()
        assert await visit.end()
        assert ended == [pytest.approx(GRACE)] * 2
        assert (visit.is_absent, visit.cancelling) == (True, 0)

    clocked(main)


async def test_nothing_keeps_an_attendance_once_it_has_been_left():
    reader = FakeReader()
    attendance = Attendance(reader, GRACE)
    reader.end()
    assert not attendance.leave()
    assert attendance._timer.cancelled()
    assert not [one for one in gc.get_referrers(attendance) if isinstance(one, asyncio.TimerHandle | FakeReader)]


# On a real server


class Witness:
    """A middleware that sees what comes out of the app: uvicorn swallows everything."""

    def __init__(self, app, seen):
        self.app = app
        self.seen = seen

    async def __call__(self, scope, receive, send):
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            self.seen.append(type(error))
            raise
        else:
            self.seen.append(asyncio.current_task().cancelling())


def app_with(rooms, seen):
    app = FastAPI()
    app.include_router(rooms.router)
    app.add_middleware(Witness, seen=seen)
    return app


async def test_a_server_that_stops_is_not_mistaken_for_a_client_that_goes(loop, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=60))
    seen = []

    @rooms.ws_route("/ws", room="hall")
    async def session(connection: ConnectionDep) -> None:
        await connection.send("here")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(asyncio.current_task().cancelling())

    with live(app_with(rooms, seen), loop, timeout_graceful_shutdown=1) as server:
        async with server.client("/ws") as client:
            assert await client.receive() == "here"
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            assert (await client.closed())[0] == 1012
            await stopping
    assert seen[:2] == [1, asyncio.CancelledError], "what the server wanted was not swallowed"


@pytest.mark.parametrize("reaction", ["obeys", "swallows", "raises"])
@pytest.mark.parametrize("kind", ["handler", "session"])
async def test_a_client_that_goes_leaves_nothing_behind_whatever_the_handler_does(
    stage, loop, wire, tracebacks, kind, reaction
):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, disconnect_grace=0.02))
    tasks = []

    async def react() -> None:
        tasks.append(asyncio.current_task())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if reaction == "raises":
                raise ValueError("on its cancellation") from None
            if reaction == "obeys":
                raise

    router = APIRouter()

    @ws_route(router, "/handler", room="hall")
    async def handler(message: Incoming[str]) -> None:
        await react()

    @ws_route(router, "/session", room="hall")
    async def session(connection: ConnectionDep) -> None:
        async for _ in connection.messages(str):
            await react()

    rooms.router.include_router(router)
    async with stage.plays(rooms) as server, server.client("/" + kind) as client:
        await client.send("go")
        await until(lambda: tasks)
        client.vanish()
        await until(tasks[0].done)
    task = tasks[0]
    assert not task.cancelled()
    assert task.cancelling() == 0
    assert len(tracebacks()) == (reaction == "raises")


async def test_a_handler_that_is_cancelled_by_the_app_itself_is_cancelled(stage, loop, wire):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    tasks, seen = [], []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]) -> None:
        tasks.append(asyncio.current_task())

    async with stage.plays(app_with(rooms, seen)) as server, server.client("/ws") as client:
        await client.send("go")
        await until(lambda: tasks)
        await server.call(tasks[0].cancel)  # while it waits for the next message
        assert (await client.closed())[0] == 1012
        await until(tasks[0].done)
    assert seen == [asyncio.CancelledError]


async def test_a_time_limit_of_a_middleware_ends_a_handler(stage, loop, wire):
    class Limit:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            try:
                async with asyncio.timeout(0.05):
                    await self.app(scope, receive, send)
            except TimeoutError:
                seen.append(asyncio.current_task().cancelling())

    rooms = RoomsExtension(settings=RoomsSettings(wire=wire))
    seen = []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]) -> None:
        """Nobody calls it."""

    app = app_with(rooms, [])
    app.add_middleware(Limit)
    async with stage.plays(app) as server, server.client("/ws") as client:
        assert (await client.closed())[0] == 1012
        await until(lambda: seen)
    assert seen == [0]
