"""Whatever is lost lies in a reported gap, and no gap is reported without a lapse."""

from collections import deque
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fastapi_rooms.backends.redis.lapses import Lapses

ROOMS = [b"one", b"two", b"three"]


def at(seconds):
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def hearing(*channels):
    """Return lapses of a listener that has heard its first probe, sent after 1 s."""
    lapses = Lapses(at(0))
    lapses.begin(channels)
    for channel in channels:
        lapses.catch_up(channel)
    assert lapses.prove(lapses.probe(at(1))) is None
    return lapses


# A connection


def test_it_hears_when_all_that_the_connection_began_with_is_confirmed():
    lapses = Lapses(at(0))
    assert (lapses.is_hearing, lapses.are_over, lapses.heard_since) == (False, False, at(0))
    lapses.begin([b"one", b"two"])
    assert not lapses.is_hearing
    assert not lapses.catch_up(b"one")
    assert not lapses.catch_up(b"unheard of")
    assert not lapses.is_hearing
    assert lapses.catch_up(b"two"), "it was the last"
    assert not lapses.catch_up(b"two"), "once is enough"
    assert lapses.is_hearing
    assert lapses.are_over


def test_with_nothing_to_hear_it_hears_at_once():
    lapses = Lapses(at(0))
    lapses.begin([])
    assert lapses.is_hearing


def test_the_first_connection_is_no_lapse():
    lapses = hearing(b"one")
    assert lapses.heard_since == at(1)


def test_every_probe_that_is_heard_moves_on_what_was_heard():
    lapses = hearing(b"one")
    proof = lapses.probe(at(2))
    assert lapses.heard_since == at(1), "it is not heard yet"
    assert lapses.prove(proof) is None
    assert lapses.heard_since == at(2)


def test_a_lost_connection_is_a_gap_from_the_last_probe_heard_before_to_the_first_sent_after():
    lapses = hearing(b"one")
    lapses.lose()
    assert not lapses.is_hearing
    lapses.begin([b"one"])
    assert not lapses.is_hearing
    lapses.catch_up(b"one")
    assert lapses.prove(lapses.probe(at(9))) == at(1)
    assert lapses.heard_since == at(9)
    assert lapses.prove(lapses.probe(at(10))) is None, "it was reported"


def test_many_losses_between_two_probes_are_one_gap():
    lapses = hearing()
    for _ in range(3):
        lapses.lose()
        lapses.begin([])
    assert lapses.prove(lapses.probe(at(9))) == at(1)
    assert lapses.prove(lapses.probe(at(10))) is None


def test_a_loss_before_the_first_probe_is_a_gap_from_the_start():
    lapses = Lapses(at(0))
    lapses.begin([])
    lapses.lose()
    lapses.begin([])
    assert lapses.prove(lapses.probe(at(9))) == at(0)


def test_a_failure_before_the_first_probe_is_a_gap_from_the_start():
    lapses = Lapses(at(0))
    lapses.fail()
    lapses.begin([])
    assert lapses.prove(lapses.probe(at(9))) == at(0)


def test_a_failure_of_the_publishing_line_alone_is_none():
    lapses = hearing()
    lapses.fail()
    assert lapses.prove(lapses.probe(at(9))) is None


def test_a_probe_proves_nothing_of_a_connection_that_was_made_after_it_was_sent():
    lapses = hearing(b"one")
    proof = lapses.probe(at(2))
    lapses.lose()
    assert lapses.prove(proof) is None, "it was heard just before the loss"
    assert lapses.heard_since == at(1)
    lapses.begin([b"one"])
    lapses.catch_up(b"one")
    assert lapses.prove(lapses.probe(at(3))) == at(1)


# Those who do not wait


def test_who_does_not_wait_is_a_gap_once_it_is_heard():
    lapses = hearing()
    lapses.let_go([b"one", b"two"])
    assert (lapses.is_hearing, lapses.are_over) == (True, False)
    lapses.catch_up(b"one")
    lapses.catch_up(b"two")
    assert lapses.are_over
    assert lapses.prove(lapses.probe(at(9))) == at(1)


def test_nobody_let_go_is_no_lapse():
    lapses = hearing()
    lapses.let_go([])
    assert lapses.prove(lapses.probe(at(9))) is None


