"""Looking at everybody now and then, a few at a time."""

import asyncio

import pytest

from engine.fakes import connected, run_clocked, unexpected
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound.flusher import SLICE_SECONDS, Flusher
from fastapi_rooms.engine.outbound.stall import Behind

MANY = 10_000
LOOK_SECONDS = 0.00001


class Watched:
    """An outbox that takes a while to look at, on the clock of the test."""

    def __init__(self, on_look=None):
        self.connection = "somebody"
        self.settings = RoomsSettings(send_timeout=4)
        self.looked_at = []  # loop times
        self.has_gone = False
        self.stalled = False
        self.is_lost_to_us = False
        self.on_look = on_look  # called when it is looked at

    def notice_end(self):
        loop = asyncio.get_running_loop()
        self.looked_at.append(loop.time())
        loop.now += LOOK_SECONDS
        if self.on_look is not None:
            self.on_look()

    def judge_wait(self):
        """It has had its turn."""

    def has_left(self):
        return self.has_gone

    is_written = has_left

    def behind(self):
        return Behind(taken=0, held=1, is_closing=False) if self.stalled else None

    def abort(self):
        self.has_gone = True


class Turns:
    """A callback that is scheduled again and again, and notes how long it had to wait."""

    def __init__(self):
        self.longest = 0.0
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_soon(self._turn)

    def _turn(self):
        now = self._loop.time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self.count += 1
        self._timer = self._loop.call_later(0.001, self._turn)

    def end(self):
        self._timer.cancel()


def flusher_of(count):
    stalled = []
    made = Flusher(
        RoomsSettings(send_timeout=4), stalled.append, lambda outbox: None, unexpected
    )  # a sweep each second
    watched = [Watched() for _ in range(count)]
    for outbox in watched:
        made.watch(outbox)
    return made, watched, stalled


def looks(watched):
    """How often each was looked at."""
    return {len(outbox.looked_at) for outbox in watched}


def test_many_are_looked_at_in_slices_and_others_have_their_turn_in_between():
    async def main():
        made, watched, _ = flusher_of(MANY)
        turns = Turns()
        for sweep in range(1, 4):
            await asyncio.sleep(1 + MANY * LOOK_SECONDS + 0.05)
            assert looks(watched) == {sweep}
            times = [outbox.looked_at[-1] for outbox in watched]
            assert max(times) - min(times) == pytest.approx(MANY * LOOK_SECONDS, rel=0.2)
        assert turns.longest < SLICE_SECONDS + 0.0011 + LOOK_SECONDS
        turns.end()
        assert made._unseen == []
        await made.settle(0)

    run_clocked(main)


def test_the_next_sweep_begins_a_while_after_the_last_has_ended():
    async def main():
        made, watched, _ = flusher_of(MANY)
        await asyncio.sleep(4)
        first, second, *_ = zip(*(sorted(outbox.looked_at[:2]) for outbox in watched), strict=True)
        assert min(first) == pytest.approx(1)
        assert min(second) - max(first) == pytest.approx(1, abs=SLICE_SECONDS)
        await made.settle(0)

    run_clocked(main)


def test_few_are_looked_at_in_one_go():
    async def main():
        made, watched, _ = flusher_of(100)
        turns = Turns()
        await asyncio.sleep(1.5)
        times = [outbox.looked_at[0] for outbox in watched]
        assert max(times) - min(times) == pytest.approx(99 * LOOK_SECONDS)
        turns.end()
        await made.settle(0)

    run_clocked(main)


def test_who_comes_during_a_sweep_is_looked_at_in_the_next():
    async def main():
        made, watched, _ = flusher_of(MANY)
        await asyncio.sleep(1 + MANY * LOOK_SECONDS / 2)
        assert looks(watched) == {0, 1}
        late = Watched()
        made.watch(late)
        await asyncio.sleep(0.5)
        assert (looks(watched), late.looked_at) == ({1}, [])
        await asyncio.sleep(1)
        assert (looks(watched), len(late.looked_at)) == ({2}, 1)
        await made.settle(0)

    run_clocked(main)


def test_who_goes_during_a_sweep_is_not_looked_at_any_more():
    async def main():
        made, watched, _ = flusher_of(MANY)
        await asyncio.sleep(1 + MANY * LOOK_SECONDS / 2)
        unseen = [outbox for outbox in watched if not outbox.looked_at]
        gone, here = unseen[::2], unseen[1::2]
        for outbox in gone:
            outbox.has_gone = True
            made.unwatch_if_left(outbox)
        await asyncio.sleep(2)
        assert looks(gone) == {0}
        assert looks(here) == {2}
        await made.settle(0)

    run_clocked(main)


