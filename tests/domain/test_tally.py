"""How many there are of each."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fastapi_rooms.domain.tally import Tally


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_it_counts_as_a_counter_does_and_keeps_nothing_of_what_there_is_none(moves):
    tally, counts = Tally(), Counter()
    for is_more, name in moves:
        if is_more:
            tally.add(name)
            counts[name] += 1
        elif counts[name]:
            tally.drop(name)
            counts[name] -= 1
    assert {name: tally[name] for name in "abc"} == {name: counts[name] for name in "abc"}
    assert bool(tally) == bool(+counts)
    assert tally._counts == +counts
