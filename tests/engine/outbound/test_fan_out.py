"""One message to many: shared batches, one join, and slices of time."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fakes import Desk, ImmediateWire, WaitingWire, connected, ticks
from fastapi_rooms.domain.connection import Connection, Verdict
from fastapi_rooms.domain.messages import Message, encode
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound import flusher as flusher_module
from fastapi_rooms.engine.outbound.batch import EMPTY, REFUSING, Batch
from fastapi_rooms.engine.outbound.fan_out import fan_out

ONE, TWO, THREE = encode("one"), encode(b"\xff"), encode({"n": 3})


def test_a_batch_holds_messages_in_their_order():
    batch = EMPTY.then(ONE).then(TWO).then(THREE)
    assert batch.messages() == list(batch) == [ONE, TWO, THREE]
    assert (len(batch), batch.size) == (3, ONE.size + TWO.size + THREE.size)
    assert batch.frames() == ONE.frame() + TWO.frame() + THREE.frame()
    assert batch.frames() is batch.frames(), "joined once"
    assert "3 messages" in repr(batch)


def test_a_batch_of_one_is_its_frame_and_nothing_is_copied():
    assert EMPTY.then(ONE).frames() is ONE.frame()


def test_a_longer_batch_leaves_the_shorter_as_it_was():
    short = Batch.of([ONE])
    assert (list(short.then(TWO)), list(short.then(THREE)), list(short)) == ([ONE, TWO], [ONE, THREE], [ONE])
    assert Batch.of([]) is EMPTY
    assert (len(EMPTY), len(REFUSING), EMPTY.frames()) == (0, 0, b"")


class Hall:
    """Members with an outbox on a wire each."""

    def __init__(self, count, **limits):
        self.desk = Desk(**limits)
        self.wires = [ImmediateWire() for _ in range(count)]
        self.members = []
        for wire in self.wires:
            member = Connection(None)
            member._outbox = self.desk.outbox(wire)
            member._outbox.connection = member
            self.members.append(member)

    def say(self, message, *excluded, to=None):
        outboxes = [member._outbox for member in (self.members if to is None else to)]
        left_out = {member._outbox for member in excluded}
        handed, overflowed = fan_out(outboxes, message, left_out, self.desk.flusher)
        return handed, [outbox.connection for outbox in overflowed]

    @property
    def written(self):
        return [wire.written for wire in self.wires]


async def test_those_who_were_offered_the_same_hold_the_same_batch():
    hall = Hall(4)
    last = hall.members[3]
    hall.say(ONE)
    hall.say(TWO, last)
    hall.say(THREE)
    batches = {member._outbox.pending for member in hall.members[:3]}
    assert len(batches) == 1
    assert [list(batch) for batch in batches] == [[ONE, TWO, THREE]]
    assert list(last._outbox.pending) == [ONE, THREE]
    await ticks()
    assert hall.written == [[ONE, TWO, THREE]] * 3 + [[ONE, THREE]]
    assert [len(wire.writes) for wire in hall.wires] == [1] * 4


async def test_it_tells_how_many_were_handed_the_message_and_who_is_too_slow():
    hall = Hall(3, outbox_messages=1)
    slow = hall.members[0]
    hall.wires[0].block()
    for _ in range(3):
        assert hall.say(ONE) == (3, [])
        await ticks()
    assert hall.say(ONE) == (2, [slow])
    assert hall.desk.counters.lost_messages == 1
    hall.members[1]._outbox.close(None)
    await ticks()
    assert hall.say(ONE, slow) == (1, []), "one has ended, one was left out"


@pytest.mark.parametrize(("policy", "handed", "lost"), [("drop_oldest", 2, 2), ("drop_newest", 1, 1)])
async def test_those_whose_outbox_drops_messages_are_asked(policy, handed, lost):
    hall = Hall(2, outbox_messages=1, overflow=policy)
    hall.wires[0].block()
    for _ in range(3):
        hall.say(ONE)
        await ticks()
    assert hall.say(TWO)[0] == handed
    assert hall.desk.counters.lost_messages == lost
    for member in hall.members:
        member._outbox.abort()


@given(
    rounds=st.lists(
        st.lists(
            st.tuples(st.frozensets(st.integers(0, 4), min_size=1), st.frozensets(st.integers(0, 4)), st.booleans()),
            max_size=6,
        ),
        max_size=4,
    ),
    blocked=st.frozensets(st.integers(0, 4)),
)
def test_it_does_what_offering_to_one_after_the_other_does(rounds, blocked):
    async def main():
        halls = Hall(5, outbox_messages=3), Hall(5, outbox_messages=3)
        for hall in halls:
            for number in blocked:
                hall.wires[number].block()
        for offers in rounds:
            for to, excluded, is_personal in offers:
                message = Message(b"%d" % len(to), is_text=True)
                answers = []
                for hall, is_spelt_out in zip(halls, (True, False), strict=True):
                    members = [hall.members[number] for number in sorted(to)]
                    left_out = [hall.members[number] for number in excluded]
                    if is_spelt_out or is_personal:
                        handed, slow = hall.say(message, *left_out, to=members)
                        answers.append((handed, [hall.members.index(one) for one in slow]))
                    else:
                        verdicts = [(m, m._outbox.offer(message)) for m in members if m not in left_out]
                        answers.append(
                            (
                                sum(verdict is Verdict.ACCEPTED for _, verdict in verdicts),
                                [hall.members.index(m) for m, verdict in verdicts if verdict is Verdict.OVERFLOW],
                            )
                        )
                assert answers[0] == answers[1]
            await ticks()
        for hall in halls:
            for number in blocked:
                hall.wires[number].unblock()
        await ticks(20)
        assert halls[0].written == halls[1].written
        assert halls[0].desk.counters == halls[1].desk.counters

    asyncio.run(main())


async def test_a_broadcast_is_encoded_and_joined_once_and_written_once_per_member(monkeypatch):
    frames, joins = [], []
    make_frame, join = Message.frame, Batch.frames
    monkeypatch.setattr(Message, "frame", lambda self: frames.append(self._frame is None) or make_frame(self))
    monkeypatch.setattr(Batch, "frames", lambda self: joins.append(self._frames is None) or join(self))

    class Framing(ImmediateWire):
        batch_bytes = 1 << 16

        def write_now(self, messages):
            messages.frames()
            return super().write_now(messages)

    desk = Desk()
    members = [desk.outbox(Framing()) for _ in range(100)]
    for number in range(10):
        fan_out(members, encode(f"message {number}"), (), desk.flusher)
    await ticks()
    assert (sum(frames), sum(joins), len(joins)) == (10, 1, 100)
    assert all(len(member._wire.writes) == 1 for member in members)


# Slices of time


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock on which each look takes a millisecond."""
    loop = asyncio.new_event_loop()
    now = [0.0]

    def time():
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(loop, "time", time)
    yield loop
    loop.close()


