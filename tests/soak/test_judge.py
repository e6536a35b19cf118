"""The judge of the soak test condemns what must be condemned, and nothing else."""

import pytest

from soak.history import OK, UNAVAILABLE, UNKNOWN, Fault, HeardGap, Hearing, History, Life, Session
from soak.judge import judge

BEGAN = 1_000_000.0


class Tale:
    """A history as it is told: ann listens on a1, and what is said is said on a1 (`here`) or b1 (`there`).

    Times are seconds since its beginning. A message is heard a moment after it was said.
    """

    def __init__(self):
        self.history = History(BEGAN, {"a1": Life("a1", "a"), "b1": Life("b1", "b")})
        self.ann = Session("ann", "a1", [Hearing("kitchen", BEGAN)])
        self.history.sessions.append(self.ann)

    def say(self, life, at, *, outcome=OK, heard=True, room="kitchen", talker="bob", sequence=None, lasts=0.1):
        number = sum(one.life == life for one in self.history.messages.values())
        sequence = number if sequence is None else sequence
        said = self.history.message(life, number, room, talker, sequence, BEGAN + at)
        if outcome != UNKNOWN:
            said.outcome, said.returned = outcome, BEGAN + at + lasts
        if heard:
            self.hear(said, at + lasts)
        return said

    def here(self, at, **how):
        return self.say("a1", at, **how)

    def there(self, at, **how):
        return self.say("b1", at, **how)

    def hear(self, said, at):
        self.ann.heard.append((said, BEGAN + at))

    def leave(self, at, *, is_cut=False):
        self.ann.hearings[-1].until, self.ann.hearings[-1].is_cut = BEGAN + at, is_cut

    def join(self, at):
        self.ann.hearings.append(Hearing("kitchen", BEGAN + at))

    def gap(self, since, until, rooms=("kitchen",), life="a1"):
        self.history.gaps.append(HeardGap(life, BEGAN + since, BEGAN + until, rooms))

    def stop(self, how, code, at=20):
        self.history.lives["a1"].ended_by = how
        self.ann.close_code, self.ann.closed_at = code, BEGAN + at
        self.leave(at, is_cut=True)


@pytest.fixture
def tale():
    return Tale()


def check_innocent(tale, **counts):
    verdict = judge(tale.history)
    assert verdict.complaints == []
    assert verdict.counts == counts


def check_condemned(tale, *words):
    (complaint,) = judge(tale.history).complaints
    assert [word for word in words if word not in complaint] == []


# What is well


def test_all_that_was_said_was_heard(tale):
    for at in range(10):
        tale.here(at)
        tale.there(at + 0.5)
    check_innocent(tale, here=10, there=10)


def test_nothing_was_said(tale):
    check_innocent(tale)


def test_what_is_said_in_other_rooms_need_not_be_heard(tale):
    tale.here(1, room="cellar", heard=False)
    tale.there(2, room="cellar", heard=False)
    check_innocent(tale)


def test_what_is_said_before_and_after_need_not_be_heard(tale):
    tale.here(-1, heard=False)
    tale.here(1)
    tale.leave(2)
    tale.here(3, heard=False)
    check_innocent(tale, here=1)


def test_two_nodes_have_no_common_order(tale):
    first = tale.here(1, heard=False)
    tale.there(2)
    tale.hear(first, 3)
    check_innocent(tale, here=1, there=1)


def test_what_another_node_says_in_two_rooms_has_no_order(tale):
    tale.ann.hearings.append(Hearing("cellar", BEGAN))
    first = tale.there(1, heard=False)
    tale.there(2, room="cellar")
    tale.hear(first, 3)
    check_innocent(tale, there=2)


# What was lost


@pytest.mark.parametrize("outcome", [OK, UNAVAILABLE, UNKNOWN])
def test_on_its_own_node_everything_is_promised(tale, outcome):
    tale.here(1)
    tale.here(2, outcome=outcome, heard=False)
    tale.here(3)
    check_condemned(tale, "ann on a1 lost 1 messages of a1 in kitchen", "a1#1 (bob's 1 in kitchen)", "called at 2.000")


def test_a_gap_excuses_nothing_on_its_own_node(tale):
    tale.here(2, heard=False)
    tale.gap(1, 3)
    check_condemned(tale, "lost 1")


def test_from_another_node_it_is_promised_what_succeeded(tale):
    tale.there(2, heard=False)
    check_condemned(tale, "lost 1 messages of b1", "ok at 2.100")


@pytest.mark.parametrize("outcome", [UNAVAILABLE, UNKNOWN])
def test_what_failed_may_be_lost_on_its_way_to_another_node(tale, outcome):
    tale.there(2, outcome=outcome, heard=False)
    check_innocent(tale, unavailable=1)


@pytest.mark.parametrize("outcome", [UNAVAILABLE, UNKNOWN])
def test_what_failed_may_come_late(tale, outcome):
    first = tale.there(1, outcome=outcome, heard=False)
    tale.there(2)
    tale.hear(first, 3)
    check_innocent(tale, there=2, late=1)


@pytest.mark.parametrize("gap", [(1, 3), (2.05, 3), (0, 2.05), (2.02, 2.03)])
def test_what_may_have_been_on_its_way_in_a_gap_may_be_lost(tale, gap):
    tale.there(2, heard=False)
    tale.gap(*gap)
    check_innocent(tale, **{"in gaps": 1})


@pytest.mark.parametrize(
    ("gap", "how"),
    [
        ((0, 1.9), {}),
        ((2.2, 3), {}),
        ((1, 3), {"rooms": ("cellar",)}),
        ((1, 3), {"life": "b1"}),
    ],
)
def test_a_gap_of_another_time_room_or_node_is_no_excuse(tale, gap, how):
    tale.there(2, heard=False)
    tale.gap(*gap, **how)
    check_condemned(tale, "lost 1")


