"""The writing side of a node: one flush a tick, and nobody who stalls is waited for."""

import asyncio
import time
from contextvars import ContextVar

import pytest

from engine.fakes import WIRES, ClockedLoop, Desk, ImmediateWire, WaitingWire, run_clocked, ticks, unexpected, until
from fastapi_rooms.domain.messages import Close, encode
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.outbound.flusher import AT_ONCE, MIN_SWEEP_SECONDS, Flusher
from fastapi_rooms.engine.outbound.stall import Behind
from fastapi_rooms.engine.outbound.writers import SLICE_SECONDS
from fastapi_rooms.tasks import end_tasks

HELLO = encode("hello")
BYE = Close(1012)


class FakeOutbox:
    """What the flusher knows of an outbox, under the control of a test."""

    def __init__(self):
        self.connection = "somebody"
        self.settings = RoomsSettings(send_timeout=1)
        self.flushes = 0
        self.early = 0
        self.looked_at = []  # loop times
        self.settled = False
        self.stalled = False
        self.aborts = 0
        self.is_lost_to_us = False

    def flush(self):
        self.flushes += 1

    def write_early(self):
        self.early += 1

    def notice_end(self):
        self.looked_at.append(asyncio.get_running_loop().time())

    def judge_wait(self):
        """It has had its turn."""

    def is_written(self):
        return self.settled

    def has_left(self):
        return self.settled

    def behind(self):
        return Behind(taken=0, held=1, is_closing=False) if self.stalled else None

    def abort(self):
        self.aborts += 1


def flusher(send_timeout=10.0):
    stalled = []
    made = Flusher(RoomsSettings(send_timeout=send_timeout), stalled.append, lambda outbox: None, unexpected)
    return made, stalled


# Flushing


async def test_everything_scheduled_in_a_tick_is_flushed_at_its_end():
    made, _ = flusher()
    outboxes = [FakeOutbox() for _ in range(3)]
    for outbox in outboxes:
        made.add(outbox)
    assert [outbox.flushes for outbox in outboxes] == [0, 0, 0]
    await asyncio.sleep(0)
    assert [outbox.flushes for outbox in outboxes] == [1, 1, 1]
    await ticks()
    assert [outbox.flushes for outbox in outboxes] == [1, 1, 1]


async def test_an_outbox_that_fails_keeps_no_other_from_being_flushed(caplog):
    made, _ = flusher()
    outboxes = [FakeOutbox() for _ in range(3)]
    outboxes[1].flush = lambda: 1 / 0
    for outbox in outboxes:
        made.add(outbox)
    await ticks()
    assert [outbox.flushes for outbox in outboxes] == [1, 0, 1]
    [record] = caplog.records
    assert record.exc_info[0] is ZeroDivisionError


async def test_what_is_scheduled_while_flushing_is_flushed_in_the_next_tick():
    made, _ = flusher()
    first, second = FakeOutbox(), FakeOutbox()
    first.flush = lambda: made.add(second)
    made.add(first)
    await asyncio.sleep(0)
    assert second.flushes == 0
    await asyncio.sleep(0)
    assert second.flushes == 1


async def test_a_broadcast_to_many_takes_one_call_of_the_loop(monkeypatch):
    desk = Desk()
    wires = [ImmediateWire() for _ in range(20)]
    outboxes = [desk.outbox(wire) for wire in wires]
    loop = asyncio.get_running_loop()
    calls = []
    call_soon = loop.call_soon
    monkeypatch.setattr(loop, "call_soon", lambda *args, **options: calls.append(args) or call_soon(*args, **options))
    for _ in range(10):
        for outbox in outboxes:
            outbox.offer(HELLO)
    assert len(calls) == 1
    monkeypatch.undo()
    await ticks()
    assert [len(wire.writes) for wire in wires] == [1] * 20
    assert all(wire.written == [HELLO] * 10 for wire in wires)


def test_a_flush_that_was_due_on_a_loop_that_has_ended_is_done_on_the_next():
    made, _ = flusher()
    forgotten, outbox = FakeOutbox(), FakeOutbox()
    ended = asyncio.new_event_loop()
    ended.call_soon(ended.stop)
    ended.call_soon(lambda: made.add(forgotten))
    ended.run_forever()  # stops before the flush
    ended.close()
    assert forgotten.flushes == 0

    async def main():
        made.add(outbox)
        await ticks()

    asyncio.run(main())
    assert (forgotten.flushes, outbox.flushes) == (1, 1)


