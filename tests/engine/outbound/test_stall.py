"""When a peer is given up: time is an argument, and so is what is found."""

import pytest

from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.outbound.stall import Behind, Stall

MIB = 1024 * 1024


def behind(taken=0, held=5, *, is_closing=False):
    return Behind(taken, held, is_closing)


def test_a_peer_that_takes_nothing_for_the_whole_time_is_given_up():
    stall = Stall(RoomsSettings(send_timeout=10), 100, behind())
    assert [stall.look_again(now, behind()) for now in (102, 104, 106, 108, 109.9)] == [False] * 5
    assert [stall.look_again(now, behind()) for now in (110, 120)] == [True, True]


def test_a_node_that_was_behind_itself_holds_that_against_nobody():
    stall = Stall(RoomsSettings(send_timeout=10), 100, behind())
    assert not stall.look_again(160, behind()), "it did not look for a minute, nor write"
    assert not stall.look_again(167.9, behind())
    assert [stall.look_again(now, behind()) for now in (169, 171, 173, 174)] == [False, False, False, True]


def test_progress_begins_its_time_anew():
    stall = Stall(RoomsSettings(send_timeout=10), 100, behind())
    assert not stall.look_again(110, behind(taken=1)), "it took a byte"
    assert not any(stall.look_again(now, behind(taken=1)) for now in (112, 114, 116, 118, 119.9))
    assert stall.look_again(120, behind(taken=1))


def test_what_the_server_holds_is_counted_by_the_peer_and_else_by_what_was_written_so_any_other_number_is_progress():
    stall = Stall(RoomsSettings(send_timeout=2), 100, behind(taken=5000))
    assert not stall.look_again(101, behind(taken=5000))
    assert not stall.look_again(102, behind(taken=40, held=0)), "it has taken all that was held"
    assert not stall.look_again(103, behind(taken=40, held=0))
    assert stall.look_again(104, behind(taken=40, held=0))


@pytest.mark.parametrize(("send_timeout", "patience"), [(10, 1), (0.5, 0.5)])
def test_less_patience_is_had_with_a_peer_when_the_server_has_closed_its_socket(send_timeout, patience):
    closing = behind(is_closing=True)
    stall = Stall(RoomsSettings(send_timeout=send_timeout), 100, closing)
    assert not stall.look_again(100 + patience - 0.1, closing)
    goes_on = behind(taken=1, held=4, is_closing=True)
    assert not stall.look_again(100 + patience, goes_on)
    assert not stall.look_again(100 + 1.5 * patience, goes_on)
    assert not stall.look_again(100 + 2 * patience - 0.1, goes_on)
    assert stall.look_again(100 + 2 * patience, goes_on)


@pytest.mark.parametrize(
    ("looks", "is_given_up"),
    [
        # (held, taken so far) as each look finds it; the limit is 1 MiB
        ([(2 * MIB, 0), (3 * MIB, 10), (4 * MIB, 20)], True),
        ([(2 * MIB, 0), (3 * MIB, 10), (3 * MIB, 20), (4 * MIB, 30)], False),  # not twice in a row
        ([(2 * MIB, 0), (3 * MIB, 2 * MIB), (4 * MIB, 5 * MIB)], False),  # it took all, and got more from us
        ([(50_000, 0), (MIB - 1, 10), (MIB, 20), (MIB, 30)], False),  # within the limit
        ([(9 * MIB, 0), (8 * MIB, 10), (7 * MIB, 20)], False),  # one large message, read slowly
    ],
)
def test_a_peer_for_whom_the_server_holds_ever_more_than_we_have_written_is_given_up(looks, is_given_up):
    (held, taken), *rest = looks
    stall = Stall(RoomsSettings(send_timeout=1000, outbox_bytes=MIB), 0, behind(taken, held))
    found = [stall.look_again(number, behind(taken, held)) for number, (held, taken) in enumerate(rest)]
    assert found == [False] * (len(rest) - 1) + [is_given_up]


def test_the_limit_is_never_less_than_what_a_server_holds_anyway():
    stall = Stall(RoomsSettings(outbox_bytes=1), 0, behind(held=40_000))
    assert not any(stall.look_again(number, behind(held=41_000 + number)) for number in range(5))