def test_probes_that_are_heard_while_somebody_is_late_leave_the_gap_where_it_begins():
    lapses = hearing()
    lapses.let_go([b"one"])
    for second in (2, 3, 4):
        assert lapses.prove(lapses.probe(at(second))) is None
    assert lapses.heard_since == at(1)
    lapses.let_go([b"two"])
    lapses.catch_up(b"one")
    assert lapses.prove(lapses.probe(at(5))) is None, "the other is still late"
    lapses.catch_up(b"two")
    assert lapses.prove(lapses.probe(at(6))) == at(1)
    assert lapses.prove(lapses.probe(at(7))) is None


def test_who_was_late_and_is_confirmed_while_the_probe_is_under_way_is_in_its_gap():
    lapses = hearing()
    lapses.let_go([b"one"])
    proof = lapses.probe(at(2))
    lapses.catch_up(b"one")
    assert lapses.prove(proof) == at(1)


def test_a_lapse_that_is_over_is_reported_though_somebody_is_late_and_so_is_that_one_later():
    lapses = hearing()
    lapses.lose()
    lapses.begin([])
    lapses.let_go([b"one"])
    assert lapses.prove(lapses.probe(at(2))) == at(1)
    assert lapses.heard_since == at(2)
    lapses.catch_up(b"one")
    assert lapses.prove(lapses.probe(at(3))) == at(2)


def test_who_was_late_when_the_connection_was_lost_catches_up_with_the_next():
    lapses = hearing()
    lapses.let_go([b"one"])
    lapses.lose()
    lapses.begin([b"one"])
    lapses.catch_up(b"one")
    assert lapses.are_over
    assert lapses.prove(lapses.probe(at(2))) == at(1)
    assert lapses.prove(lapses.probe(at(3))) is None


# Any order of events, against a server that is modelled by its queues


