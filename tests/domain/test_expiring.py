"""What is kept for a time: how long, how much, and what is left behind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_rooms.domain.expiring import MIN_SWEEP, Expiring


def test_a_value_is_there_until_its_time_is_over():
    kept = Expiring()
    kept.put("a", b"1", 10.0, now=100.0)
    assert kept.peek(["a"], 109.999) == [b"1"]
    assert kept.peek(["a"], 110.0) == [None]
    assert kept.take("a", 110.0) is None


def test_a_value_is_taken_once():
    kept = Expiring()
    kept.put("a", b"", 10.0, now=0.0)
    assert kept.take("a", 1.0) == b""
    assert kept.take("a", 1.0) is None
    assert len(kept) == 0


def test_the_last_put_decides_value_and_time():
    kept = Expiring()
    kept.put("a", b"1", 10.0, now=0.0)
    kept.put("a", b"2", 1.0, now=0.0)
    kept.put("b", b"3", 1.0, now=0.0)
    kept.put("b", b"4", 10.0, now=0.0)
    assert kept.peek(["b", "a", "c", "b"], 0.5) == [b"4", b"2", None, b"4"]
    assert kept.peek(["a", "b"], 5.0) == [None, b"4"]


def test_beyond_the_limit_the_one_that_was_put_first_is_forgotten():
    kept = Expiring(max_values=2)
    for key in ("a", "b", "a", "c"):
        kept.put(key, key.encode(), 10.0, now=0.0)
    assert kept.peek(["a", "b", "c"], 0.0) == [b"a", None, b"c"]
    assert len(kept) == 2


@pytest.mark.parametrize("alive", [1, 50, 1000])
def test_what_is_over_takes_no_more_room_than_what_is_not(alive):
    kept = Expiring()
    largest = 0
    for number in range(20 * alive):
        kept.put(str(number), b"", float(alive), now=float(number))
        largest = max(largest, len(kept))
    assert largest <= max(MIN_SWEEP, 2 * alive) + 1


def test_one_key_takes_one_place_however_often_it_is_put():
    kept = Expiring()
    for number in range(10_000):
        kept.put("a", b"%d" % number, 1000.0, now=float(number))
    assert len(kept) == 1


@given(
    st.lists(st.tuples(st.sampled_from(["put", "take", "wait"]), st.integers(0, 200), st.integers(1, 9)), max_size=400)
)
def test_it_answers_as_one_would_that_forgets_at_once(story):
    kept, model, now = Expiring(), {}, 0.0
    for act, number, amount in story:
        key = str(number)
        if act == "put":
            kept.put(key, b"%d" % amount, amount, now)
            model[key] = (now + amount, b"%d" % amount)
        elif act == "take":
            until, value = model.pop(key, (now, None))
            assert kept.take(key, now) == (value if until > now else None)
        else:
            now += amount
    keys = [str(number) for number in range(201)]
    assert kept.peek(keys, now) == [
        value if until > now else None for until, value in (model.get(k, (now, None)) for k in keys)
    ]
