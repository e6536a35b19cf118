"""What may go into a close frame."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Close as CloseFrame

from fastapi_rooms.domain.close_codes import MAX_REASON_BYTES, CloseCode, check_close, may_reconnect
from fastapi_rooms.domain.errors import ConfigurationError, RoomsError

SENDABLE = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


@pytest.mark.parametrize("code", [-1, 0, 500, 1004, 1005, 1006, 1500, 2000, 5001, 65_535, 65_536, 70_000])
def test_a_code_that_would_reach_the_client_as_1006_is_refused(code):
    with pytest.raises(ConfigurationError, match=f"^{code} is no close code that may be sent: use 1000-1003"):
        check_close(code, "")


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 0, -1, 70_000])
def test_every_edge_of_the_allowed_ranges_is_refused_on_its_outer_side(code):
    with pytest.raises(ConfigurationError):
        check_close(code, "")


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4999])
def test_every_edge_of_the_allowed_ranges_is_taken_on_its_inner_side(code):
    assert check_close(code, "so it is") == (code, "so it is")


def test_a_refused_code_can_be_caught_as_a_value_error_and_as_ours():
    with pytest.raises(ValueError, match="1006") as caught:
        check_close(1006, "")
    assert isinstance(caught.value, RoomsError)


def test_a_code_of_ours_comes_back_as_a_plain_int():
    code, reason = check_close(CloseCode.TRY_AGAIN_LATER, "later")
    assert (type(code), code, reason) == (int, 1013, "later")


def test_a_reason_of_123_bytes_is_kept_and_one_of_124_is_cut():
    assert check_close(1000, "x" * 123) == (1000, "x" * 123)
    assert check_close(1000, "x" * 124) == (1000, "x" * 123)


def test_a_long_reason_is_cut_between_characters():
    assert check_close(1000, "€" * 42) == (1000, "€" * 41)  # three bytes each: 123
    assert check_close(1000, "x" + "€" * 41) == (1000, "x" + "€" * 40)  # the last one would end at byte 124


@pytest.mark.parametrize("reason", [None, 7, b"bytes"])
def test_a_reason_that_is_no_text_is_refused(reason):
    with pytest.raises(ConfigurationError, match="leave it out"):
        check_close(4000, reason)


def test_a_lone_surrogate_in_a_reason_becomes_a_question_mark():
    assert check_close(4000, "a\ud800b") == (4000, "a?b")


@settings(max_examples=100, deadline=None)
@given(st.integers(-10, 70_000), st.text(st.characters(), max_size=200))
def test_whatever_is_allowed_makes_a_close_frame_that_an_independent_library_reads(code, reason):
    try:
        checked = check_close(code, reason)
    except ConfigurationError:
        assert code not in SENDABLE
        return
    assert code in SENDABLE
    frame = CloseFrame(*checked).serialize()
    assert len(frame) <= 2 + MAX_REASON_BYTES
    back = CloseFrame.parse(frame)
    assert (back.code, back.reason) == checked
    assert reason.encode("utf-8", "replace").decode().startswith(back.reason)


def test_every_code_of_ours_can_be_sent_and_says_what_it_means():
    for code in CloseCode:
        assert check_close(code, "") == (int(code), "")
        assert code.meaning.endswith(".")
    assert CloseCode(4401) is CloseCode.LOGIN_EXPIRED


@pytest.mark.parametrize(
    "code",
    [None, 0, -1, 1, 999, 1001, 1004, 1005, 1006, 1011, 1012, 1013, 1014, 3000, 4000, 4401, 4408, 4499, 5000, 65_535],
)
def test_a_client_may_come_back(code):
    assert may_reconnect(code)


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4500, 4501, 4999])
def test_a_client_must_not_come_back(code):
    assert not may_reconnect(code)
