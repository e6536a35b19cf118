"""Deadlines: kept to while the loop turns, and patient with what a blocked loop could not read."""

import asyncio
import socket
import time

import pytest
from support import until

from fastapi_rooms.backends.redis.alarm import GRACE_SECONDS, LATE_SECONDS, MAX_GRACES, Alarm

SOON = 0.05
BLOCKED = SOON + LATE_SECONDS + 0.1


class Clock:
    """Something that is due, and what has rung for it."""

    def __init__(self):
        self.due = None
        self.rung = []
        self.alarm = Alarm(lambda: self.due, self.ring)

    def set(self, seconds=SOON):
        self.due = asyncio.get_running_loop().time() + seconds
        self.alarm.set()

    def ring(self):
        self.rung.append(asyncio.get_running_loop().time() - self.due)
        self.due = None


@pytest.fixture
async def clock():
    made = Clock()
    yield made
    made.alarm.stop()


async def test_it_rings_when_something_is_overdue(clock):
    clock.set()
    await until(lambda: clock.rung)
    assert 0 <= clock.rung[0] < 0.5


async def test_it_rings_again_for_what_is_due_next(clock):
    for count in (1, 2):
        clock.set()
        await until(lambda count=count: len(clock.rung) == count)


async def test_it_does_not_ring_for_what_has_happened(clock):
    clock.set()
    clock.due = None
    await asyncio.sleep(2 * SOON)
    assert clock.rung == []


async def test_it_waits_for_what_has_been_put_off_without_a_word(clock):
    clock.set()
    due = clock.due = clock.due + 3 * SOON
    await until(lambda: clock.rung)
    assert asyncio.get_running_loop().time() >= due


async def test_it_waits_for_what_is_put_off_when_it_is_almost_due(clock):
    clock.set(2 * GRACE_SECONDS)
    await asyncio.sleep(1.4 * GRACE_SECONDS)
    due = clock.due = clock.due + 0.6 * GRACE_SECONDS
    await until(lambda: clock.rung)
    assert asyncio.get_running_loop().time() >= due


async def test_setting_it_again_changes_nothing(clock):
    clock.set()
    for _ in range(100):
        clock.alarm.set()
    await until(lambda: clock.rung)
    await asyncio.sleep(SOON)
    assert len(clock.rung) == 1


async def test_it_is_silent_while_nothing_is_due(clock):
    clock.alarm.set()
    await asyncio.sleep(0)
    clock.set()
    await until(lambda: clock.rung)
    assert len(clock.rung) == 1


async def test_it_does_not_ring_once_it_is_stopped_until_it_is_set_again(clock):
    clock.alarm.stop()
    clock.set()
    clock.alarm.stop()
    await asyncio.sleep(2 * SOON)
    assert clock.rung == []
    clock.alarm.set()
    await until(lambda: clock.rung)


async def test_what_is_still_due_after_it_has_rung_rings_again(clock):
    def ring():
        clock.rung.append(None)
        if len(clock.rung) == 3:
            clock.due = None

    clock.alarm = Alarm(lambda: clock.due, ring)
    clock.set()
    await until(lambda: len(clock.rung) == 3)
    await asyncio.sleep(SOON)
    assert len(clock.rung) == 3


async def test_ringing_may_set_it(clock):
    def ring():
        clock.ring()
        if len(clock.rung) < 3:
            clock.set()

    clock.alarm = Alarm(lambda: clock.due, ring)
    clock.set()
    await until(lambda: len(clock.rung) == 3)
    await asyncio.sleep(2 * SOON)
    assert len(clock.rung) == 3


async def test_what_arrived_while_the_loop_was_blocked_counts(clock):
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    with there:
        clock.set()
        answered = asyncio.create_task(_read(reader, clock))
        await asyncio.sleep(0)
        there.send(b"on time")
        time.sleep(BLOCKED)
        await answered
        await asyncio.sleep(2 * GRACE_SECONDS)
    writer.close()
    await writer.wait_closed()
    assert clock.rung == []


async def test_it_rings_after_a_blocked_loop_if_nothing_has_arrived(clock):
    clock.set()
    await asyncio.sleep(0)
    time.sleep(BLOCKED)
    await until(lambda: clock.rung)
    assert GRACE_SECONDS <= clock.rung[0] - (BLOCKED - SOON) < GRACE_SECONDS + 0.5


async def test_a_loop_that_is_blocked_again_and_again_is_given_so_much_patience_and_no_more(clock, monkeypatch):
    loop = asyncio.get_running_loop()
    blocked = 0.0
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + blocked)
    clock.set()
    looks = 0
    while not clock.rung:
        timer = clock.alarm._timer
        blocked += max(0.0, timer.when() - loop.time()) + LATE_SECONDS + 0.01
        await until(lambda timer=timer: clock.alarm._timer is not timer)
        looks += 1
    assert MAX_GRACES < looks <= MAX_GRACES + 2


async def _read(reader, clock):
    await reader.read(1)
    clock.due = None
