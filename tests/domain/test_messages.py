"""What an app sends, and what becomes of it on the wire."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, computed_field, model_serializer
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from fastapi_rooms.domain.errors import ConfigurationError, MessageError, RoomsError
from fastapi_rooms.domain.messages import Close, Message, MessageType, encode, is_bare_control, is_control

examples = settings(max_examples=60, deadline=None)
SURROGATE = "\ud800"


class Say(BaseModel):
    text: str
    at: datetime


@dataclass
class Point:
    x: int
    y: float


class Colour(Enum):
    RED = "red"


def sent(message, message_type=None):
    """Encode; return (is it text, payload)."""
    encoded = encode(message, message_type)
    assert isinstance(encoded, Message)
    return encoded.is_text, encoded.payload


def read_frames(data):
    """Decode server frames with a library that is not ours."""
    client = Protocol(CLIENT, state=OPEN, max_size=None)
    client.receive_data(data)
    assert client.parser_exc is None
    return client.events_received()


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


# Inference


def test_a_str_is_inferred_as_text():
    assert sent("grüße") == (True, "grüße".encode())
    assert sent("") == (True, b"")


def test_a_str_that_looks_like_json_stays_as_it_is():
    assert sent('{"a": 1}') == (True, b'{"a": 1}')
    assert sent('{"a": ') == (True, b'{"a": ')


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_inferred_as_binary(kind):
    assert sent(kind(b"\x00\xff")) == (False, b"\x00\xff")


def test_a_memoryview_with_gaps_is_sent_without_them():
    assert sent(memoryview(b"abcdef")[::2]) == (False, b"ace")


def test_a_bytearray_that_changes_afterwards_does_not_change_the_message():
    data = bytearray(b"before")
    message = encode(data)
    data[:] = b"after!"
    assert message.payload == b"before"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (None, b"null"),
        (True, b"true"),
        (7, b"7"),
        ({"a": [1, 2.5, "ü"]}, '{"a":[1,2.5,"ü"]}'.encode()),
        ((1, 2), b"[1,2]"),
        (Say(text="hi", at=datetime(2026, 1, 2, tzinfo=UTC)), b'{"text":"hi","at":"2026-01-02T00:00:00Z"}'),
        (Point(1, 2.0), b'{"x":1,"y":2.0}'),
        ({"when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}, b'{"when":"2026-01-02T03:04:05Z"}'),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (Decimal("1.50"), b'"1.50"'),
        (Colour.RED, b'"red"'),
        ([Say(text="a", at=datetime(2026, 1, 2, tzinfo=UTC)), Point(0, 0.5)],
         b'[{"text":"a","at":"2026-01-02T00:00:00Z"},{"x":0,"y":0.5}]'),
        ({"data": b"text"}, b'{"data":"text"}'),
        (-(2**70), b"-1180591620717411303424"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("message_type", [None, MessageType.JSON, "json"])
def test_anything_else_is_json_by_pydantic(message, expected, message_type):
    assert sent(message, message_type) == (True, expected)


def test_nan_and_the_infinities_become_null():
    assert sent([math.nan, math.inf, -math.inf, 1.5]) == (True, b"[null,null,null,1.5]")


def test_what_is_encoded_already_is_returned_as_it_is():
    message, close = encode("a"), Close(4000)
    assert encode(message) is message
    assert encode(close) is close


def test_a_message_type_may_be_given_by_its_value():
    assert sent("a", "bytes") == (False, b"a")


@pytest.mark.parametrize("unknown", ["TEXT", "xml", "", 3, ["text"]])
def test_an_unknown_message_type_is_refused_with_the_known_ones(unknown):
    with pytest.raises(ConfigurationError, match="text, json, bytes, ping, pong, close, or None to infer it"):
        encode("a", unknown)


# TEXT and BYTES


def test_text_takes_bytes_that_are_utf8():
    assert sent("grüße".encode(), MessageType.TEXT) == (True, "grüße".encode())
    assert sent(bytearray(b"a"), MessageType.TEXT) == (True, b"a")


def test_text_refuses_bytes_that_are_not_utf8():
    with pytest.raises(MessageError, match=r"MessageType\.BYTES"):
        encode(b"\xff", MessageType.TEXT)


@pytest.mark.parametrize("message", [None, 1, {"a": 1}, ["a"]])
@pytest.mark.parametrize("message_type", [MessageType.TEXT, MessageType.BYTES])
def test_text_and_bytes_refuse_what_is_neither(message, message_type):
    with pytest.raises(MessageError, match=f"{type(message).__name__}: use MessageType.JSON"):
        encode(message, message_type)


def test_bytes_sends_a_str_as_its_utf8():
    assert sent("ü", MessageType.BYTES) == (False, b"\xc3\xbc")
    assert sent(b"\xff", MessageType.BYTES) == (False, b"\xff")


@pytest.mark.parametrize("message_type", [None, *(kind for kind in MessageType if kind is not MessageType.CLOSE)])
def test_a_lone_surrogate_is_refused_at_the_sender_whatever_the_type(message_type):
    with pytest.raises(MessageError):
        encode("a" + SURROGATE, message_type)


# JSON that is encoded already


@pytest.mark.parametrize(
    "ready", ['{"a": [1, 2]}', " 1 ", '"text"', "null", '{"a":1,"a":2}', '"\\u00fc"', "ü".join('""')]
)
def test_json_given_as_str_or_bytes_is_passed_on_byte_for_byte(ready):
    assert sent(ready, MessageType.JSON) == (True, ready.encode())
    assert sent(ready.encode(), MessageType.JSON) == (True, ready.encode())
    assert sent(memoryview(ready.encode()), MessageType.JSON) == (True, ready.encode())


@pytest.mark.parametrize(
    "ready",
    ["", "{", "{'a': 1}", "[1,]", "01", "NaN", "[Infinity]", "-Infinity", '"\x01"', "a", '{"a":1} x', "\ufeff1",
     '"\\ud800"', "[" * 5000 + "]" * 5000],
)  # fmt: skip
def test_a_str_that_is_not_json_is_refused_when_json_was_asked_for(ready):
    with pytest.raises(MessageError, match=r"JSON was asked for, but the str is not JSON.*MessageType\.TEXT"):
        encode(ready, MessageType.JSON)


def test_bytes_that_are_not_utf8_are_refused_when_json_was_asked_for():
    with pytest.raises(MessageError):
        encode(b'"\xff"', MessageType.JSON)


@examples
@given(st.text(st.characters(), max_size=30) | st.sampled_from('[]{},:"0e1.-nulltrue \\u').map(str))
def test_no_text_is_taken_for_json_that_the_standard_library_refuses(text):
    try:
        payload = encode(text, MessageType.JSON).payload
    except MessageError:
        return
    json.loads(payload, parse_constant=pytest.fail)


# What cannot be encoded


class Opaque:
    pass


class BrokenModel(BaseModel):
    @model_serializer
    def serialise(self):
        raise KeyError("inside the app")


class BrokenProperty(BaseModel):
    @computed_field
    @property
    def value(self) -> int:
        raise RuntimeError("inside the app")


def broken_generator():
    yield 1
    raise OSError("inside the app")


def circular():
    value = {}
    value["self"] = [value]
    return value


@pytest.mark.parametrize(
    "make",
    [
        Opaque,
        lambda: {"a": [Opaque()]},
        BrokenModel,
        BrokenProperty,
        broken_generator,
        circular,
        lambda: nested(300),
        lambda: nested(50_000),
        lambda: {"a": SURROGATE},
        lambda: {SURROGATE: 1},
        lambda: {"a": b"\xff"},
        lambda: range(3),
    ],
)
@pytest.mark.parametrize("message_type", [None, MessageType.JSON, MessageType.PING, MessageType.PONG])
def test_what_cannot_be_encoded_is_a_message_error_with_its_cause(make, message_type):
    with pytest.raises(
        MessageError, match=r"cannot be encoded as JSON.*Send a str, bytes, or something that"
    ) as caught:
        encode(make(), message_type)
    assert isinstance(caught.value, RoomsError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is not None


def test_reasonable_nesting_is_encoded():
    assert sent(nested(150)) == (True, b"[" * 151 + b"]" * 151)


# PING and PONG


@pytest.mark.parametrize("kind", ["ping", "pong"])
@pytest.mark.parametrize(
    ("data", "extra"),
    [
        (None, ""),
        ("", ""),
        (0, ',"data":0'),
        (False, ',"data":false'),
        ("12:00", ',"data":"12:00"'),
        ({"t": 1}, ',"data":{"t":1}'),
        ([], ',"data":[]'),
    ],
)
def test_ping_and_pong_are_application_messages_with_optional_data(kind, data, extra):
    assert sent(data, kind) == (True, f'{{"type":"{kind}"{extra}}}'.encode())


@pytest.mark.parametrize("kind", [MessageType.PING, MessageType.PONG])
def test_a_control_message_is_recognised_by_the_receiver(kind):
    assert is_control(encode(None, kind).payload) is kind
    assert is_control(encode({"any": 1}, kind).payload.decode()) is kind


@pytest.mark.parametrize(
    "payload",
    ["", "ping", '"ping"', "[]", "null", "{}", '{"type":"say"}', '{"type":["ping"]}', '{"type":null}',
     '{"type":"close"}', '{"type":"PING"}', b"\xff", "[" * 5000],
)  # fmt: skip
def test_anything_else_is_no_control_message(payload):
    assert is_control(payload) is None


@examples
@given(st.text(st.characters(), max_size=20) | st.binary(max_size=20) | st.just(SURROGATE))
def test_looking_for_a_control_message_never_fails(payload):
    assert is_control(payload) is None


# CLOSE


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (None, 1000, ""),
        ("", 1000, ""),
        ("bye", 1000, "bye"),
        (4001, 4001, ""),
        ((4001, "bye"), 4001, "bye"),
        ([4001, "bye"], 4001, "bye"),
        ((1000, "x" * 200), 1000, "x" * 123),
    ],
)
def test_close_takes_nothing_or_a_code_or_a_reason_or_both(message, code, reason):
    close = encode(message, MessageType.CLOSE)
    assert isinstance(close, Close)
    assert (close.code, close.reason) == (code, reason)


@pytest.mark.parametrize(
    "message", [True, False, 1.5, b"bye", {"code": 4000}, (4000,), ("bye", 4000), (4000, "bye", 1), []]
)
def test_close_refuses_any_other_form(message):
    with pytest.raises(MessageError, match=r"CLOSE takes None, a code, a reason or \(code, reason\)"):
        encode(message, MessageType.CLOSE)


@pytest.mark.parametrize("message", [1005, 1006, (70_000, "x"), 0])
def test_close_refuses_a_code_that_may_not_be_sent(message):
    with pytest.raises(ConfigurationError, match="no close code"):
        encode(message, MessageType.CLOSE)


# On the wire


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("is_text", [True, False])
def test_a_frame_of_any_length_is_read_back_by_an_independent_library(size, is_text):
    message = encode("x" * size if is_text else b"\xff" * size)
    [frame] = read_frames(message.frame())
    assert frame.opcode is (Opcode.TEXT if is_text else Opcode.BINARY)
    assert bytes(frame.data) == message.payload
    assert (frame.fin, frame.rsv1, frame.rsv2, frame.rsv3) == (True, False, False, False)


@pytest.mark.parametrize(("size", "header"), [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)])
def test_a_frame_header_is_as_short_as_it_can_be(size, header):
    assert len(encode(b"x" * size).frame()) == header + size


@examples
@given(st.lists(st.text(max_size=200) | st.binary(max_size=200), max_size=5))
def test_frames_in_a_row_are_read_back_in_order(messages):
    encoded = [encode(message) for message in messages]
    read = read_frames(b"".join(message.frame() for message in encoded))
    assert [bytes(f.data).decode() if f.opcode is Opcode.TEXT else bytes(f.data) for f in read] == messages


def test_the_frame_is_built_once():
    message = encode("a")
    assert message.frame() is message.frame()


def test_an_asgi_event_carries_text_or_bytes():
    assert encode("grüße").asgi() == {"type": "websocket.send", "text": "grüße"}
    assert encode(b"\xff").asgi() == {"type": "websocket.send", "bytes": b"\xff"}
    assert encode({"a": "ü"}).asgi() == {"type": "websocket.send", "text": '{"a":"ü"}'}


def test_an_asgi_event_asked_for_twice_is_equal():
    message = encode(b"\xff")
    assert message.asgi() == message.asgi()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@examples
@given(json_values.filter(lambda value: not isinstance(value, str)))
def test_what_is_sent_as_json_is_what_any_json_parser_reads(value):
    is_text, payload = sent(value)
    assert is_text
    assert json.loads(payload) == value
    assert sent(payload, MessageType.JSON) == (True, payload)
    assert sent(payload.decode(), MessageType.JSON) == (True, payload)


@examples
@given(st.text(st.characters()) | st.binary() | json_values, st.none() | st.sampled_from(MessageType))
def test_encoding_anything_as_anything_gives_a_message_or_one_of_our_errors(value, message_type):
    try:
        encoded = encode(value, message_type)
    except RoomsError:
        return
    if isinstance(encoded, Message):
        assert len(encoded.payload) == encoded.size
        assert not encoded.is_text or encoded.payload.decode() == encoded.asgi()["text"]
    else:
        assert message_type is MessageType.CLOSE


def test_no_repr_shows_what_is_said():
    assert repr(encode("my secret")) == "<Message text, 9 B>"
    assert repr(encode(b"my secret")) == "<Message bytes, 9 B>"
    assert repr(Close(4000, "my secret")) == "<Close 4000>"


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ("ping", MessageType.PING),
        (b"ping", MessageType.PING),
        ("heartbeat", MessageType.PING),
        ("pong", MessageType.PONG),
        ("", MessageType.PONG),
        (b"", MessageType.PONG),
        ("PING", None),
        (" ping", None),
        ("ping" * 3, None),
        ('"ping"', None),
        (b"\xff", None),
        ("é", None),
    ],
)
def test_a_heartbeat_of_a_library_is_told_from_other_texts(payload, kind):
    assert is_bare_control(payload) is kind