def test_a_node_that_was_stopped_deaf_excuses_all_rooms(tale):
    tale.there(2, heard=False)
    tale.gap(1, float("inf"), rooms=None)
    check_innocent(tale, **{"in gaps": 1})


def test_who_left_before_the_node_heard_again_is_told_of_no_gap(tale):
    tale.there(2, heard=False)
    tale.leave(15)
    tale.gap(1, 16, rooms=())
    check_innocent(tale, **{"in gaps": 1})


def test_who_left_after_that_is(tale):
    tale.there(2, heard=False)
    tale.leave(15)
    tale.gap(1, 14, rooms=())
    check_condemned(tale, "lost 1")


def test_what_is_on_its_way_at_the_end_of_a_membership_is_not_certain(tale):
    tale.there(2, heard=False)
    tale.leave(3)
    check_innocent(tale, uncertain=1)


def test_it_is_if_something_was_heard_that_was_said_later(tale):
    tale.there(2, heard=False)
    tale.there(2.1)
    tale.leave(3)
    check_condemned(tale, "lost 1")


def test_it_is_not_if_that_came_when_it_was_there_again(tale):
    tale.there(2, heard=False)
    later = tale.there(2.1, heard=False)
    tale.leave(3)
    tale.join(3.5)
    tale.hear(later, 4)
    check_innocent(tale, there=1, uncertain=1)


def test_on_its_own_node_a_leave_is_certain(tale):
    tale.here(2, heard=False)
    tale.leave(3)
    check_condemned(tale, "lost 1 messages of a1")


def test_the_last_messages_of_a_connection_that_was_closed_are_not_certain(tale):
    tale.here(1)
    tale.here(19, heard=False)
    tale.stop("SIGTERM", 1012)
    check_innocent(tale, here=1, uncertain=1)


def test_those_before_are(tale):
    tale.here(1, heard=False)
    tale.stop("SIGTERM", 1012)
    check_condemned(tale, "lost 1", "(cut off)")


def test_a_lament_tells_what_was_broken_and_which_gaps_there_were(tale):
    tale.there(2, heard=False)
    tale.history.faults += [
        Fault("Redis stood still", BEGAN + 1, BEGAN + 3),
        Fault("Redis was killed", BEGAN + 40, BEGAN + 50),
    ]
    tale.gap(4, 5)
    check_condemned(tale, "then: Redis stood still, from 1.000 to 3.000", "gap: 4.000 to 5.000, with the room")
    assert "killed" not in judge(tale.history).complaints[0]


# What else must not be


def test_nothing_is_heard_twice(tale):
    tale.hear(tale.here(1), 2)
    check_condemned(tale, "heard twice: a1#0")


def test_nothing_is_heard_twice_from_another_node_even_if_it_failed(tale):
    tale.hear(tale.there(1, outcome=UNAVAILABLE), 2)
    check_condemned(tale, "heard twice: b1#0")


@pytest.mark.parametrize("life", ["a1", "b1"])
def test_order_is_kept(tale, life):
    first = tale.say(life, 1, heard=False)
    tale.say(life, 2)
    tale.hear(first, 3)
    check_condemned(tale, f"heard {life}#0 (bob's 0 in kitchen) after {life}#1")


@pytest.mark.parametrize("outcome", [OK, UNAVAILABLE, UNKNOWN])
def test_on_its_own_node_order_is_kept_across_rooms_whatever_comes_of_it(tale, outcome):
    tale.ann.hearings.append(Hearing("cellar", BEGAN))
    first = tale.here(1, outcome=outcome, heard=False)
    tale.here(2, room="cellar")
    tale.hear(first, 3)
    check_condemned(tale, "heard a1#0", "after a1#1")


def test_a_talker_is_handled_in_order(tale):
    tale.here(1, sequence=8)
    tale.here(2, sequence=7)
    check_condemned(tale, "a1#1 (bob's 7 in kitchen) was handled after a1#0 (bob's 8 in kitchen)")


def test_a_message_that_is_told_differently_is_no_message_of_this_history(tale):
    tale.here(1)
    with pytest.raises(ValueError, match="instead of"):
        tale.history.message("a1", 0, "kitchen", "eve", 0, BEGAN + 1)


def test_answers_come_in_order(tale):
    tale.ann.said, tale.ann.answered = [1, 2, 3], [1, 3]
    check_condemned(tale, "another order")


def test_everything_is_answered_as_long_as_one_is_connected(tale):
    tale.ann.said, tale.ann.answered = [1, 2, 3], [1, 2]
    check_condemned(tale, "never answered", "[3]")


def test_who_was_cut_off_may_have_no_answer(tale):
    tale.ann.said, tale.ann.answered = [1, 2, 3], [1, 2]
    tale.stop("SIGKILL", 1006)
    check_innocent(tale)


def test_nobody_is_closed_by_a_node_that_goes_on(tale):
    tale.stop(None, 1013)
    check_condemned(tale, "closed with 1013, although nobody stopped the node")


def test_a_node_that_is_told_to_stop_closes_with_1012(tale):
    tale.stop("SIGTERM", 1006)
    check_condemned(tale, "closed with 1006 instead of 1012")


def test_what_others_have_seen_is_passed_on(tale):
    tale.history.oddities.append("a node did not stop")
    tale.ann.oddities.append("heard strange words")
    assert judge(tale.history).complaints == ["a node did not stop", "ann on a1: heard strange words"]