class Node(RuleBasedStateMachine):
    """A node, its connections to one server, and what somebody else says there.

    Time is counted in events. What a server has written and the node has not read is lost with the connection.
    """

    def __init__(self):
        super().__init__()
        self.now = 0
        self.lapses = Lapses(at(0))
        self.is_connected = False
        self.is_decided = False  # until then whoever starts waits, and nobody is told anything
        self.was_proved = False
        self.is_doubted = False
        self.wanted = set()
        self.waited_for = set()  # somebody waits until they are confirmed
        self.promised = set()  # somebody was told that he hears them, or that Redis is in doubt
        self.commands = deque()  # written, and not taken by the server
        self.subscribed = set()  # at the server
        self.written = deque()  # by the server, and not read
        self.confirmed = set()
        self.proof = None  # a probe is under way, or was heard and is not looked at
        self.is_proved = False
        self.said = {}  # when, in which room: in rooms that were promised
        self.gaps = []
        self.is_lapsed = False  # something that may be missed was not reported

    def pass_time(self):
        self.now += 1
        return at(self.now)

    def promise(self, channels):
        self.promised |= channels
        self.waited_for -= channels

    def fail(self):
        """Do what a link does when one of its sides has failed."""
        self.lapses.fail()
        self.is_lapsed |= not self.was_proved
        self.is_doubted = True
        self.decide()
        self.let_go(set(self.waited_for))

    def decide(self):
        if not self.is_decided:
            self.is_decided = True
            self.promise(self.wanted - self.waited_for)  # those wait for their own confirmation

    def let_go(self, channels):
        self.is_lapsed |= bool(channels)
        self.lapses.let_go(channels)
        self.promise(channels)

    # The node

    @initialize(rooms=st.none() | st.sets(st.sampled_from(ROOMS)))
    def start(self, rooms):
        """Begin with a node that hears rooms, or with one that was just made."""
        if rooms is not None:
            for room in sorted(rooms):
                self.want(room)
            self.connect()
            self.prove()

    @precondition(lambda self: not self.is_connected)
    @rule()
    def connect(self):
        self.pass_time()
        self.is_connected = True
        self.commands = deque(self.wanted)
        self.lapses.begin(self.wanted)

    @rule(channel=st.sampled_from(ROOMS))
    def want(self, channel):
        self.pass_time()
        if channel not in self.wanted:
            self.wanted.add(channel)
            self.commands.extend([channel] if self.is_connected else [])
        if not self.is_connected or channel in self.confirmed:
            self.promise({channel} if self.is_decided else set())
        elif self.is_doubted:
            self.let_go({channel})
        else:
            self.waited_for.add(channel)

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def unwant(self, data):
        channel = data.draw(st.sampled_from(sorted(self.wanted)))
        if self.is_connected and channel not in self.confirmed:
            return  # the listener waits for the answer before it says another word
        self.wanted.discard(channel)
        self.lapses.catch_up(channel)
        for one in (self.confirmed, self.subscribed, self.promised, self.waited_for):
            one.discard(channel)
        self.said = {time: said for time, said in self.said.items() if said != channel}

    @precondition(lambda self: self.written)
    @rule(count=st.integers(1, 5))
    def read(self, count):
        for _ in range(min(count, len(self.written))):
            match self.written.popleft():
                case "message", time:
                    self.said.pop(time, None)
                case "confirmation", channel:
                    self.confirmed.add(channel)
                    self.lapses.catch_up(channel)
                    self.promise({channel} & self.waited_for)
                case "probe", _:
                    self.is_proved = self.proof is not None

    @precondition(lambda self: self.is_connected and self.lapses.is_hearing and self.proof is None)
    @rule()
    def probe(self):
        self.proof = self.lapses.probe(self.pass_time())
        self.written.append(("probe", None))

    @precondition(lambda self: self.is_proved)
    @rule()
    def look_at_probe(self):
        was_all_heard = self.is_connected and self.confirmed == self.wanted
        since = self.lapses.prove(self.proof)
        self.proof, self.is_proved, self.is_doubted, self.was_proved = None, False, False, True
        self.decide()
        if since is not None:
            assert self.is_lapsed, "nothing is reported without a lapse"
            self.gaps.append((since, self.pass_time()))
        if was_all_heard:
            self.is_lapsed = False
            assert self.unexplained() == []

    @precondition(lambda self: self.is_connected)
    @rule()
    def prove(self):
        """Have all confirmed that the connection began with, and a probe heard."""
        self.read(len(self.written))
        while not self.lapses.is_hearing:
            self.take_command()
            self.read(len(self.written))
        if self.proof is None:
            self.probe()
        self.read(len(self.written))
        self.look_at_probe()

    @precondition(lambda self: self.proof is not None and not self.is_proved)
    @rule()
    def give_up_the_probe(self):
        self.proof = None
        self.lose()

    @precondition(lambda self: self.is_connected)
    @rule()
    def lose(self):
        if self.is_connected:
            self.pass_time()
            self.is_connected = False
            self.is_lapsed = True
            for queue in (self.commands, self.written, self.subscribed, self.confirmed):
                queue.clear()
            self.lapses.lose()
            self.promise(set(self.waited_for))
            self.fail_the_line()

    @rule()
    def fail_the_line(self):
        if not self.is_proved:
            self.proof = None
            self.written = deque(one for one in self.written if one[0] != "probe")
        self.fail()

    # The server, and another node

    @precondition(lambda self: self.commands)
    @rule()
    def take_command(self):
        channel = self.commands.popleft()
        self.subscribed.add(channel)
        self.written.append(("confirmation", channel))

    @rule(channel=st.sampled_from(ROOMS))
    def say(self, channel):
        time = self.pass_time()
        if channel in self.promised:
            self.said[time] = channel
        if channel in self.subscribed:
            self.written.append(("message", time))

    # What must hold

    def unexplained(self):
        """Return what was said in rooms that somebody hears, was not read, will not be, and is in no gap."""
        coming = {what for word, what in self.written if word == "message"}
        return [
            time
            for time in self.said
            if time not in coming and not any(since <= time <= until for since, until in self.gaps)
        ]

    @invariant()
    def what_may_still_be_reported_begins_early_enough(self):
        assert all(time >= self.lapses.heard_since for time in self.unexplained())

    def teardown(self):
        if not self.is_connected:
            self.connect()
        while self.commands:
            self.take_command()
        self.read(len(self.written))
        self.prove()
        self.prove()
        assert self.unexplained() == [], "whatever is lost lies in a reported gap"


@pytest.mark.parametrize("examples", [200, pytest.param(3000, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
def test_whatever_is_lost_lies_in_a_gap_and_no_gap_is_without_a_lapse(examples):
    run_state_machine_as_test(Node, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None))
