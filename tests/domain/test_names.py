"""What a room or a user may be called."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_rooms.domain.envelope import room_target, user_target
from fastapi_rooms.domain.errors import ConfigurationError, InvalidName, RefusedError
from fastapi_rooms.domain.names import MAX_NAME_BYTES, check_name


@pytest.mark.parametrize("name", ["a", "chat:42", "Küche", "日本語", "🦆", "a b", "~", "x" * 255, "é" * 127, "‍"])
def test_a_name_that_can_be_one_comes_back_as_it_is(name):
    assert check_name("room", name) is name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("a\nb", "control character"),
        ("a\x00", "control character"),
        ("\x7f", "control character"),
        ("\x85", "control character"),
        ("a\u2028b", "line break"),
        ("\ud800", "half of a surrogate pair"),
        ("x" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("🦆" * 64, "more than 255 bytes"),
        ("e\u0301", "normal form C"),
        ("\u212b", "normal form C"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_with_the_reason(name, why):
    with pytest.raises(InvalidName, match=why) as caught:
        check_name("room", name)
    assert isinstance(caught.value, ValueError | RefusedError)
    assert caught.value.code == "invalid_name"
    assert str(caught.value).isascii(), "the name itself is not repeated: it may be anything"


@pytest.mark.parametrize("name", [1, None, b"a", ["a"]])
def test_what_is_no_text_is_a_mistake_of_the_app(name):
    with pytest.raises(ConfigurationError, match="user_id takes a str"):
        check_name("user_id", name)


class Connection: ...


class WebSocket: ...


class ClaimedWebSocket(WebSocket): ...


@pytest.mark.parametrize("client", [Connection(), WebSocket(), ClaimedWebSocket()])
@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        ("room", r"the other way round, as in join_room\(connection, room\)\? .* send_personal\(connection, message\)"),
        ("user_id", r"write connection.user_id; or, .* send_personal\(connection, message\), close\(connection\)"),
        ("exclude_user", "write connection.user_id$"),
    ],
)
def test_who_names_a_client_in_place_of_a_room_or_a_user_is_told_what_was_meant(client, kind, meant):
    with pytest.raises(ConfigurationError, match=f"{kind} takes a str, not {type(client).__name__}: .*{meant}"):
        check_name(kind, client)


@given(st.text(st.characters(codec=None), max_size=300))
def test_what_is_taken_is_seen_short_and_spelt_in_one_way(name):
    try:
        check_name("room", name)
    except InvalidName:
        return
    assert 0 < len(name.encode()) <= MAX_NAME_BYTES
    assert unicodedata.normalize("NFC", name) == name
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


@pytest.mark.parametrize("target", [room_target, user_target])
def test_whoever_is_meant_has_a_name(target):
    with pytest.raises(InvalidName):
        target("")
