"""Who waits for peers: few tasks if hardly anybody has to wait, enough of them if many have."""

import asyncio
from functools import wraps
from itertools import pairwise
from math import ceil, log2

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.fakes import ClockedLoop, Desk, WaitingWire, run_clocked, ticks, until
from fastapi_rooms.domain.messages import Close, Message, encode
from fastapi_rooms.engine.outbound.writers import SLICE_SECONDS

BYE = Close(4000, "bye")
HELLO = encode("hello")


def text(number):
    return encode(f"message {number}")


def blocked(count):
    wires = [WaitingWire() for _ in range(count)]
    for wire in wires:
        wire.block()
    return wires


@pytest.fixture
def started(monkeypatch):
    """The names of all tasks that were started."""
    names = []
    create_task = asyncio.BaseEventLoop.create_task

    def noting(loop, coroutine, *, name=None, **options):
        names.append(name)
        return create_task(loop, coroutine, name=name, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_task", noting)
    return names


def clocked(test):
    """Run a test on a clock that jumps: on a real one, a slice is over when the machine says so."""

    @wraps(test)
    def run(**fixtures):
        run_clocked(lambda: test(**fixtures))

    return run


def live(desk):
    return len(desk.flusher._writers._tasks)


# Many


class Hall(RuleBasedStateMachine):
    """Many outboxes on wires that may wait. The loop is driven by hand: what a rule does happens in one tick."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.errors = []
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self.desk = Desk(send_timeout=1e6)
        self.members = []
        self.ticks = 0

    @initialize(count=st.integers(2, 14))
    def fill(self, count):
        self.patience = 4 + ceil(log2(count))  # flush, start; then help for as many as are blocked
        for _ in range(count):
            self.tick(self.enter)

    def enter(self):
        wire = WaitingWire()
        member = Member(wire, self.desk.outbox(wire))
        self.members.append(member)

    def tick(self, act=None):
        if act is not None:
            self.loop.call_soon(act)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        assert not self.errors
        self.ticks += 1
        for member in self.members:
            member.look(self.ticks)

    def some(self, numbers):
        return [self.members[number % len(self.members)] for number in sorted(numbers)]

    @rule(numbers=st.frozensets(st.integers(0, 13), min_size=1), count=st.integers(1, 4))
    def offer(self, numbers, count):
        self.tick(lambda: [member.offer(count) for member in self.some(numbers)])

    @rule(numbers=st.frozensets(st.integers(0, 13), min_size=1, max_size=8))
    def block(self, numbers):
        self.tick(lambda: [member.wire.block() for member in self.some(numbers)])

    @rule(numbers=st.frozensets(st.integers(0, 13), min_size=1))
    def unblock(self, numbers):
        self.tick(lambda: [member.wire.unblock() for member in self.some(numbers)])

    @rule(number=st.integers(0, 13))
    def close(self, number):
        self.tick(self.some([number])[0].close)

    @rule(numbers=st.frozensets(st.integers(0, 13), min_size=1, max_size=2))
    def abort(self, numbers):
        self.tick(lambda: [member.abort() for member in self.some(numbers)])

    @rule(number=st.integers(0, 13))
    def lose_the_peer(self, number):
        self.tick(self.some([number])[0].lose)

    @rule(number=st.integers(0, 13))
    def cut_off_between_two_ticks(self, number):
        """End a connection whose write was just released: the task has not gone on yet."""
        member = self.some([number])[0]
        self.tick(lambda: (member.wire.unblock(), member.abort()))

    @rule(count=st.integers(1, 3))
    def let_ticks_pass(self, count):
        for _ in range(count):
            self.tick()

    @precondition(lambda self: self.ticks > 0)
    @rule()
    def come_to_rest(self):
        for _ in range(self.patience + 1):
            self.tick()
        waiting = sum(bool(member.wire.in_flight) or member.is_closing_slowly for member in self.members)
        assert live(self.desk) == waiting, "each task waits for somebody"
        assert not self.desk.flusher._writers._waiting

    @invariant()
    def everything_is_written_once_and_in_order(self):
        for member in self.members:
            handed = member.wire.handed
            assert len(handed) <= len(member.promised)
            assert all(a is b for a, b in zip(handed, member.promised, strict=False))
            assert member.wire.faults == []

    @invariant()
    def nobody_waits_for_a_peer_that_is_not_his_own(self):
        for member in self.members:
            assert member.waiting_since is None or self.ticks - member.waiting_since <= self.patience

    def teardown(self):
        try:
            self.tick(lambda: [member.wire.unblock() for member in self.members])
            self.tick(lambda: [member.close() for member in self.members])
            for _ in range(10):
                self.tick()
            for member in self.members:
                assert member.outbox.is_done
                if not member.is_broken:
                    assert member.wire.written == member.promised
                    assert member.wire.closes == [BYE]
            assert live(self.desk) == 0
        finally:
            self.loop.run_until_complete(self.desk.flusher.settle(0))
            assert asyncio.all_tasks(self.loop) == set()
            self.loop.close()


class Member:
    def __init__(self, wire, outbox):
        self.wire = wire
        self.outbox = outbox
        self.promised = []
        self.waiting_since = None  # tick, since when the same waits although the peer takes it
        self.done = None  # what was written when it was last looked at
        self.is_closed = False
        self.is_broken = False  # aborted, or the peer went

    @property
    def is_behind(self):
        return len(self.wire.written) < len(self.promised) or (self.is_closed and not self.wire.closes)

    @property
    def is_closing_slowly(self):
        """Its close frame waits for the peer."""
        return (
            self.is_closed
            and not self.is_broken
            and self.wire.is_blocked
            and not self.wire.closes
            and len(self.wire.written) == len(self.promised)
        )

    def look(self, now):
        before, self.done = self.done, (len(self.wire.written), len(self.wire.closes))
        if self.is_broken or self.wire.is_blocked or not self.is_behind:
            self.waiting_since = None
        elif self.waiting_since is None or self.done != before:
            self.waiting_since = now

    def offer(self, count):
        if not self.is_closed and not self.is_broken:
            for _ in range(count):
                message = Message(b"%d" % len(self.promised), is_text=True)
                self.outbox.offer(message)
                self.promised.append(message)

    def close(self):
        self.is_closed = True
        self.outbox.close(BYE)

    def abort(self):
        self.is_broken = True
        self.outbox.abort()

    def lose(self):
        self.is_broken = True
        self.wire.go()


Hall.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestHall = Hall.TestCase


# Few tasks


def test_one_task_writes_to_a_thousand_who_take_everything(started):
    async def main():
        desk = Desk()
        wires = [WaitingWire() for _ in range(1_000)]
        outboxes = [desk.outbox(wire) for wire in wires]
        for number in range(3):
            for outbox in outboxes:
                outbox.offer(text(number))
            await ticks()
            assert all(len(wire.written) == number + 1 for wire in wires)
            assert started.count("fastapi_rooms outbox") == number + 1
            assert (live(desk), desk.flusher._writers._loop) == (0, None)

    run_clocked(main)


def test_one_task_is_enough_and_it_pauses_after_each_slice(started):
    class Costly(WaitingWire):
        async def write(self, messages):
            await super().write(messages)
            asyncio.get_running_loop().now += 0.00002

    async def main():
        desk = Desk()
        loop = asyncio.get_running_loop()
        wires = [Costly() for _ in range(5_000)]
        outboxes = [desk.outbox(wire) for wire in wires]
        for outbox in outboxes:
            outbox.offer(HELLO)
        reached, at = [0], [loop.time()]  # turn by turn
        while reached[-1] < 5_000:
            await asyncio.sleep(0)
            reached.append(sum(bool(wire.writes) for wire in wires))
            at.append(loop.time())
            assert live(desk) <= 1
        assert loop.time() == pytest.approx(0.1, abs=0.01)
        assert len(set(reached)) == pytest.approx(0.1 / SLICE_SECONDS, abs=2)
        assert max(after - before for before, after in pairwise(at)) < SLICE_SECONDS + 0.0001
        assert reached == sorted(reached)
        assert started.count("fastapi_rooms outbox") == 1, "who pauses goes on by himself: no help is needed"
        await ticks()
        assert live(desk) == 0

    run_clocked(main)


@clocked
async def test_help_doubles_while_nothing_moves_and_begins_anew_afterwards(started):
    desk = Desk()
    for _ in range(2):
        waiting, taking = blocked(100), [WaitingWire() for _ in range(50)]
        outboxes = [desk.outbox(wire) for wire in [*waiting, *taking]]
        for outbox in outboxes:
            outbox.offer(HELLO)
        started.clear()
        counts = []
        while not counts or counts[-1] < 100:
            await asyncio.sleep(0)
            counts.append(started.count("fastapi_rooms outbox"))
            assert len(counts) < 20
        rising = sorted(set(counts) - {0})
        assert rising == [1, 3, 7, 15, 31, 63, 127][: len(rising)]
        await ticks(2)
        assert all(wire.written == [HELLO] for wire in taking), "one after the other behind those who are blocked"
        assert live(desk) == 100, "one waits for each, and the others have gone"
        for wire in waiting:
            wire.unblock()
        await until(lambda: not live(desk))
        assert all(wire.written == [HELLO] for wire in waiting)


@clocked
async def test_no_more_help_comes_than_there_is_to_do(started):
    desk = Desk()
    for wire in blocked(5):
        desk.outbox(wire).offer(HELLO)
    await ticks(20)
    assert started.count("fastapi_rooms outbox") == live(desk) == 5
    await desk.flusher.settle(0)


@clocked
async def test_who_comes_while_others_wait_gets_a_task_of_its_own_at_once():
    desk = Desk()
    wires = blocked(20)
    for wire in wires:
        desk.outbox(wire).offer(HELLO)
    await ticks(20)
    healthy = WaitingWire()
    outbox = desk.outbox(healthy)
    for count in range(1, 5):
        outbox.offer(HELLO)
        await ticks(3)
        assert (len(healthy.written), live(desk)) == (count, 20)
    await desk.flusher.settle(0)


# Ends


@clocked
async def test_an_abort_ends_the_task_that_waits_for_that_peer_and_the_others_are_written():
    desk = Desk()
    first, second, *others = blocked(2) + [WaitingWire() for _ in range(8)]
    stuck, stuck_too, *_ = outboxes = [desk.outbox(wire) for wire in [first, second, *others]]
    for outbox in outboxes:
        outbox.offer(HELLO)
    await until(lambda: first.in_flight)
    assert not others[-1].written
    stuck.abort()
    await ticks(6)
    assert [wire.written for wire in others] == [[HELLO]] * 8
    assert (first.written, desk.ended, live(desk)) == ([], [stuck], 1)
    stuck_too.abort()
    await ticks(2)
    assert live(desk) == 0


@clocked
async def test_an_abort_before_the_turn_of_an_outbox_has_come_cancels_nobody():
    desk = Desk()
    wires = [WaitingWire() for _ in range(5)]
    outboxes = [desk.outbox(wire) for wire in wires]
    for outbox in outboxes:
        outbox.offer(HELLO)
    await asyncio.sleep(0)  # flushed, and the task is due
    outboxes[2].abort()
    await ticks()
    assert [wire.written for wire in wires] == [[HELLO], [HELLO], [], [HELLO], [HELLO]]
    assert live(desk) == 0


@pytest.mark.parametrize("count", [1, 3, 50])
@clocked
async def test_settling_leaves_no_task_however_many_wait(count):
    desk = Desk()
    wires = blocked(count)
    for wire in wires:
        outbox = desk.outbox(wire)
        outbox.offer(HELLO)
        outbox.close(BYE)
    await ticks(20)
    assert live(desk) == count
    await desk.flusher.settle(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [wire.aborts for wire in wires] == [1] * count
    assert not desk.flusher._writers._waiting


@clocked
async def test_settling_before_the_task_has_begun_leaves_none_that_begins_later(started):
    desk = Desk()
    for wire in blocked(3):
        desk.outbox(wire).offer(HELLO)
    await asyncio.sleep(0)  # flushed, and the task is due
    await desk.flusher.settle(0)
    count = started.count("fastapi_rooms outbox")
    for _ in range(5):
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert started.count("fastapi_rooms outbox") == count


@clocked
async def test_after_settling_it_writes_again():
    desk = Desk()
    for wire in blocked(3):
        desk.outbox(wire).offer(HELLO)
    await ticks()
    await desk.flusher.settle(0)
    wire = WaitingWire()
    desk.outbox(wire).offer(HELLO)
    await ticks()
    assert wire.written == [HELLO]


class Long(WaitingWire):
    """Each write takes as long as a slice may."""

    async def write(self, messages):
        await super().write(messages)
        asyncio.get_running_loop().now += 1.01 * SLICE_SECONDS


@pytest.fixture
def two_loops():
    loops = [ClockedLoop(), ClockedLoop()]
    yield loops
    for loop in loops:
        assert asyncio.all_tasks(loop) == set()
        loop.close()


def test_the_next_loop_writes_what_waits_although_the_last_was_left_in_the_middle(two_loops):
    desk = Desk()
    wires = [Long() for _ in range(20)]
    last, current = two_loops

    async def begin():
        for wire in wires:
            desk.outbox(wire).offer(HELLO)
        await until(lambda: wires[0].written)  # and the task pauses

    async def go_on():
        wire = WaitingWire()
        desk.outbox(wire).offer(HELLO)
        await ticks(60)
        assert wire.written == [HELLO]

    last.run_until_complete(begin())
    assert sum(bool(wire.written) for wire in wires) < 5
    current.run_until_complete(go_on())
    assert [wire.written for wire in wires] == [[HELLO]] * 20
    last.run_until_complete(ticks())
    assert live(desk) == 0


def test_a_task_that_pauses_on_a_loop_that_was_left_is_nobodys_help(two_loops):
    desk = Desk()
    last, current = two_loops
    wires = [Long() for _ in range(20)]

    async def begin():
        for wire in wires:
            desk.outbox(wire).offer(HELLO)
        await until(lambda: wires[0].written)  # and the task pauses

    async def go_on():
        stuck, healthy = *blocked(1), WaitingWire()
        for wire in (stuck, healthy):
            desk.outbox(wire).offer(HELLO)
        await ticks(60)
        assert healthy.written == [HELLO]
        stuck.unblock()
        await ticks()

    last.run_until_complete(begin())
    current.run_until_complete(go_on())
    last.run_until_complete(ticks())


def test_a_loop_that_was_left_in_the_middle_may_go_on_after_the_next(two_loops):
    desk = Desk()

    async def write(*, to_the_end):
        wires = [Long() for _ in range(10)]
        for wire in wires:
            desk.outbox(wire).offer(HELLO)
        await until(lambda: wires[-1 if to_the_end else 0].written)

    last, current = two_loops
    last.run_until_complete(write(to_the_end=False))
    current.run_until_complete(write(to_the_end=True))
    last.run_until_complete(ticks())
    for loop in (last, current, last):
        loop.run_until_complete(write(to_the_end=True))
        loop.run_until_complete(ticks())
    assert live(desk) == 0


def test_a_task_that_pauses_while_others_finish_keeps_nobody_from_being_helped():
    async def main():
        loop = asyncio.get_running_loop()
        desk = Desk()
        stuck, *later = blocked(3)
        wires = [stuck, Long(), WaitingWire()]
        healthy = WaitingWire()
        outboxes = [desk.outbox(wire) for wire in wires]
        others = [desk.outbox(wire) for wire in [*later, healthy]]
        for outbox in outboxes:
            outbox.offer(HELLO)
        # Two who help: one writes for as long as a slice may take and pauses, the other writes the rest.
        await until(lambda: wires[1].written)
        for outbox in others:
            outbox.offer(HELLO)
            outbox.flush()  # in this very tick
        await ticks(20)
        assert healthy.written == [HELLO]
        assert desk.flusher._writers._loop is None, "it does not look again and again"
        assert loop.time() < 1
        await desk.flusher.settle(0)

    run_clocked(main)


# Behind


class Slow(WaitingWire):
    """A wire whose every write keeps the whole node for two seconds."""

    async def write(self, messages):
        await super().write(messages)
        asyncio.get_running_loop().now += 2


def test_a_node_whose_writes_take_long_says_that_it_is_behind_and_holds_it_against_nobody(caplog):
    async def main():
        desk = Desk(send_timeout=1, outbox_messages=1)
        wires = [Slow() for _ in range(10)]
        outboxes = [desk.outbox(wire) for wire in wires]
        for outbox in outboxes:
            outbox.offer(HELLO)
        assert desk.flusher.behind_seconds() == 0
        late = []
        while not all(wire.written for wire in wires):
            await asyncio.sleep(0)
            late.append(desk.flusher.behind_seconds())
            desk.flusher._sweep()
        assert desk.stalled == []
        assert max(late) >= 16
        await ticks()
        assert desk.flusher.behind_seconds() == 0
        [line] = [record for record in caplog.records if "this node is behind" in record.message]
        assert "has waited for 2.0 s" in line.message
        await desk.flusher.settle(0)

    run_clocked(main)


def test_what_gathers_for_who_has_not_had_its_turn_is_judged_by_the_sweep_and_forgotten_when_the_turn_comes():
    async def main():
        desk = Desk(outbox_messages=3)
        wire = WaitingWire()
        outbox = desk.outbox(wire)
        writers = desk.flusher._writers
        start, writers._start = writers._start, lambda _: None  # no turn comes
        outbox.offer(HELLO)
        await ticks()
        for _ in range(9):
            outbox.offer(HELLO)
            await ticks()
        assert outbox.awaits_turn
        assert not outbox.is_over
        desk.flusher._sweep()
        assert outbox.is_over
        start(asyncio.get_running_loop())
        await until(lambda: len(wire.written) == 10)
        assert not outbox.is_over
        assert desk.counters.lost_messages == 0

    run_clocked(main)


def test_nobody_is_behind_on_a_loop_that_was_closed(two_loops):
    desk = Desk()
    writers = desk.flusher._writers
    last, _ = two_loops

    async def leave():
        writers._start = lambda loop: setattr(writers, "_loop", loop)  # no turn comes
        desk.outbox(WaitingWire()).offer(HELLO)
        await ticks()

    last.run_until_complete(leave())
    assert len(writers._waiting) == 1
    last.close()
    assert desk.flusher.behind_seconds() == 0
