"""Costs grow with the members of the room in hand, never with connections or rooms.

Counted where it can be: every instruction of ours that a call runs, which is the same number whatever goes on beside
it. A copy of everybody, though, is one instruction, and shows in the memory that it takes; a search among everybody
that C does shows in the time alone, where the margin is wide.
"""

import asyncio
import contextlib
import gc
import sys
import time
import tracemalloc
from itertools import count
from statistics import median

import pytest
from starlette.websockets import WebSocket

from fastapi_rooms import ConnectionManager

SIZES = (100, 1_000, 10_000)
SLOWER = 5
"""How many times as long as among the fewest an operation may take among the most."""
MEMBERS = 10
"""In the room, and connections of the user, that are reached."""


async def _receive():
    return {"type": "websocket.connect"}


async def _send(event):
    pass


def websocket():
    return WebSocket({"type": "websocket", "path": "/", "headers": [], "query_string": b""}, _receive, _send)


def run(coroutine):
    """Run what never has to wait, here and now: nothing of the loop is counted."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


class House:
    """A manager with so many connections: each is another user, in a room of its own and in the lobby with all."""

    def __init__(self, size):
        self.size = size
        self.manager = ConnectionManager()
        self.names = count()
        for number in range(size):
            connection = self.connect(f"room {number}", f"user {number}")
            run(self.manager.join_room(connection, "lobby"))
        self.few = [self.connect("few", "several") for _ in range(MEMBERS)]

    def connect(self, room=None, user=None):
        return run(self.manager.connect(websocket(), room, user))

    def with_rooms_of_its_own(self, rooms):
        connection = self.connect()
        for _ in range(rooms):
            run(self.manager.join_room(connection, f"another {next(self.names)}"))
        return connection


# Each prepares what it needs, and yields once for what is measured.


@contextlib.contextmanager
def connecting(house):
    made = []
    yield lambda: made.append(house.connect("few", "several"))
    house.manager.disconnect(made.pop())


@contextlib.contextmanager
def connecting_to_a_large_room(house):
    made = []
    yield lambda: made.append(house.connect("lobby", "another"))
    house.manager.disconnect(made.pop())


@contextlib.contextmanager
def joining_a_new_room(house):
    connection = house.connect()
    yield lambda: run(house.manager.join_room(connection, "nobody is here"))
    house.manager.disconnect(connection)


@contextlib.contextmanager
def joining_a_large_room(house):
    connection = house.connect()
    yield lambda: run(house.manager.join_room(connection, "lobby"))
    house.manager.disconnect(connection)


@contextlib.contextmanager
def leaving_a_large_room(house):
    connection = house.connect("lobby")
    yield lambda: run(house.manager.leave_room(connection, "lobby"))
    house.manager.disconnect(connection)


@contextlib.contextmanager
def leaving_as_the_last(house):
    connection = house.connect("nobody is here")
    yield lambda: run(house.manager.leave_room(connection, "nobody is here"))
    house.manager.disconnect(connection)


@contextlib.contextmanager
def disconnecting_the_first(house):
    """Who has been there for longest, out of the room with all."""
    first = next(iter(house.manager.get_room_members("lobby")))
    yield lambda: house.manager.disconnect(first)
    house.connect("lobby")


@contextlib.contextmanager
def disconnecting_the_last(house):
    connection = house.connect("lobby", "several")
    yield lambda: house.manager.disconnect(connection)


@contextlib.contextmanager
def finding_by_id(house):
    connection_id = house.few[5].connection_id
    yield lambda: run(house.manager.join_room(connection_id, "few"))


@contextlib.contextmanager
def not_finding_by_id(house):
    yield lambda: run(house.manager.leave_room("0" * 32, "few"))


@contextlib.contextmanager
def listing_a_room(house):
    yield lambda: house.manager.get_room_members("few")


@contextlib.contextmanager
def listing_a_user(house):
    yield lambda: house.manager.get_user_connections("several")


@contextlib.contextmanager
def counting(house):
    yield lambda: house.manager.active_connections


@contextlib.contextmanager
def broadcasting_to_a_room(house):
    yield lambda: run(house.manager.broadcast_to_room("few", "hello"))


@contextlib.contextmanager
def broadcasting_to_a_room_but_one(house):
    yield lambda: run(house.manager.broadcast_to_room("few", "hello", exclude=house.few[3]))


@contextlib.contextmanager
def sending_to_a_user(house):
    yield lambda: run(house.manager.send_to_user("several", "hello"))


@contextlib.contextmanager
def sending_to_one(house):
    yield lambda: run(house.manager.send_personal(house.few[5].connection_id, "hello"))


OPERATIONS = [
    connecting,
    connecting_to_a_large_room,
    joining_a_new_room,
    joining_a_large_room,
    leaving_a_large_room,
    leaving_as_the_last,
    disconnecting_the_first,
    disconnecting_the_last,
    finding_by_id,
    not_finding_by_id,
    listing_a_room,
    listing_a_user,
    counting,
    broadcasting_to_a_room,
    broadcasting_to_a_room_but_one,
    sending_to_a_user,
    sending_to_one,
]
operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)


def instructions(call):
    """Count the instructions that a call runs in our package."""
    counted = 0

    def trace(frame, event, arg):
        nonlocal counted
        if event == "call":
            if not frame.f_globals.get("__name__", "").startswith("fastapi_rooms."):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            counted += 1
        return trace

    before = sys.gettrace()  # coverage's
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return counted


def peak(call):
    """Measure the bytes that a call allocates at most."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        begin, _ = tracemalloc.get_traced_memory()
        call()
        return tracemalloc.get_traced_memory()[1] - begin
    finally:
        tracemalloc.stop()