@pytest.mark.parametrize("wire", WIRES)
def test_an_outbox_per_loop_works_with_one_flusher_on_many_loops(wire):
    desk = Desk()

    async def main():
        here = wire()
        outbox = desk.outbox(here)
        outbox.offer(HELLO)
        outbox.close(BYE)
        await until(lambda: outbox.is_done)
        assert (here.written, here.closes) == ([HELLO], [BYE])
        await desk.flusher.settle(1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for _ in range(3):
        asyncio.run(main())
    assert len(desk.ended) == 3


def test_a_timer_on_a_loop_that_has_ended_does_not_keep_the_next_one_from_looking():
    made, stalled = flusher(send_timeout=1)

    async def begin():
        made.watch(FakeOutbox())  # and the loop ends without a word

    async def go_on():
        outbox = FakeOutbox()
        outbox.stalled = True
        made.watch(outbox)
        await asyncio.sleep(2)
        assert stalled == [outbox]

    run_clocked(begin)
    run_clocked(go_on)


# Tasks


async def test_a_task_is_named_and_kept_until_it_ends():
    desk, wire = Desk(), WaitingWire()
    wire.block()
    desk.outbox(wire).offer(HELLO)
    await until(lambda: wire.in_flight)
    [task] = desk.flusher._writers._tasks
    assert task.get_name() == "fastapi_rooms outbox"
    wire.unblock()
    await until(lambda: not desk.flusher._writers._tasks)


def test_tasks_of_another_loop_are_left_alone():
    elsewhere = asyncio.new_event_loop()
    other = elsewhere.create_task(asyncio.sleep(0))

    async def main():
        here = asyncio.create_task(asyncio.Event().wait())
        await end_tasks({here, other})
        assert here.cancelled()

    asyncio.run(main())
    elsewhere.run_until_complete(other)
    elsewhere.close()
    assert not other.cancelled()


@pytest.mark.parametrize("wire", WIRES)
async def test_nothing_is_written_in_the_context_of_who_happened_to_send_first(wire):
    request = ContextVar("request", default="nobody's")

    class Noting(wire):
        def _deliver(self, messages):
            super()._deliver(messages)
            seen.append(request.get())

    seen = []
    outbox = Desk().outbox(Noting())
    request.set("somebody's")
    outbox.offer(HELLO)
    await until(lambda: seen)
    assert seen == ["nobody's"]


# Sweeping


@pytest.mark.parametrize(("send_timeout", "seconds"), [(2, 0.5), (10, 1.0)])
def test_a_watched_outbox_is_looked_at_four_times_in_the_time_it_has_and_every_second_at_least(send_timeout, seconds):
    async def main():
        made, _ = flusher(send_timeout=send_timeout)
        outbox = FakeOutbox()
        made.watch(outbox)
        await asyncio.sleep(seconds * 4 + seconds / 2)
        assert outbox.looked_at == pytest.approx([seconds, 2 * seconds, 3 * seconds, 4 * seconds])
        outbox.settled = True
        await made.settle(0)

    run_clocked(main)


def test_outboxes_are_not_looked_at_more_often_than_makes_sense():
    async def main():
        made, _ = flusher(send_timeout=MIN_SWEEP_SECONDS / 10)
        outbox = FakeOutbox()
        made.watch(outbox)
        await asyncio.sleep(MIN_SWEEP_SECONDS * 3.5)
        assert len(outbox.looked_at) == 3
        outbox.settled = True
        await made.settle(0)

    run_clocked(main)


def test_a_settled_outbox_is_forgotten_and_the_timer_with_the_last():
    async def main():
        made, stalled = flusher(send_timeout=1)
        outbox = FakeOutbox()
        outbox.settled = True
        made.watch(outbox)
        await asyncio.sleep(2)
        assert len(outbox.looked_at) == 1
        assert (made._watched, made._timer, stalled) == ({}, None, [])
        made.watch(outbox)  # and it starts again
        await asyncio.sleep(2)
        assert len(outbox.looked_at) == 2

    run_clocked(main)


async def test_an_outbox_that_has_ended_need_not_be_looked_at():
    made, _ = flusher()
    ended, busy = FakeOutbox(), FakeOutbox()
    made.watch(ended)
    made.watch(busy)
    ended.settled = True
    made.unwatch_if_left(ended)
    made.unwatch_if_left(busy)
    assert set(made._watched) == {busy}
    busy.settled = True
    await made.settle(0)


def test_an_outbox_that_fails_keeps_no_other_from_being_looked_at_and_is_not_looked_at_again(caplog):
    async def main():
        made, stalled = flusher(send_timeout=1)
        failing, outbox = FakeOutbox(), FakeOutbox()
        failing.behind = lambda: 1 / 0
        outbox.stalled = True
        made.watch(failing)
        made.watch(outbox)
        await asyncio.sleep(3)
        assert stalled == [outbox]
        assert len(failing.looked_at) == 1

    run_clocked(main)
    [record] = caplog.records
    assert record.exc_info[0] is ZeroDivisionError


def test_a_stalled_outbox_is_reported_once():
    async def main():
        made, stalled = flusher(send_timeout=1)
        outbox = FakeOutbox()
        outbox.stalled = True
        made.watch(outbox)
        await asyncio.sleep(3)
        assert stalled == [outbox]
        assert len(outbox.looked_at) == 5, "four times a second, and not again afterwards"

    run_clocked(main)


@pytest.mark.parametrize("wire", WIRES)
def test_a_peer_that_takes_nothing_is_aborted_after_its_time_and_one_that_takes_a_little_is_not(wire):
    async def main():
        loop = asyncio.get_running_loop()
        desk = Desk(send_timeout=8)
        dead, slow = wire(), wire()
        for one in (dead, slow):
            one.block()
        lost, kept = desk.outbox(dead), desk.outbox(slow)
        for outbox in (lost, kept):
            outbox.offer(HELLO)
        begin = loop.time()
        while not desk.stalled:
            await asyncio.sleep(1)
            slow.unblock()  # one message a second
            await ticks()
            slow.block()
            kept.offer(HELLO)
        assert desk.stalled == [lost]
        assert 8 <= loop.time() - begin <= 8 + 2 * 2 + 1  # looked at every 2 s, and once to begin with
        assert (dead.aborts, slow.aborts) == (1, 0)
        await desk.flusher.settle(0)

    run_clocked(main)


def test_a_peer_whose_buffer_stays_full_behind_the_close_frame_is_aborted_too():
    async def main():
        desk = Desk(send_timeout=8)
        wire = ImmediateWire()
        outbox = desk.outbox(wire)
        wire.held = 100
        outbox.close(BYE)
        await until(lambda: outbox.is_done)
        await asyncio.sleep(20)
        assert (wire.closes, wire.aborts) == ([BYE], 1)
        assert desk.flusher._watched == {}

    run_clocked(main)


@pytest.mark.parametrize("wire", WIRES)
def test_a_peer_that_went_unnoticed_is_noticed_by_the_sweep(wire):
    async def main():
        desk, lost = Desk(send_timeout=8), wire()
        outbox = desk.outbox(lost)
        lost.go()
        await asyncio.sleep(2.5)
        assert (desk.ended, lost.aborts) == ([outbox], 0)

    run_clocked(main)


# Settling


async def test_settling_without_anything_to_settle_takes_no_time():
    made, _ = flusher()
    async with asyncio.timeout(1):
        await made.settle(3600)


def test_settling_waits_for_those_who_go_on():
    async def main():
        desk = Desk(send_timeout=100)
        wire = WaitingWire()
        wire.block()
        outbox = desk.outbox(wire)
        outbox.offer(HELLO)
        outbox.close(BYE)
        asyncio.get_running_loop().call_later(3, wire.unblock)
        await desk.flusher.settle(50)
        assert 3 <= asyncio.get_running_loop().time() < 3.1
        assert (wire.written, wire.closes, wire.aborts) == ([HELLO], [BYE], 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_clocked(main)


def test_settling_waits_until_the_server_has_written_what_it_holds():
    async def main():
        desk, wire = Desk(send_timeout=100), ImmediateWire()
        outbox = desk.outbox(wire)
        wire.held = 10
        outbox.close(BYE)
        asyncio.get_running_loop().call_later(3, setattr, wire, "held", 0)
        await desk.flusher.settle(50)
        assert 3 <= asyncio.get_running_loop().time() < 3.1
        assert wire.aborts == 0

    run_clocked(main)


@pytest.mark.parametrize("wire", WIRES)
def test_settling_aborts_the_rest_when_the_time_is_up_and_leaves_no_task(wire):
    async def main():
        desk = Desk(send_timeout=100)
        wires = [wire() for _ in range(3)]
        for one in wires:
            one.block()
            outbox = desk.outbox(one)
            outbox.offer(HELLO)
            outbox.close(BYE)
        await desk.flusher.settle(5)
        assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)
        assert [one.aborts for one in wires] == [1, 1, 1]
        assert len(desk.ended) == 3
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (desk.flusher._watched, desk.flusher._writers._tasks, desk.flusher._timer) == ({}, set(), None)

    run_clocked(main)


def test_settling_does_not_wait_longer_for_those_who_stall():
    async def main():
        desk, wire = Desk(send_timeout=4), WaitingWire()
        wire.block()
        outbox = desk.outbox(wire)
        outbox.offer(HELLO)
        outbox.close(BYE)
        await desk.flusher.settle(50)
        assert desk.stalled == [outbox]
        assert 4 <= asyncio.get_running_loop().time() < 5

    run_clocked(main)


def test_after_settling_it_starts_anew():
    async def main():
        desk = Desk(send_timeout=4)
        await desk.flusher.settle(1)
        wire = WaitingWire()
        wire.block()
        outbox = desk.outbox(wire)
        outbox.offer(HELLO)
        await asyncio.sleep(10)
        assert desk.stalled == [outbox]

    run_clocked(main)


def test_the_loop_with_a_clock_of_its_own_finds_a_deadlock():
    async def main():
        await asyncio.Event().wait()

    loop = ClockedLoop()
    with pytest.raises(AssertionError, match="everybody waits"):
        loop.run_until_complete(main())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()


def test_a_peer_that_kept_up_meanwhile_has_its_whole_time_again():
    async def main():
        made, stalled = flusher(send_timeout=1)
        outbox = FakeOutbox()
        outbox.stalled = True
        made.watch(outbox)
        await asyncio.sleep(0.8)
        outbox.stalled = False
        await asyncio.sleep(0.3)
        outbox.stalled = True
        await asyncio.sleep(1)
        assert stalled == []
        await asyncio.sleep(0.5)
        assert stalled == [outbox]

    run_clocked(main)


# In the middle of a tick


async def test_in_a_tick_that_lasts_is_written_early_once_a_slice_and_flushed_at_the_end(caplog):
    made, _ = flusher()
    assert not made.is_late(), "nothing waits"
    outbox, failing, *many = [FakeOutbox() for _ in range(AT_ONCE + 3)]
    failing.write_early = lambda: 1 / 0
    made.add(failing)
    made.add(outbox)
    made.add_all(many)
    made.flush_if_late()
    assert outbox.early == 0
    time.sleep(SLICE_SECONDS * 1.1)
    assert made.is_late()
    made.flush_if_late()
    made.flush_if_late()
    assert {one.early for one in (outbox, *many)} == {1}
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
    await ticks()
    assert {one.flushes for one in (outbox, failing, *many)} == {1}


async def test_to_write_early_takes_a_slice_at_most():
    made, _ = flusher()
    written = []
    many = [FakeOutbox() for _ in range(20)]
    for outbox in many:
        outbox.write_early = lambda: (written.append(1), time.sleep(SLICE_SECONDS / 4))
    made.add_all(many)
    time.sleep(SLICE_SECONDS * 1.1)
    made.flush_if_late()
    assert 0 < len(written) <= 5, "a slice is over with the fifth, or sooner where others have the processor"
    await ticks()
    assert {one.flushes for one in many} == {1}


async def test_what_is_gathered_for_longer_is_not_written_earlier_in_a_tick_that_lasts():
    made = Flusher(RoomsSettings(flush_interval=50), lambda outbox: None, lambda outbox: None, unexpected)
    outbox = FakeOutbox()
    made.add(outbox)
    time.sleep(SLICE_SECONDS * 1.1)
    made.flush_if_late()
    assert outbox.early == 0
    assert made.tick is None
