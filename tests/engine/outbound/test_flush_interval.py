"""What leaves when, if what is offered may be gathered for a while."""

import asyncio

import pytest

from engine.fakes import WIRES, Desk, ImmediateWire, connected, run_clocked, ticks, until
from fastapi_rooms.domain.messages import Close, encode
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound.fan_out import fan_out

INTERVAL = 0.05
BYE = Close(1012)


class Noting(ImmediateWire):
    """Notes when each write came."""

    batch_bytes = 1 << 16

    def __init__(self):
        super().__init__()
        self.times = []  # loop times

    def _deliver(self, messages):
        super()._deliver(messages)
        self.times.append(asyncio.get_running_loop().time())


def text(number):
    return encode(f"message {number}")


def desk(**limits):
    return Desk(flush_interval=1000 * INTERVAL, **limits)


def sent(wires):
    return [[message.payload for message in wire.written] for wire in wires]


@pytest.fixture
def timers(monkeypatch):
    """The delays of all timers that are set while a test runs, but for those of sleeps and sweeps."""
    delays = []
    call_later = asyncio.BaseEventLoop.call_later

    def noting(loop, delay, callback, *args, **options):
        if getattr(callback, "__name__", "") == "_flush":
            delays.append(delay)
        return call_later(loop, delay, callback, *args, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", noting)
    return delays


def test_by_default_what_is_offered_leaves_at_the_end_of_the_tick_and_no_timer_is_set(timers):
    async def main():
        gathering = Desk()
        wire = Noting()
        outbox = gathering.outbox(wire)
        for number in range(5):
            outbox.offer(text(number))
            assert len(wire.writes) == number
            await asyncio.sleep(0)
            assert len(wire.writes) == number + 1
        assert (timers, set(wire.times)) == ([], {0.0})

    run_clocked(main)


def test_the_first_message_after_a_pause_leaves_at_the_end_of_its_tick():
    async def main():
        gathering = desk()
        wire = Noting()
        outbox = gathering.outbox(wire)
        for number in range(3):
            outbox.offer(text(number))
            assert len(wire.writes) == number
            await asyncio.sleep(0)
            assert len(wire.writes) == number + 1
            await asyncio.sleep(INTERVAL * 1.01)

    run_clocked(main)


def test_what_follows_within_the_interval_is_one_write_per_connection_at_its_end():
    async def main():
        gathering = desk()
        wires = [Noting() for _ in range(3)]
        outboxes = [gathering.outbox(wire) for wire in wires]
        for number in range(11):  # at 0, 10 … 100 ms
            for outbox in outboxes:
                outbox.offer(text(number))
            await asyncio.sleep(0.0099)
        await asyncio.sleep(1)
        for wire in wires:
            assert wire.times == pytest.approx([0, INTERVAL, 2 * INTERVAL], abs=0.001)
            assert [len(write) for write in wire.writes] == [1, 5, 5]
        assert sent(wires) == [[b"message %d" % number for number in range(11)]] * 3

    run_clocked(main)


@pytest.mark.parametrize("begin", [0.0, 1.1, 4635.188, 99_999.7])
def test_a_clock_that_stands_still_within_a_tick_makes_no_second_write(begin):
    """As uvloop's does, whatever the digits that are lost between two of its times."""

    async def main():
        loop = asyncio.get_running_loop()
        loop.now = begin
        gathering = desk()
        wire = Noting()
        outbox = gathering.outbox(wire)
        for number in range(9):
            outbox.offer(text(number))
            await ticks(3)  # it has left, or will with the interval
            outbox.offer(text(number))
            await ticks(3)
            assert len(wire.writes) == number + 1
            await asyncio.sleep(wire.times[-1] + 1.001 * INTERVAL - loop.time())
        assert [len(write) for write in wire.writes] == [1, 1, *[2] * 8]

    run_clocked(main)


def test_nobody_waits_longer_than_the_interval_however_busy_it_is():
    async def main():
        gathering = desk()
        loop = asyncio.get_running_loop()
        wire = Noting()
        outbox = gathering.outbox(wire)
        offered = []
        for number in range(300):
            offered.append(loop.time())
            outbox.offer(text(number))
            await asyncio.sleep(0.0013)
        await asyncio.sleep(1)
        arrived = [at for at, write in zip(wire.times, wire.writes, strict=True) for _ in write]
        assert all(0 <= there - here <= INTERVAL + 1e-6 for here, there in zip(offered, arrived, strict=True))
        assert len(wire.writes) == pytest.approx(300 * 0.0013 / INTERVAL, abs=2)
        assert sent([wire]) == [[b"message %d" % number for number in range(300)]]

    run_clocked(main)


def test_there_is_one_timer_per_interval_whatever_the_number_of_connections(timers):
    async def main():
        gathering = desk()
        wires = [Noting() for _ in range(500)]
        outboxes = [gathering.outbox(wire) for wire in wires]
        for number in range(10):
            if number % 2 == 0:
                fan_out(outboxes, text(number), (), gathering.flusher)
            else:
                for outbox in outboxes:
                    outbox.offer(text(number))
            await asyncio.sleep(0)
        assert timers == pytest.approx([INTERVAL])
        await asyncio.sleep(INTERVAL)
        assert len(timers) == 1
        assert {tuple(len(write) for write in wire.writes) for wire in wires} == {(1, 9)}

    run_clocked(main)


@pytest.mark.parametrize("wire", WIRES)
def test_the_order_is_kept_whatever_way_messages_come(wire):
    async def main():
        gathering = desk()
        wires = [wire() for _ in range(30)]
        outboxes = [gathering.outbox(one) for one in wires]
        for number in range(60):
            if number % 3:
                fan_out(outboxes, text(number), (), gathering.flusher)
            else:
                for outbox in outboxes:
                    outbox.offer(text(number))
            await asyncio.sleep((0, 0.004, 0.021)[number % 3])
        await asyncio.sleep(1)
        assert sent(wires) == [[b"message %d" % number for number in range(60)]] * 30

    run_clocked(main)


@pytest.mark.parametrize("wire", WIRES)
def test_a_close_does_not_wait_for_the_interval_and_what_was_offered_before_leaves_before_it(wire):
    async def main():
        gathering = desk()
        here, other = wire(), wire()
        outbox, staying = gathering.outbox(here), gathering.outbox(other)
        for number in range(3):
            outbox.offer(text(number))
            staying.offer(text(number))
            await ticks()
        outbox.close(BYE)
        await ticks()
        assert asyncio.get_running_loop().time() == 0
        assert (sent([here]), here.closes) == ([[b"message 0", b"message 1", b"message 2"]], [BYE])
        assert sent([other]) == [[b"message 0"]], "others have their interval"
        await asyncio.sleep(INTERVAL)
        await ticks()
        assert (sent([other]), here.faults) == ([[b"message 0", b"message 1", b"message 2"]], [])

    run_clocked(main)


def test_the_end_of_a_manager_loses_nothing_and_does_not_wait_for_the_interval():
    async def main():
        manager = ConnectionManager(RoomsSettings(flush_interval=60_000))
        peers = [(await connected(manager, "a"))[0] for _ in range(30)]
        for number in range(3):
            await manager.broadcast_to_room("a", f"message {number}")
            await ticks()
        assert [peer.texts for peer in peers] == [["message 0"]] * 30
        await manager.stop()
        assert asyncio.get_running_loop().time() < 1
        assert [peer.texts for peer in peers] == [["message 0", "message 1", "message 2"]] * 30
        assert [peer.close_codes for peer in peers] == [[1012]] * 30
        assert manager.stats().dropped["lost"] == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_clocked(main)


def test_a_manager_goes_on_after_its_end_although_a_timer_was_pending():
    async def main():
        manager = ConnectionManager(RoomsSettings(flush_interval=1000 * INTERVAL))
        await connected(manager, "a")
        for number in range(2):
            await manager.broadcast_to_room("a", f"message {number}")
            await ticks()
        await manager.stop()
        peer, _ = await connected(manager, "a")
        await manager.broadcast_to_room("a", "after")
        await asyncio.sleep(INTERVAL)
        await ticks()
        assert peer.texts == ["after"]
        await manager.stop()

    run_clocked(main)


@pytest.mark.parametrize("clock", [0.0, 0.9 * INTERVAL, 1e6])
def test_it_outlives_a_loop_whose_timer_never_came_and_whose_clock_was_another(clock):
    gathering = desk()
    wires = [Noting(), Noting()]
    outboxes = []

    async def begin():
        asyncio.get_running_loop().now = 1000.0
        outboxes.extend(gathering.outbox(wire) for wire in wires)
        outboxes[0].offer(text(0))
        await ticks()
        outboxes[0].offer(text(1))  # and the loop ends before the interval does

    async def go_on():
        loop = asyncio.get_running_loop()
        loop.now = clock or 1000.0  # 0: the same goes on
        outboxes[1].offer(text(2))
        await until(lambda: len(wires[1].written) == 1, pause=0.001)
        assert loop.time() - (clock or 1000.0) <= INTERVAL + 0.002
        assert sent(wires) == [[b"message 0", b"message 1"], [b"message 2"]]

    run_clocked(begin)
    assert sent(wires) == [[b"message 0"], []]
    run_clocked(go_on)


class Costly(Noting):
    """Each write takes a tenth of a millisecond."""

    def _deliver(self, messages):
        super()._deliver(messages)
        asyncio.get_running_loop().now += 0.0001


def test_a_large_room_is_not_kept_waiting_between_the_slices_of_one_flush():
    async def main():
        loop = asyncio.get_running_loop()
        gathering = desk()
        wires = [Costly() for _ in range(1000)]  # 0.1 s, and the interval is half of that
        outboxes = [gathering.outbox(wire) for wire in wires]
        for number in range(3):
            fan_out(outboxes, text(number), (), gathering.flusher)
            begin = loop.time()
            reached = []  # how many, turn by turn
            while not reached or reached[-1] < 1000:
                await asyncio.sleep(0 if any(reached) else 0.0001)
                reached.append(sum(len(wire.writes) > number for wire in wires))
                assert len(reached) < 1000
            slices = len(set(reached))
            assert 10 <= slices <= 30, "others had their turn in between, and the clock was looked at now and then"
            times = [wire.times[number] for wire in wires]
            assert max(times) - min(times) == pytest.approx(0.1, abs=0.01)
            waited = min(times) - begin
            assert waited == 0 if number < 2 else 0 < waited <= INTERVAL, "the third comes right behind the second"
            await asyncio.sleep(INTERVAL if not number else 0)
        assert sent(wires) == [[b"message 0", b"message 1", b"message 2"]] * 1000

    run_clocked(main)


def test_who_is_offered_something_between_the_slices_is_served_with_them():
    async def main():
        loop = asyncio.get_running_loop()
        gathering = desk()
        wires = [Costly() for _ in range(1000)]
        outboxes = [gathering.outbox(wire) for wire in wires]
        small = Noting()
        alone = gathering.outbox(small)
        fan_out(outboxes, text(0), (), gathering.flusher)
        await asyncio.sleep(0)
        assert 0 < sum(bool(wire.writes) for wire in wires) < 500
        alone.offer(text(1))
        await asyncio.sleep(0)
        assert sent([small]) == [[b"message 1"]]
        assert loop.time() < 0.02
        assert not all(wire.writes for wire in wires)
        await ticks(30)
        assert sent(wires) == [[b"message 0"]] * 1000
        assert loop.time() == pytest.approx(0.1)

    run_clocked(main)


def test_a_peer_that_is_behind_is_written_to_when_it_takes_something_not_when_the_interval_ends():
    async def main():
        gathering = desk()
        wire = Noting()
        outbox = gathering.outbox(wire)
        wire.block()
        outbox.offer(text(0))
        await ticks()
        wire.unblock()
        await ticks()
        assert (asyncio.get_running_loop().time(), sent([wire])) == (0, [[b"message 0"]])

    run_clocked(main)


def test_a_producer_that_waits_for_space_goes_on_at_the_end_of_the_interval():
    async def main():
        gathering = desk(outbox_messages=4)
        wire = Noting()
        outbox = gathering.outbox(wire)
        for number in range(20):
            outbox.offer(text(number))
            await outbox.wait_for_space()
        await asyncio.sleep(INTERVAL)
        await ticks()
        assert sent([wire]) == [[b"message %d" % number for number in range(20)]]
        assert [len(write) for write in wire.writes] == [3] * 6 + [2]

    run_clocked(main)