def test_when_the_last_has_gone_during_a_sweep_nobody_is_kept_and_no_timer_is_left():
    async def main():
        made, watched, _ = flusher_of(MANY)
        await asyncio.sleep(1 + MANY * LOOK_SECONDS / 2)
        for outbox in watched:
            outbox.has_gone = True
            made.unwatch_if_left(outbox)
        await asyncio.sleep(0.5)
        assert (made._watched, made._unseen, made._timer) == ({}, [], None)
        outbox = Watched()
        made.watch(outbox)
        await asyncio.sleep(1.5)
        assert len(outbox.looked_at) == 1, "the next sweep is a new one"
        await made.settle(0)

    run_clocked(main)


def test_stalled_and_gone_ones_are_found_in_every_slice():
    async def main():
        made, watched, stalled = flusher_of(MANY)
        for number, outbox in enumerate(watched):
            outbox.stalled = number % 100 == 0
            outbox.has_gone = number % 100 == 1
        await asyncio.sleep(6.8)
        assert set(stalled) == set(watched[::100])
        assert len(stalled) == MANY // 100
        assert looks(watched[::100]) == {5}, "the first look begins its time"
        assert looks(watched[1::100]) == {1}
        assert looks(watched[2::100]) == {6}
        assert len(made._watched) == MANY - 2 * MANY // 100
        await made.settle(0)

    run_clocked(main)


def test_whoever_is_unwatched_or_watched_by_a_look_at_another_does_no_harm():
    async def main():
        made, watched, _ = flusher_of(200)
        rest = list(watched)

        def end_another():
            outbox = rest.pop(0)
            outbox.has_gone = True
            made.unwatch_if_left(outbox)
            made.watch(Watched())

        for outbox in watched:
            outbox.on_look = end_another
        await asyncio.sleep(1.5)
        seen = sum(bool(outbox.looked_at) for outbox in watched)
        assert 0 < seen < 200
        assert looks(watched) == {0, 1}
        await made.settle(0)

    run_clocked(main)


def test_it_is_told_once_of_each_that_has_left_and_keeps_nothing_of_it():
    async def main():
        left = []
        made = Flusher(RoomsSettings(send_timeout=4), lambda outbox: None, left.append, unexpected)
        swept, looked_for, ended, settled, stranger = watched = [Watched() for _ in range(5)]
        for outbox in watched[:-1]:
            made.watch(outbox)
        assert made.sockets == 4
        ended.has_gone = True
        for outbox in (looked_for, ended, stranger):
            made.unwatch_if_left(outbox)
        assert left == [ended]
        assert list(made._ended) == [looked_for], "nothing is kept of who was not watched"
        looked_for.has_gone = True
        made.look_for_left()
        made.look_for_left()
        assert left == [ended, looked_for]
        swept.has_gone = True
        await asyncio.sleep(1.1)
        assert left == [ended, looked_for, swept]
        await made.settle(0)
        assert left == [ended, looked_for, swept, settled]
        assert (made.sockets, made._ended) == (0, {})

    run_clocked(main)


def test_settling_in_the_middle_of_a_sweep_without_any_time_leaves_nothing():
    async def main():
        made, watched, _ = flusher_of(MANY)
        await asyncio.sleep(1 + MANY * LOOK_SECONDS / 2)
        assert made._unseen
        await made.settle(0)
        assert (made._watched, made._unseen, made._timer) == ({}, [], None)
        assert all(outbox.has_gone for outbox in watched)

    run_clocked(main)


def test_settling_in_the_middle_of_a_sweep_looks_at_the_rest_and_leaves_nothing():
    async def main():
        made, watched, _ = flusher_of(MANY)
        await asyncio.sleep(1 + MANY * LOOK_SECONDS / 2)
        for outbox in watched[1:]:
            outbox.has_gone = True
        await made.settle(3)
        assert watched[0].has_gone, "aborted at the end"
        assert (made._watched, made._unseen, made._timer) == ({}, [], None)
        assert 0 not in looks(watched)

    run_clocked(main)


def test_a_sweep_that_was_left_in_the_middle_goes_on_on_the_next_loop():
    made = Flusher(RoomsSettings(send_timeout=4), lambda outbox: None, lambda outbox: None, unexpected)
    watched = []

    async def begin():
        for _ in range(MANY):
            watched.append(Watched())
            made.watch(watched[-1])
        await asyncio.sleep(1 + MANY * LOOK_SECONDS / 2)
        assert looks(watched) == {0, 1}

    async def go_on():
        late = Watched()
        made.watch(late)
        await asyncio.sleep(3)
        assert looks(watched) == {2}
        assert len(late.looked_at) == 1
        await made.settle(0)

    run_clocked(begin)
    run_clocked(go_on)


@pytest.mark.parametrize("seconds", [1, 3])
def test_a_manager_looks_at_each_connection_in_each_sweep(seconds):
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=4))
        for _ in range(50):
            await connected(manager)
        looked_at = []
        look_at = manager._parts.flusher._look_at
        manager._parts.flusher._look_at = lambda outbox, now: looked_at.append(outbox) or look_at(outbox, now)
        await asyncio.sleep(seconds + 0.5)
        assert len(looked_at) == 50 * seconds
        assert len(set(looked_at)) == 50
        await manager.stop()

    run_clocked(main)
