"""How many messages a connection may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_rooms.domain.rate import Rate


class Bucket:
    """A connection's: the rate, and the one number that is its own."""

    def __init__(self, per_second, burst):
        self._rate = Rate(per_second, burst)
        self._full_at = Rate.FULL

    def take(self, now):
        full_at = self._rate.take(self._full_at, now)
        if full_at is None:
            return False
        self._full_at = full_at
        return True


@pytest.mark.parametrize(("rate", "burst"), [(100, 1000), (1, 1), (0.1, 3), (3, 7), (1e6, 10)])
def test_a_full_bucket_gives_its_burst_and_not_one_more(rate, burst):
    bucket = Bucket(rate, burst)
    assert [bucket.take(5.0) for _ in range(burst + 2)] == [True] * burst + [False] * 2


def test_it_fills_at_its_rate():
    bucket = Bucket(10, 2)
    assert [bucket.take(1.0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(1.05)
    assert bucket.take(1.1001)
    assert not bucket.take(1.1002)
    assert [bucket.take(100.0) for _ in range(3)] == [True, True, False], "and no further than to its burst"


def test_what_is_refused_costs_nothing():
    bucket = Bucket(1, 1)
    assert bucket.take(0.0)
    for _ in range(1000):
        assert not bucket.take(0.5)
    assert bucket.take(1.001)


@given(
    rate=st.integers(1, 1000),
    burst=st.integers(1, 100),
    pauses=st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=200),
)
def test_in_no_stretch_of_time_more_is_let_through_than_its_burst_and_its_rate(rate, burst, pauses):
    bucket, now, taken = Bucket(rate, burst), 0.0, []
    for pause in pauses:
        now += pause
        if bucket.take(now):
            taken.append(now)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - start) * rate + 0.01


@given(rate=st.integers(1, 1000), burst=st.integers(1, 100), number=st.integers(1, 300))
def test_who_keeps_to_the_rate_is_never_refused(rate, burst, number):
    bucket = Bucket(rate, burst)
    assert all(bucket.take(count / rate + 1e-9 * count) for count in range(number))