def test_a_large_room_leaves_the_loop_to_others_now_and_then_and_keeps_their_order(slow_clock, monkeypatch):
    monkeypatch.setattr(flusher_module, "AT_ONCE", 10)

    async def main():
        hall = Hall(400)
        small = Hall(1)
        small.desk.flusher = hall.desk.flusher
        small.members[0]._outbox._flusher = hall.desk.flusher
        hall.say(ONE)
        await asyncio.sleep(0)
        first = sum(bool(written) for written in hall.written)
        assert 0 < first < 400, "it pauses"
        hall.say(TWO)
        fan_out([small.members[0]._outbox], THREE, (), hall.desk.flusher)
        turns = 0
        while not all(len(written) == 2 for written in hall.written):
            await asyncio.sleep(0)
            turns += 1
            assert turns < 200
        assert small.written == [[THREE]]
        assert hall.written == [[ONE, TWO]] * 400
        assert turns > 3, "it takes a pause now and then"

    slow_clock.run_until_complete(main())


def test_a_small_room_does_not_wait_for_a_large_one(slow_clock, monkeypatch):
    monkeypatch.setattr(flusher_module, "AT_ONCE", 10)

    async def main():
        hall = Hall(1000)
        small = Hall(1)
        hall.say(ONE)
        await asyncio.sleep(0)
        small.members[0]._outbox._flusher = hall.desk.flusher
        fan_out([small.members[0]._outbox], THREE, (), hall.desk.flusher)
        await asyncio.sleep(0)
        assert small.written == [[THREE]]
        assert not all(hall.written), "the large one is not done"
        while not all(hall.written):
            await asyncio.sleep(0)

    slow_clock.run_until_complete(main())


async def test_waiting_members_of_an_asgi_server_are_served_in_slices_too():
    desk = Desk()
    wires = [WaitingWire() for _ in range(200)]
    outboxes = [desk.outbox(wire) for wire in wires]
    for message in (ONE, TWO):
        fan_out(outboxes, message, (), desk.flusher)
    await ticks(20)
    assert all(wire.written == [ONE, TWO] for wire in wires)


async def test_excluded_connections_are_left_out_by_id_also_if_they_are_not_here():
    manager = ConnectionManager()
    ann, here = await connected(manager, "kitchen")
    bob, _ = await connected(manager, "kitchen")
    assert await manager.broadcast_to_room("kitchen", "hello", exclude=[here, "0" * 32]) == 1
    await ticks()
    assert (ann.texts, bob.texts) == ([], ["hello"])
    await manager.stop()