def seconds(call):
    gc.disable()
    begin = time.perf_counter()
    call()
    end = time.perf_counter()
    gc.enable()
    return end - begin


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def houses(runner):
    """Made once: they are as they were after each operation, but for who is in them."""

    async def build():
        return [House(size) for size in SIZES]

    return runner.run(build())


@pytest.fixture
def measured(runner):
    """A function that does an operation a few times, with a measure, and returns what was measured."""

    async def measure(how, operation, house, times):
        results = []
        for _ in range(times + 1):
            with operation(house) as call:
                results.append(how(call))
            for _ in range(3):
                await asyncio.sleep(0)  # what was offered leaves
        return results[1:]  # the first finds a new loop, a cold cache, ...

    return lambda how, operation, house, times=1: runner.run(measure(how, operation, house, times))


@operations
def test_it_runs_the_same_instructions_whatever_is_there(houses, measured, operation):
    # The least of some, since now and then one finds that the timer of the sweep has just run out, and sets it.
    counts = [min(measured(instructions, operation, house, times=3)) for house in houses]
    assert counts[0] > 0
    assert counts == counts[:1] * len(SIZES)


@operations
def test_it_copies_nobody_who_is_not_concerned(houses, measured, operation):
    few, *_, most = houses
    # The least of some, since a dict grows now and then.
    few_bytes, most_bytes = (min(measured(peak, operation, house, times=5)) for house in (few, most))
    assert most_bytes < few_bytes + 2 * (most.size - few.size), f"{few_bytes} B among the fewest, {most_bytes} B"


@operations
def test_it_takes_no_longer_among_many(houses, measured, operation):
    few, *_, most = houses
    ratios = []
    for _ in range(3):
        times = [median(measured(seconds, operation, house, times=25)) for house in (few, most)]
        ratios.append(times[1] / times[0])
        if ratios[-1] < SLOWER:
            return
    raise AssertionError(f"among {most.size} it takes {ratios} times as long as among {few.size}")


def test_a_broadcast_costs_by_the_member(houses, measured):
    @contextlib.contextmanager
    def broadcasting_to_all(house):
        yield lambda: run(house.manager.broadcast_to_room("lobby", "hello"))

    hundred, thousand, _ = (measured(instructions, broadcasting_to_all, house)[0] for house in houses)
    assert 5 * hundred < thousand < 11 * hundred


@pytest.mark.parametrize("house", range(len(SIZES)), ids=SIZES)
def test_leaving_everything_costs_by_the_room_that_is_left(houses, measured, house):
    def disconnecting(rooms):
        @contextlib.contextmanager
        def operation(house):
            connection = house.with_rooms_of_its_own(rooms)
            yield lambda: house.manager.disconnect(connection)

        return operation

    ten, hundred = (measured(instructions, disconnecting(rooms), houses[house])[0] for rooms in (10, 100))
    assert ten < hundred < 11 * ten
