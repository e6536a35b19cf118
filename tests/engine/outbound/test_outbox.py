"""What waits to be sent: kept in order, bounded, counted when lost."""

import asyncio

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from starlette import websockets
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from engine.fakes import WIRES, Desk, ImmediateWire, WaitingWire, run_clocked, ticks, until
from fastapi_rooms.domain.connection import Verdict
from fastapi_rooms.domain.messages import Close, Message, encode
from fastapi_rooms.domain.settings import Overflow
from fastapi_rooms.engine.outbound.ended import ENDED
from fastapi_rooms.engine.outbound.failed_write import FAILED, may_say_gone, says_gone
from fastapi_rooms.engine.outbound.stall import Behind

Disconnected = getattr(websockets, "WebSocketDisconnected", None) or type("WebSocketDisconnected", (RuntimeError,), {})
"""What Starlette raises after the end; an old one has no such class."""

BYE = Close(4000, "bye")
SOME_LIFE = 12


def message(size=4):
    return Message(b"x" * size, is_text=True)


class OutboxMachine(RuleBasedStateMachine):
    """One outbox on one wire. The loop is driven by hand: everything that a rule does happens in one tick."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.errors = []
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self.queued = []  # accepted and not yet passed to the wire: what the outbox has to hold, in order
        self.accepted = 0
        self.refused = 0  # offers that were dropped or overflowed
        self.dropped = 0  # accepted and given up for younger ones
        self.handed = 0  # how much of `wire.handed` the model has seen
        self.bursts = [(0, 0)]  # messages and bytes accepted: before the handshake was answered, then tick by tick
        self.is_open = False
        self.was_blocked = False
        self.broken = False  # the peer went, an error was raised or the outbox was aborted
        self.sealed = False
        self.close = None
        self.at_end = None  # what was written when the end was reported
        self.waiters = []
        self.ticks = 0  # so that an end comes after some life

    @initialize(
        wire=st.sampled_from(WIRES),
        overflow=st.sampled_from(Overflow),
        messages=st.integers(1, 6),
        size=st.integers(10, 80),
        is_open=st.booleans(),
    )
    def make(self, wire, overflow, messages, size, is_open):
        self.wire = wire()
        self.desk = Desk(overflow=overflow, outbox_messages=messages, outbox_bytes=size, send_timeout=1e6)
        self.outbox = self.tick(self.desk.outbox)
        if is_open:
            self.open()

    def tick(self, act=None):
        """Do something in a tick of its own; what it schedules runs in later ticks."""
        results = []
        if act is not None:
            self.loop.call_soon(lambda: results.append(act()))
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        assert not self.errors
        self.ticks += 1
        if self.is_open:
            self.bursts.append((0, 0))
        self.follow()
        return results[0] if results else None

    def follow(self):
        """Take from the model what the outbox has passed to the wire."""
        fresh = self.wire.handed[self.handed :]
        self.handed += len(fresh)
        assert all(a is b for a, b in zip(fresh, self.queued, strict=False)), "the order was changed"
        assert len(fresh) <= len(self.queued), "more was written than is queued"
        del self.queued[: len(fresh)]
        if self.desk.ended and self.at_end is None:
            self.at_end = (list(self.wire.written), list(self.wire.closes))

    # What is done to it

    @precondition(lambda self: not self.is_open)
    @rule()
    def open(self):
        self.is_open = True
        self.tick(lambda: (self.outbox.open(self.wire), self.desk.flusher.watch(self.outbox)))

    @rule(sizes=st.lists(st.integers(1, 24), min_size=1, max_size=12))
    def offer(self, sizes):
        self.tick(lambda: self.burst(sizes))

    def burst(self, sizes):
        self.follow()  # a task may have written earlier in this tick
        verdicts = [self.offer_one(message(size)) for size in sizes]
        assert len(set(verdicts)) == 1, "within a tick nothing is learnt, so no verdict changes"
        # An answer to the handshake that does not come is as good as a peer that takes nothing.
        if self.is_open and not self.was_blocked and not self.sealed and not self.broken:
            assert verdicts[0] is Verdict.ACCEPTED, "a peer that takes everything is never slow"

    def offer_one(self, offered):
        limits = self.desk.settings
        lost = self.desk.counters.lost_messages
        waiting, size = len(self.queued), sum(m.size for m in self.queued)
        is_over = waiting > limits.outbox_messages or size > limits.outbox_bytes
        verdict = self.outbox.offer(offered)
        lost = self.desk.counters.lost_messages - lost
        assert (verdict is Verdict.GONE) == (self.sealed or self.outbox.is_done)
        match verdict:
            case Verdict.GONE:
                assert lost == 0
                return verdict
            case Verdict.ACCEPTED if lost:
                assert limits.overflow is Overflow.DROP_OLDEST
                assert waiting + 1 > limits.outbox_messages or size + offered.size > limits.outbox_bytes
                rest = self.queued[lost:]
                kept = self.queued[lost - 1 :]
                assert not rest or fits([*rest, offered], limits), "too little was dropped"
                assert not fits([*kept, offered], limits), "more was dropped than had to be"
                self.queued = rest
                self.dropped += lost
            case Verdict.OVERFLOW:
                assert (limits.overflow, lost, is_over) == (Overflow.CLOSE, 1, True)
            case Verdict.DROPPED:
                assert (limits.overflow, lost, is_over) == (Overflow.DROP_NEWEST, 1, True)
        if verdict is Verdict.ACCEPTED:
            self.queued.append(offered)
            self.accepted += 1
            messages, size = self.bursts[-1]
            self.bursts[-1] = (messages + 1, size + offered.size)
        else:
            self.refused += 1
        return verdict

    @rule()
    def block(self):
        self.was_blocked = True
        self.tick(self.wire.block)

    @rule()
    def unblock(self):
        self.tick(self.wire.unblock)

    @rule()
    def fill_up_soon(self):
        if isinstance(self.wire, ImmediateWire):
            self.was_blocked = True
            self.wire.room = 30

    @precondition(lambda self: self.ticks > SOME_LIFE)
    @rule()
    def lose_the_peer(self):
        self.broken = True
        self.tick(self.wire.go)

    @precondition(lambda self: self.ticks > SOME_LIFE)
    @rule()
    def raise_from_the_wire(self):
        self.broken = True
        self.wire.error = OSError("from the wire")

    @rule()
    def notice_end(self):
        self.tick(self.outbox.notice_end)

    @precondition(lambda self: self.ticks > SOME_LIFE)
    @rule(close=st.none() | st.just(BYE))
    def close_it(self, close):
        if not self.sealed and not self.outbox.is_done:
            self.close = close
            self.broken = self.broken or (not self.is_open and close is None)
        self.sealed = True
        self.tick(lambda: self.outbox.close(close))

    @precondition(lambda self: self.ticks > SOME_LIFE)
    @rule()
    def abort(self):
        self.broken = self.sealed = True
        self.tick(self.outbox.abort)

    @rule()
    def wait_for_space(self):
        self.tick(lambda: self.waiters.append(self.loop.create_task(self.outbox.wait_for_space())))

    @rule()
    def wait_until_done(self):
        self.tick(lambda: self.waiters.append(self.loop.create_task(self.outbox.wait_until_done())))

    @rule(count=st.integers(1, 4))
    def let_ticks_pass(self, count):
        for _ in range(count):
            self.tick()

    # What has to be true whatever was done

    @invariant()
    def everything_written_was_accepted_and_in_order(self):
        handed = iter(self.wire.handed)
        assert all(any(m is h for h in handed) for m in self.wire.written)

    @invariant()
    def nothing_is_lost_without_being_counted(self):
        lost = self.desk.counters.lost_messages
        written, waiting = len(self.wire.written), len(self.outbox) + len(self.wire.in_flight)
        if self.outbox.is_done:
            waiting = 0
        assert self.accepted + self.refused == written + waiting + lost

    @invariant()
    def the_outbox_holds_what_the_model_holds(self):
        if not self.outbox.is_done:
            assert len(self.outbox) == len(self.queued)

    @invariant()
    def memory_is_bounded(self):
        # On top of the limits come what one tick offered before a write was tried, what the tick of that try did, and
        # what the last tick did before it was judged.
        limits = self.desk.settings
        messages, sizes = ([burst[kind] for burst in self.bursts] for kind in (0, 1))
        assert len(self.outbox) <= limits.outbox_messages + sum(sorted(messages)[-3:])
        assert self.outbox.size <= limits.outbox_bytes + sum(sorted(sizes)[-3:])
        if not self.outbox.is_done:
            assert self.outbox.size == sum(m.size for m in self.queued)

    @invariant()
    def the_wire_is_used_as_it_wants_to_be(self):
        assert self.wire.faults == []

    @invariant()
    def the_end_is_told_once_and_nothing_is_written_behind_it(self):
        assert self.desk.ended == [self.outbox] * self.outbox.is_done
        if self.at_end is not None:
            assert (self.wire.written, self.wire.closes) == self.at_end

    @invariant()
    def a_close_frame_comes_at_most_once_and_last(self):
        assert self.wire.closes in ([], [self.close])
        if self.wire.closes:
            assert not self.queued or self.broken

    def teardown(self):
        try:
            self.finish()
        finally:
            self.loop.run_until_complete(self.desk.flusher.settle(0))
            assert asyncio.all_tasks(self.loop) == set()
            assert self.desk.flusher._writers._tasks == set()
            self.loop.close()

    def finish(self):
        """Let the peer take everything, close, and see that nothing hangs."""
        if not hasattr(self, "outbox"):
            self.desk = Desk()
            return
        if not self.is_open:
            self.open()
        self.wire.room = None
        self.unblock()
        if not self.sealed:
            self.close_it(BYE)
        for _ in range(20):
            self.tick()
        for waiter in self.waiters:
            if not waiter.done():
                waiter.cancel()
                self.tick()
                raise AssertionError("somebody waits for an outbox that has ended")
        assert self.outbox.is_done
        assert self.outbox.is_written()
        if not self.broken:
            assert len(self.wire.written) == self.accepted - self.dropped
            assert self.wire.closes == ([] if self.close is None else [self.close])
        self.nothing_is_lost_without_being_counted()
        self.the_end_is_told_once_and_nothing_is_written_behind_it()


def fits(queue, limits):
    return len(queue) <= limits.outbox_messages and sum(m.size for m in queue) <= limits.outbox_bytes


OutboxMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestOutboxMachine = OutboxMachine.TestCase


# Writing


async def test_messages_of_one_tick_leave_in_one_write_at_its_end():
    wire = ImmediateWire()
    outbox = Desk().outbox(wire)
    offered = [message() for _ in range(5)]
    assert [outbox.offer(one) for one in offered] == [Verdict.ACCEPTED] * 5
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [offered]


async def test_what_is_written_at_once_is_written_now_and_what_follows_in_the_tick_shares_a_write():
    wire = ImmediateWire()
    desk = Desk()
    desk.flusher.is_late = lambda seconds: False  # however slow the machine
    outbox = desk.outbox(wire)
    for _ in range(2):
        wire.writes.clear()
        before, first, *rest = [message() for _ in range(4)]
        outbox.offer(before)
        outbox.offer(first)
        outbox.write_at_once()
        assert wire.writes == [[before, first]], "in order, with what was gathered before"
        for one in rest:
            outbox.offer(one)
            outbox.write_at_once()
        assert len(wire.writes) == 1
        await asyncio.sleep(0)
        assert wire.writes == [[before, first], rest]


async def test_in_a_tick_that_lasts_each_message_is_written_at_once():
    wire, desk = ImmediateWire(), Desk()
    desk.flusher.is_late = lambda seconds: True
    outbox = desk.outbox(wire)
    for count in (1, 2, 3):
        outbox.offer(message())
        outbox.write_at_once()
        assert len(wire.writes) == count


async def test_nothing_is_written_at_once_before_the_handshake_behind_a_backlog_or_within_an_interval():
    desk = Desk()
    not_open = desk.outbox()
    not_open.offer(message())
    not_open.write_at_once()
    assert len(not_open) == 1
    not_open.abort()
    behind, wire = None, ImmediateWire(room=1)
    behind = desk.outbox(wire)
    for _ in range(3):
        behind.offer(message())
        behind.write_at_once()
        await ticks()
    assert len(wire.writes) == 1
    behind.abort()
    gathered = Desk(flush_interval=20).outbox(gathering := ImmediateWire())
    gathered.offer(message())
    gathered.write_at_once()
    assert gathering.writes == []
    gathered.abort()


async def test_what_is_written_early_is_what_the_peer_takes_and_nothing_is_learnt_of_the_rest():
    wire, desk = ImmediateWire(room=8), Desk(outbox_messages=1)
    outbox = desk.outbox(wire)
    outbox.write_early()
    assert wire.writes == []
    for _ in range(3):
        outbox.offer(message(4))
        outbox.write_early()
    assert len(wire.written) == 2
    assert not outbox.is_writing
    assert [outbox.offer(message(4)) for _ in range(9)] == [Verdict.ACCEPTED] * 9
    await asyncio.sleep(0)
    assert outbox.is_writing
    assert outbox.offer(message(4)) is Verdict.ACCEPTED, "all that came within that tick is no fault of the peer"
    outbox.write_early()
    outbox.abort()
    outbox.write_early()
    assert len(wire.written) == 2


async def test_an_early_write_that_fails_ends_the_outbox():
    wire, desk = ImmediateWire(), Desk()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    wire.gone = True
    outbox.write_early()
    assert outbox.is_done
    assert desk.counters.lost_messages == 1


@pytest.mark.parametrize("wire", WIRES)
async def test_a_burst_behind_what_was_written_at_once_is_no_fault_of_the_peer(wire):
    wire, desk = wire(), Desk(outbox_messages=1)
    wire.block()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    outbox.write_at_once()
    assert outbox.is_writing
    assert [outbox.offer(message()) for _ in range(9)] == [Verdict.ACCEPTED] * 9
    await ticks()
    assert not outbox.is_over, "all came within one tick"
    outbox.offer(message())
    await ticks()
    assert not outbox.is_over
    outbox.offer(message())
    await ticks()
    assert outbox.is_over
    outbox.abort()


async def test_a_flush_that_comes_late_finds_nothing_to_allow_and_what_follows_counts():
    wire, desk = WaitingWire(), Desk(outbox_messages=1)
    wire.block()
    outbox = desk.outbox(wire)
    desk.flusher.add = lambda outbox: None  # the flush is in a later slice
    outbox.offer(message())
    outbox.write_at_once()
    await ticks()
    assert wire.in_flight
    outbox.flush()
    for _ in range(2):
        assert not outbox.is_over
        outbox.offer(message())
        outbox.flush()
    assert outbox.is_over
    outbox.abort()


async def test_a_flush_that_finds_nothing_writes_nothing():
    wire = ImmediateWire()
    outbox = Desk().outbox(wire)
    outbox.offer(only := message())
    outbox.flush()  # and one is due at the end of the tick
    await ticks()
    assert wire.writes == [[only]]


async def test_each_tick_has_a_write_of_its_own():
    wire = ImmediateWire()
    outbox = Desk().outbox(wire)
    first, second = message(), message()
    outbox.offer(first)
    await ticks()
    outbox.offer(second)
    await ticks()
    assert wire.writes == [[first], [second]]


async def test_a_write_takes_about_as_much_as_the_wire_says_and_one_message_at_least():
    wire = ImmediateWire()  # 64 bytes
    outbox = Desk().outbox(wire)
    sizes = [30, 30, 30, 100, 64, 1]
    for size in sizes:
        outbox.offer(message(size))
    await ticks()
    assert [[m.size for m in write] for write in wire.writes] == [[30, 30], [30], [100], [64], [1]]


@pytest.mark.parametrize("wire", WIRES)
async def test_a_burst_within_one_tick_never_overflows_however_long(wire):
    wire, desk = wire(), Desk(outbox_messages=1, outbox_bytes=10)
    outbox = desk.outbox(wire)
    offered = [message() for _ in range(5_000)]
    assert {outbox.offer(one) for one in offered} == {Verdict.ACCEPTED}
    await until(lambda: len(wire.written) == 5_000)
    assert wire.written == offered
    assert outbox.offer(message()) is Verdict.ACCEPTED
    assert desk.counters.lost_messages == 0


async def test_what_is_left_of_a_burst_does_not_count_against_the_limit_and_what_follows_does():
    wire, desk = ImmediateWire(room=40), Desk(outbox_messages=3)
    outbox = desk.outbox(wire)
    for _ in range(15):
        assert outbox.offer(message(10)) is Verdict.ACCEPTED
    await ticks()  # six left with the first write, then the buffer was full, and a task waits for the peer
    assert len(wire.written) == 6
    assert not outbox.is_over
    for _ in range(4):
        assert outbox.offer(message(10)) is Verdict.ACCEPTED
        await ticks()
    assert outbox.is_over
    assert outbox.offer(message(10)) is Verdict.OVERFLOW
    assert desk.counters.lost_messages == 1


async def test_the_allowance_of_a_burst_is_used_up_as_the_burst_is_written():
    wire, desk = WaitingWire(), Desk(outbox_messages=2)
    outbox = desk.outbox(wire)
    for _ in range(50):
        outbox.offer(message())
    await until(lambda: len(wire.written) == 50)
    wire.block()
    verdicts = []
    for _ in range(5):
        verdicts.append(outbox.offer(message()))
        await ticks()
    assert verdicts == [Verdict.ACCEPTED] * 4 + [Verdict.OVERFLOW]  # one in flight, two queued, one on trust


@pytest.mark.parametrize("wire", WIRES)
async def test_a_burst_that_meets_a_blocked_peer_is_judged_by_what_follows(wire):
    wire, desk = wire(), Desk(outbox_messages=2)
    wire.block()
    outbox = desk.outbox(wire)
    for _ in range(5):
        outbox.offer(message())
    await until(lambda: wire.in_flight)
    await ticks()
    verdicts = []
    for _ in range(4):
        verdicts.append(outbox.offer(message()))
        await ticks()
    assert verdicts == [Verdict.ACCEPTED] * 3 + [Verdict.OVERFLOW]


@pytest.mark.parametrize(
    ("limits", "size", "fit"),
    [({"outbox_messages": 3}, 4, 3), ({"outbox_bytes": 30}, 10, 3), ({"outbox_bytes": 29}, 10, 2)],
)
async def test_a_full_outbox_holds_exactly_its_limit(limits, size, fit):
    wire = WaitingWire()
    wire.block()
    outbox = Desk(**limits).outbox(wire)
    outbox.offer(message(size))
    await until(lambda: wire.in_flight)
    verdicts = []
    for _ in range(fit + 2):
        verdicts.append(outbox.offer(message(size)))
        await ticks()
    # One more than fits is taken on trust, and judged at the end of its tick.
    assert verdicts == [Verdict.ACCEPTED] * (fit + 1) + [Verdict.OVERFLOW]


async def test_an_outbox_that_has_caught_up_takes_offers_again():
    wire, desk = WaitingWire(), Desk(outbox_messages=2)
    wire.block()
    outbox = desk.outbox(wire)
    while outbox.offer(message()) is not Verdict.OVERFLOW:
        await ticks()
    wire.unblock()
    await until(lambda: not len(outbox))
    assert not outbox.is_over
    assert outbox.offer(message()) is Verdict.ACCEPTED


class OneByOne(WaitingWire):
    """Takes one message whenever it is unblocked."""

    def _deliver(self, messages):
        super()._deliver(messages)
        self.block()


async def test_an_outbox_that_has_caught_up_in_part_takes_offers_again():
    wire, desk = OneByOne(), Desk(outbox_messages=2)
    wire.block()
    outbox = desk.outbox(wire)
    while outbox.offer(message()) is not Verdict.OVERFLOW:
        await ticks()
    assert len(outbox) == 3
    wire.unblock()
    await until(lambda: wire.written and wire.in_flight)
    assert len(outbox) == 2
    assert outbox.offer(message()) is Verdict.ACCEPTED
    outbox.abort()


async def test_the_bytes_of_a_burst_are_an_allowance_too():
    wire, desk = WaitingWire(), Desk(outbox_bytes=20)
    wire.block()
    outbox = desk.outbox(wire)
    for _ in range(10):
        outbox.offer(message(10))
    verdicts = []
    for _ in range(5):
        await ticks()
        verdicts.append(outbox.offer(message(10)))
    assert verdicts == [Verdict.ACCEPTED] * 3 + [Verdict.OVERFLOW] * 2  # two fit, one is taken on trust
    outbox.abort()


async def test_a_server_that_takes_messages_for_a_peer_that_is_gone_is_given_no_more():
    class Silent(OneByOne):
        def _fail(self):
            """Let the write succeed, as some servers do."""

    wire, desk = Silent(), Desk()
    wire.block()
    outbox = desk.outbox(wire)
    for _ in range(3):
        outbox.offer(message())
    await until(lambda: wire.in_flight)
    wire.go()
    await until(lambda: outbox.is_done)
    assert (len(wire.handed), desk.ended, desk.counters.lost_messages) == (1, [outbox], 2)


async def test_drop_oldest_gives_up_those_that_wait_longest():
    wire, desk = WaitingWire(), Desk(outbox_messages=3, overflow="drop_oldest")
    wire.block()
    outbox = desk.outbox(wire)
    lost, waiting = [], []
    for number in range(10):
        assert outbox.offer(encode(str(number))) is Verdict.ACCEPTED
        lost.append(desk.counters.lost_messages)
        waiting.append(len(outbox))
        await ticks()
    # The first is being written. One more than the limit is taken on trust, and judged at the end of its tick.
    assert lost == [0, 0, 0, 0, 0, 2, 2, 4, 4, 6]
    assert waiting == [1, 1, 2, 3, 4, 3, 4, 3, 4, 3]
    wire.unblock()
    await until(lambda: not len(outbox) and not wire.in_flight)
    assert [int(m.payload) for m in wire.written] == [0, 7, 8, 9]


async def test_drop_oldest_counts_in_bytes_too():
    wire, desk = WaitingWire(), Desk(outbox_bytes=100, overflow="drop_oldest")
    wire.block()
    outbox = desk.outbox(wire)
    lost, waiting = [], []
    for size in (1, 10, 20, 30, 50, 25, 100, 1, 1):
        outbox.offer(message(size))
        lost.append(desk.counters.lost_messages)
        waiting.append(outbox.queued())
        await ticks()
    assert waiting[4:] == [(4, 110), (2, 75), (3, 175), (1, 1), (2, 2)]
    assert lost[4:] == [0, 3, 3, 6, 6]
    outbox.abort()


async def test_drop_oldest_makes_room_for_a_message_that_is_larger_than_the_limit():
    wire, desk = WaitingWire(), Desk(outbox_bytes=10, overflow="drop_oldest")
    wire.block()
    outbox = desk.outbox(wire)
    for _ in range(4):
        outbox.offer(message(5))
        await ticks()
    large = message(50)
    assert outbox.offer(large) is Verdict.ACCEPTED
    assert len(outbox) == 1
    wire.unblock()
    await until(lambda: large in wire.written)
    assert desk.counters.lost_messages == 3


async def test_drop_newest_gives_up_what_is_offered():
    wire, desk = WaitingWire(), Desk(outbox_messages=2, overflow="drop_newest")
    wire.block()
    outbox = desk.outbox(wire)
    verdicts = []
    for number in range(6):
        verdicts.append(outbox.offer(encode(str(number))))
        await ticks()
    assert verdicts == [Verdict.ACCEPTED] * 4 + [Verdict.DROPPED] * 2
    wire.unblock()
    await until(lambda: not len(outbox) and not wire.in_flight)
    assert [int(m.payload) for m in wire.written] == [0, 1, 2, 3]
    assert desk.counters.lost_messages == 2


async def test_what_is_offered_before_the_handshake_is_answered_leaves_first():
    wire, outbox = ImmediateWire(), Desk().outbox()
    first, second = message(), message()
    outbox.offer(first)
    await ticks()
    outbox.open(wire)
    assert wire.written == [first]
    outbox.offer(second)
    await ticks()
    assert wire.written == [first, second]


# What an error says


@pytest.mark.parametrize(
    ("error", "says", "may"),
    [
        (ClientDisconnected(), True, True),
        (WebSocketDisconnect(1006), True, False),
        (Disconnected("Cannot call send once a close message has been sent."), True, False),
        (anyio.ClosedResourceError(), True, False),
        (RuntimeError("Unexpected ASGI message 'websocket.send', after sending 'websocket.close'."), True, False),
        (type("GoneError", (OSError,), {})(), False, True),
        (OSError("reset"), False, True),
        (BrokenPipeError(), False, True),
        (TimeoutError(), False, False),
        (ConnectionRefusedError(), False, False),
        (RuntimeError("anything"), False, False),
        (asyncio.CancelledError(), False, False),
    ],
    ids=repr,
)
def test_what_an_error_says_of_the_socket(error, says, may):
    assert (says_gone(error), may_say_gone(error)) == (says, may)


# The end


@pytest.mark.parametrize("wire", WIRES)
async def test_the_close_frame_follows_what_is_queued(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    offered = [message() for _ in range(3)]
    for one in offered:
        outbox.offer(one)
    outbox.close(BYE)
    assert outbox.offer(message()) is Verdict.GONE
    await until(lambda: outbox.is_done)
    assert (wire.written, wire.closes, desk.ended) == (offered, [BYE], [outbox])
    assert desk.counters.lost_messages == 0


@pytest.mark.parametrize("wire", WIRES)
async def test_closing_twice_is_closing_once(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    outbox.close(BYE)
    outbox.close(Close(1000))
    outbox.close(None)
    await until(lambda: outbox.is_done)
    assert (wire.closes, desk.ended) == ([BYE], [outbox])


@pytest.mark.parametrize("wire", WIRES)
async def test_ending_without_a_close_frame_still_writes_what_is_queued(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    outbox.offer(last := message())
    outbox.close(None)
    await until(lambda: outbox.is_done)
    assert (wire.written, wire.closes) == ([last], [])


async def test_an_outbox_that_is_closed_while_its_peer_is_behind_closes_once_it_has_caught_up():
    wire, desk = WaitingWire(), Desk()
    wire.block()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    await until(lambda: wire.in_flight)
    outbox.offer(message())
    outbox.close(BYE)
    await ticks()
    assert (wire.closes, outbox.is_done) == ([], False)
    wire.unblock()
    await until(lambda: outbox.is_done)
    assert (len(wire.written), wire.closes) == (2, [BYE])


async def test_a_close_during_the_handshake_is_sent_after_it():
    wire, desk = ImmediateWire(), Desk()
    outbox = desk.outbox()
    outbox.offer(message())
    outbox.close(BYE)
    await ticks()
    assert desk.ended == []
    outbox.open(wire)
    await until(lambda: outbox.is_done)
    assert (len(wire.written), wire.closes) == (1, [BYE])


async def test_what_waits_for_a_handshake_is_counted_as_lost_when_the_connection_is_forgotten():
    desk = Desk()
    outbox = desk.outbox()
    outbox.offer(message())
    outbox.offer(message())
    outbox.close(None)
    assert (outbox.is_done, desk.ended) == (True, [outbox])
    assert (desk.counters.lost_messages, len(outbox)) == (2, 0)
    await ticks()  # the flush that was due finds nothing to do
    assert desk.ended == [outbox]


async def test_an_outbox_that_was_closed_during_a_handshake_that_then_fails_ends():
    desk = Desk()
    outbox = desk.outbox()
    outbox.offer(message())
    outbox.close(BYE)
    outbox.abort()
    assert outbox.is_done
    assert (desk.ended, desk.counters.lost_messages) == ([outbox], 1)
    async with asyncio.timeout(1):
        await outbox.wait_until_done()


@pytest.mark.parametrize("wire", WIRES)
async def test_an_abort_drops_what_is_queued_and_ends_the_socket_without_a_close_frame(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    wire.block()
    for _ in range(3):
        outbox.offer(message())
    outbox.close(BYE)
    outbox.abort()
    wire.unblock()
    await ticks()
    assert (wire.written, wire.closes, wire.aborts, desk.ended) == ([], [], 1, [outbox])
    assert desk.counters.lost_messages == 3
    assert outbox.offer(message()) is Verdict.GONE


@pytest.mark.parametrize("wire", WIRES)
async def test_a_message_whose_write_is_cut_off_by_an_abort_is_counted_as_lost(wire):
    wire, desk = wire(), Desk()
    wire.block()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    await until(lambda: wire.in_flight)
    outbox.abort()
    await ticks()
    assert (wire.written, desk.counters.lost_messages) == ([], 1)


async def test_an_abort_before_the_handshake_is_answered_ends_the_outbox():
    wire, desk = ImmediateWire(), Desk()
    outbox = desk.outbox()
    outbox.offer(message())
    outbox.abort()
    outbox.open(wire)
    await ticks()
    assert (desk.ended, wire.written, desk.counters.lost_messages) == ([outbox], [], 1)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_peer_that_is_found_gone_ends_the_outbox_and_costs_what_was_queued(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    wire.go()
    assert outbox.offer(message()) is Verdict.ACCEPTED  # nobody knows yet
    await ticks()
    assert (desk.ended, desk.counters.lost_messages, wire.handed) == ([outbox], 1, [])
    assert outbox.offer(message()) is Verdict.GONE


async def test_a_peer_that_is_found_gone_by_a_write_is_not_written_to_any_more():
    class Resetting(ImmediateWire):
        def _deliver(self, messages):
            super()._deliver(messages)
            self.gone = True

    wire, desk = Resetting(), Desk()
    outbox = desk.outbox(wire)
    for _ in range(3):
        outbox.offer(message(40))
    await ticks()
    assert (len(wire.written), desk.ended, desk.counters.lost_messages) == (1, [outbox], 2)


def failing_once(kind):
    """Return a wire whose next write fails, and not the close frame behind it."""
    wire, desk = kind(), Desk()
    wire.error = MemoryError("no window for this one")
    failed = desk.flusher.failed

    def on_failed(outbox, error):
        wire.error = None
        failed(outbox, error)

    desk.flusher.failed = on_failed
    return wire, desk


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("promised", [None, Close(1000), BYE])
async def test_a_socket_that_is_there_but_cannot_be_written_is_closed_with_1011_at_once(wire, promised):
    wire, desk = failing_once(wire)
    error = wire.error
    outbox = desk.outbox(wire)
    for _ in range(3):
        outbox.offer(message())
    if promised is not None:
        outbox.close(promised)
    await until(lambda: outbox.is_done)
    assert outbox.offer(message()) is Verdict.GONE
    assert (wire.written, wire.closes) == ([], [BYE if promised is BYE else FAILED])
    assert (wire.aborts, desk.counters.lost_messages) == (0, 3)
    assert (desk.failed, desk.ended) == ([(outbox, error)], [outbox])


async def test_a_write_in_the_middle_of_a_tick_that_fails_is_seen_to_as_any_other():
    wire, desk = failing_once(ImmediateWire)
    outbox = desk.outbox(wire)
    outbox.offer(message())
    outbox.write_early()
    await until(lambda: outbox.is_done)
    assert (wire.closes, len(desk.failed)) == ([FAILED], 1)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_socket_to_which_not_even_a_close_frame_can_be_written_is_aborted(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    wire.error = MemoryError("no window for this one")
    outbox.offer(message())
    await until(lambda: outbox.is_done)
    assert (wire.closes, wire.aborts, desk.ended) == ([], 1, [outbox])


@pytest.mark.parametrize("wire", WIRES)
async def test_a_peer_that_may_have_gone_is_aborted_since_it_may_still_be_there(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    wire.error = ConnectionResetError("whose?")
    outbox.offer(message())
    await until(lambda: outbox.is_done)
    assert (wire.closes, wire.aborts, desk.failed, desk.ended) == ([], 1, [], [outbox])


@pytest.mark.parametrize("wire", WIRES)
async def test_a_socket_of_which_the_server_says_that_it_has_ended_is_left_to_the_server(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    wire.error = WebSocketDisconnect(1001)
    outbox.offer(message())
    await until(lambda: outbox.is_done)
    assert (wire.closes, wire.aborts, desk.failed, desk.ended) == ([], 0, [], [outbox])


async def test_a_forgotten_socket_that_cannot_be_written_is_the_business_of_its_endpoint():
    wire, desk = WaitingWire(), Desk()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    outbox.close(None)
    wire.error = MemoryError("no window for this one")
    await until(lambda: outbox.is_done)
    assert (wire.closes, wire.aborts, desk.failed, desk.counters.lost_messages) == ([], 0, [], 1)


async def test_a_middleware_that_is_cancelled_by_others_is_one_that_fails():
    class Cancelling(WaitingWire):
        async def write(self, messages):
            waited_for = asyncio.get_running_loop().create_future()
            waited_for.cancel()
            await waited_for

    wire, desk = Cancelling(), Desk()
    outbox, other = desk.outbox(wire), desk.outbox(healthy := WaitingWire())
    outbox.offer(message())
    other.offer(message())
    await until(lambda: outbox.is_done and healthy.written)
    assert wire.closes == [FAILED]


async def test_a_write_that_fails_as_it_is_aborted_has_nothing_follow():
    class Stubborn(WaitingWire):
        async def write(self, messages):
            try:
                await super().write(messages)
            except asyncio.CancelledError:
                raise ValueError("cancelled") from None

    wire, desk = Stubborn(), Desk()
    wire.block()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    await until(lambda: wire.in_flight)
    outbox.abort()
    await ticks()
    assert (wire.closes, desk.failed, desk.ended) == ([], [], [outbox])


async def test_what_a_connection_has_in_place_of_an_outbox_that_is_done_answers_like_one():
    assert ENDED.offer(message()) is Verdict.GONE
    ENDED.close(BYE)
    ENDED.close(None)
    async with asyncio.timeout(1):
        await ENDED.wait_for_space()
        await ENDED.wait_until_done()


@pytest.mark.parametrize("wire", WIRES)
async def test_a_peer_that_goes_while_nothing_is_sent_is_noticed_when_looked_at(wire):
    wire, desk = wire(), Desk()
    outbox = desk.outbox(wire)
    outbox.notice_end()
    assert desk.ended == []
    wire.go()
    outbox.notice_end()
    outbox.notice_end()
    assert desk.ended == [outbox]


@pytest.mark.parametrize("wire", WIRES)
async def test_a_peer_that_goes_while_it_is_behind_ends_the_outbox(wire):
    wire, desk = wire(), Desk()
    wire.block()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    await until(lambda: wire.in_flight)
    outbox.offer(message())
    wire.go()
    outbox.notice_end()  # while it writes, the write will tell
    await until(lambda: outbox.is_done)
    assert (desk.ended, wire.written, desk.counters.lost_messages) == ([outbox], [], 2)


async def test_a_peer_that_goes_between_two_writes_is_not_written_to_again():
    desk, wire = Desk(), WaitingWire()
    write = wire.write

    async def write_and_go(messages):
        await write(messages)
        wire.go()

    wire.write = write_and_go
    outbox = desk.outbox(wire)
    for _ in range(3):
        outbox.offer(message())
    await until(lambda: outbox.is_done)
    assert (len(wire.handed), desk.ended, desk.counters.lost_messages) == (1, [outbox], 2)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("closed"), ValueError("anything")])
async def test_an_error_of_the_wire_costs_the_connection_all_that_waits_and_nobody_else_anything(wire, error):
    desk = Desk()
    broken, healthy = wire(), wire()
    outbox, other = desk.outbox(broken), desk.outbox(healthy)
    broken.error = error
    for one in (outbox, other):
        one.offer(message())
        one.offer(message())
    await until(lambda: outbox.is_done and len(healthy.written) == 2)
    assert desk.ended == [outbox]
    assert desk.counters.lost_messages == 2
    assert other.offer(message()) is Verdict.ACCEPTED


async def test_an_error_while_closing_ends_the_outbox():
    wire, desk = WaitingWire(), Desk()
    outbox = desk.outbox(wire)
    wire.error = RuntimeError("already closed")
    outbox.close(BYE)
    await until(lambda: outbox.is_done)
    assert (wire.closes, desk.ended, desk.counters.lost_messages) == ([], [outbox], 0)


async def test_nothing_is_written_after_the_end():
    wire, desk = ImmediateWire(), Desk()
    outbox = desk.outbox(wire)
    outbox.close(BYE)
    await until(lambda: outbox.is_done)
    assert outbox.offer(message()) is Verdict.GONE
    outbox.flush()
    outbox.abort()
    await ticks()
    assert (wire.written, wire.closes, desk.ended) == ([], [BYE], [outbox])


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 brings it")
async def test_a_task_that_runs_at_once_when_it_is_started_writes_as_well():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    desk, wires = Desk(), [WaitingWire() for _ in range(3)]
    outboxes = [desk.outbox(wire) for wire in wires]
    for count in (1, 2):
        for outbox in outboxes:
            outbox.offer(message())
        await ticks()
        assert [len(wire.written) for wire in wires] == [count] * 3
    for outbox in outboxes:
        outbox.close(BYE)
    await ticks()
    assert ([wire.closes for wire in wires], desk.ended) == ([[BYE]] * 3, outboxes)


# Waiting


async def test_nobody_waits_for_space_that_is_there():
    outbox = Desk(outbox_messages=1).outbox(ImmediateWire())
    async with asyncio.timeout(1):
        await outbox.wait_for_space()
        outbox.offer(message())
        await ticks()
        await outbox.wait_for_space()


async def test_a_producer_waits_while_its_peer_is_behind():
    wire = WaitingWire()
    wire.block()
    outbox = Desk().outbox(wire)
    outbox.offer(message())
    await ticks()
    producers = [asyncio.create_task(outbox.wait_for_space()) for _ in range(2)]
    await ticks()
    assert not any(producer.done() for producer in producers)
    wire.unblock()
    async with asyncio.timeout(1):
        await asyncio.gather(*producers)


async def test_a_producer_that_offers_much_within_one_tick_waits_for_its_end():
    wire = ImmediateWire()
    outbox = Desk(outbox_messages=10).outbox(wire)
    for _ in range(50):
        outbox.offer(message())
        await outbox.wait_for_space()
    await ticks()
    assert len(wire.written) == 50
    assert 5 <= len(wire.writes) <= 10, "about half an outbox leaves with each write"


async def test_a_producer_of_large_messages_waits_too():
    wire = ImmediateWire()
    outbox = Desk(outbox_bytes=100).outbox(wire)
    outbox.offer(message(51))
    await outbox.wait_for_space()
    assert len(wire.written) == 1


END_OF_AN_OUTBOX = {
    "abort": lambda outbox, wire: outbox.abort(),
    "peer gone": lambda outbox, wire: wire.go(),
    "closed and taken": lambda outbox, wire: (outbox.close(BYE), wire.unblock()),
}


@pytest.mark.parametrize("end", END_OF_AN_OUTBOX.values(), ids=END_OF_AN_OUTBOX)
async def test_who_waits_for_space_is_released_by_the_end_and_who_comes_later_does_not_wait(end):
    wire = WaitingWire()
    wire.block()
    outbox = Desk().outbox(wire)
    outbox.offer(message())
    await until(lambda: wire.in_flight)
    producer = asyncio.create_task(outbox.wait_for_space())
    await ticks()
    assert not producer.done()
    end(outbox, wire)
    async with asyncio.timeout(1):
        await producer
        await outbox.wait_until_done()
        await outbox.wait_for_space()


@pytest.mark.parametrize("end", END_OF_AN_OUTBOX.values(), ids=END_OF_AN_OUTBOX)
async def test_who_waits_for_the_end_is_told_once_nothing_will_be_written_any_more(end):
    wire = WaitingWire()
    wire.block()
    outbox = Desk().outbox(wire)
    outbox.offer(message())
    await until(lambda: wire.in_flight)
    waiting = [asyncio.create_task(outbox.wait_until_done()) for _ in range(2)]
    await ticks()
    assert not any(task.done() for task in waiting)
    end(outbox, wire)
    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)
        await outbox.wait_until_done()
    assert outbox.is_done


class Reluctant(WaitingWire):
    """A wire whose server takes its time to let go of a write that is cancelled."""

    async def write(self, messages):
        try:
            await super().write(messages)
        except asyncio.CancelledError:
            await ticks(5)
            raise


async def test_a_write_that_was_cut_and_is_slow_to_go_leaves_the_next_one_its_task():
    wire, desk = Reluctant(), Desk()
    wire.block()
    outbox = desk.outbox(wire)
    outbox.offer(message())
    await ticks()
    outbox.close(BYE)
    before = outbox._task
    assert outbox.cut(Close(1013, "slow consumer")) is BYE, "what the app said stays"
    await ticks(20)
    assert outbox._task not in (None, before), "it can still be aborted"
    outbox.abort()
    await ticks()
    assert outbox.is_done


# How far the peer is: see test_stall


def test_a_peer_is_behind_while_something_waits_for_it_here_or_in_the_server():
    async def main():
        wire, desk = WaitingWire(), Desk()
        wire.block()
        outbox = desk.outbox(wire)
        assert outbox.behind() is None
        outbox.offer(message())
        assert outbox.behind() is None, "it waits for the flush, not for the peer"
        await ticks()
        assert outbox.behind() == Behind(taken=0, held=0, is_closing=False)
        wire.unblock()
        await until(lambda: wire.written)
        await ticks()
        assert outbox.behind() is None
        wire.held = 3
        assert outbox.behind() == Behind(taken=1, held=3, is_closing=False)
        wire.gone = True
        assert outbox.behind() == Behind(taken=1, held=3, is_closing=True)
        outbox.abort()

    run_clocked(main)


async def test_an_outbox_without_a_wire_has_no_peer_that_could_be_behind():
    outbox = Desk(outbox_messages=1).outbox()
    for _ in range(3):
        outbox.offer(message())
        await ticks()
    assert outbox.is_over
    assert outbox.behind() is None


async def test_an_outbox_is_written_when_the_server_holds_nothing_any_more_and_has_left_with_its_socket():
    wire = ImmediateWire()
    wire.has_left = lambda: wire.gone
    outbox = Desk().outbox(wire)
    assert not outbox.is_written()
    wire.held = 10
    outbox.close(BYE)
    await until(lambda: outbox.is_done)
    assert not outbox.is_written()
    wire.held = 0
    assert outbox.is_written()
    assert not outbox.has_left()
    wire.gone = True
    assert outbox.has_left()


async def test_a_handshake_that_hangs_costs_no_more_than_a_peer_that_is_behind():
    desk, wire = Desk(outbox_messages=3), ImmediateWire()
    outbox = desk.outbox()
    verdicts = []
    for _ in range(5):
        verdicts.append(outbox.offer(message()))
        await ticks()
    assert verdicts == [Verdict.ACCEPTED] * 4 + [Verdict.OVERFLOW]
    outbox.open(wire)
    assert len(wire.written) == 4
    assert outbox.offer(message()) is Verdict.ACCEPTED
