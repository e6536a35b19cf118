"""Tables of slots, whatever a server says."""

from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.exceptions import AskError, MovedError

from fastapi_rooms.backends.redis.slots import SLOTS, SlotTable, channel_in, moved_to, slot_of

ASKED = ("10.0.0.1", 7001)
OTHER = ("10.0.0.2", 7002)

examples = settings(max_examples=60, deadline=None)
words = st.one_of(st.none(), st.integers(), st.binary(max_size=4), st.text(max_size=4), st.floats())
almost = st.tuples(
    st.integers(-2, SLOTS + 2),
    st.integers(-2, SLOTS + 2),
    st.one_of(words, st.lists(words, max_size=3), st.tuples(st.just(b"10.0.0.2"), st.integers(-1, 70_000))),
)
answers = st.one_of(st.recursive(words, lambda inner: st.lists(inner, max_size=4)), st.lists(almost, max_size=3))


@examples
@example([[0, 1, [None, float("inf")]]])
@given(answers)
def test_any_answer_becomes_a_table_or_a_value_error(answer):
    table = SlotTable()
    table.move(3, OTHER)
    try:
        table.replace(answer, ASKED)
    except ValueError:
        assert table.owners() == {OTHER}, "nothing has changed"
    else:
        assert len(table._owners) == SLOTS
        assert all(isinstance(host, str) and 0 < port < 65_536 for host, port in table.owners())


@examples
@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 200), st.integers(1, 65_535)), max_size=5))
def test_the_last_word_about_a_slot_counts(rows):
    table = SlotTable()
    expected = {}
    answer = []
    for first, size, port in rows:
        last = min(first + size, SLOTS - 1)
        answer.append([first, last, [b"", port]])
        expected.update((slot, (ASKED[0], port)) for slot in range(first, last + 1))
    table.replace(answer, ASKED)
    assert {slot: table.owner(slot) for slot in range(SLOTS) if table.owner(slot)} == expected
    assert table.owners() == set(expected.values())
    assert table.is_complete() is (len(expected) == SLOTS)
    for owner in table.owners():
        assert table.slots_of(owner) == {slot for slot, one in expected.items() if one == owner}


@pytest.mark.parametrize(
    ("error", "owner"),
    [
        (MovedError("3 10.0.0.2:7002"), OTHER),
        (MovedError("3 :7002"), ("10.0.0.1", 7002)),
        (MovedError("3 ::1:7002"), ("::1", 7002)),
        (MovedError("3 10.0.0.2:0"), None),
        (MovedError("3 10.0.0.2:65536"), None),
        (AskError("3 10.0.0.2:7002"), None),
    ],
    ids=repr,
)
def test_an_error_says_where_a_slot_is_or_it_does_not(error, owner):
    assert moved_to(error, ASKED) == owner


def test_a_channel_is_found_for_a_single_slot_and_for_none():
    channels = [b"%d" % number for number in range(100)]
    assert channel_in(frozenset({slot_of(b"77")}), channels) == b"77"
    assert channel_in(frozenset(), (b"%d" % number for number in count())) == b"0"
