"""What clients send: whatever it is, it fits or is refused."""

import json
from typing import Annotated, Any, Literal, NewType, TypeVar, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Discriminator, Field, RootModel, Tag, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.incoming import (
    MAX_ERROR_CHARS,
    MAX_ERRORS,
    MAX_REPORT_BYTES,
    Decoder,
    InvalidMessageError,
    decoder_for,
    error_message,
)

examples = settings(max_examples=60, deadline=None)


class Say(BaseModel):
    type: Literal["say"]
    text: str


class Move(BaseModel):
    type: Literal["move"]
    x: int
    y: int = 0


class Strict(BaseModel, extra="forbid"):
    name: str


Line = NewType("Line", str)
Blob = NewType("Blob", bytes)
ShortLine = NewType("ShortLine", Annotated[str, Field(max_length=3)])
AliasedLine = TypeAliasType("AliasedLine", Annotated[str, Field(max_length=3)])
Command = Annotated[Say | Move, Field(discriminator="type")]


def errors_of(message_type, payload):
    with pytest.raises(InvalidMessageError) as caught:
        Decoder(message_type).decode(payload)
    return caught.value.errors


# Text and bytes


@pytest.mark.parametrize("message_type", [str, Line, Annotated[str, "a mark"], Annotated[Line, Field(max_length=9)]])
@pytest.mark.parametrize("payload", ["", "text", '{"a":1}', "ü\x00"])
def test_a_text_type_takes_text_frames_as_they_are(message_type, payload):
    assert Decoder(message_type).decode(payload) == payload


@pytest.mark.parametrize("message_type", [str, Line, AliasedLine, Annotated[str, Field(max_length=3)]])
def test_a_text_type_refuses_a_binary_frame(message_type):
    [error] = errors_of(message_type, b"abc")
    assert error == {"type": "frame_type", "loc": [], "msg": "Input should be a text frame"}


@pytest.mark.parametrize("message_type", [bytes, Blob, Annotated[bytes, "a mark"]])
def test_a_bytes_type_takes_binary_frames_only(message_type):
    assert Decoder(message_type).decode(b"\x00\xff") == b"\x00\xff"
    [error] = errors_of(message_type, "abc")
    assert error["msg"] == "Input should be a binary frame"


@pytest.mark.parametrize("message_type", [str | bytes, bytes | str, Line | Blob, Annotated[str | Blob, "mark"]])
def test_a_union_of_both_takes_both_as_they_are(message_type):
    decoder = Decoder(message_type)
    assert decoder.decode("1") == "1"
    assert decoder.decode(b"1") == b"1"


@pytest.mark.parametrize("message_type", [ShortLine, AliasedLine, Annotated[str, Field(max_length=3)]])
def test_a_text_type_with_limits_is_validated(message_type):
    assert Decoder(message_type).decode("abc") == "abc"
    [error] = errors_of(message_type, "abcd")
    assert error["type"] == "string_too_long"


@pytest.mark.parametrize(
    ("message_type", "payload"),
    [(Annotated[str, Field(max_length=1)] | bytes, "long"), (Annotated[bytes, Field(max_length=1)] | str, b"long")],
)
def test_a_frame_that_does_not_fit_its_part_of_a_union_is_not_turned_into_the_other_part(message_type, payload):
    assert errors_of(message_type, payload)


def test_a_validator_on_text_may_return_anything():
    assert Decoder(Annotated[str, AfterValidator(len)]).decode("four") == 4


# JSON


@pytest.mark.parametrize("frame", [str, str.encode])
@pytest.mark.parametrize(
    ("message_type", "payload", "value"),
    [
        (int, "3", 3),
        (Any, '{"a": [1]}', {"a": [1]}),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Literal["a"], '"a"', "a"),
        (Say, '{"type":"say","text":"hi"}', Say(type="say", text="hi")),
        (Command, '{"type":"move","x":1}', Move(type="move", x=1)),
        (Say | Move, '{"type":"move","x":1}', Move(type="move", x=1)),
        (RootModel[list[int]], "[1,2]", RootModel[list[int]]([1, 2])),
        (NewType("Number", int), "3", 3),
    ],
)
def test_any_other_type_is_json_from_a_text_or_a_binary_frame(frame, message_type, payload, value):
    assert Decoder(message_type).decode(frame(payload)) == value


@pytest.mark.parametrize(
    ("message_type", "payload", "expected"),
    [
        (Say, "{", ("json_invalid", [])),
        (Say, '"say"', ("model_type", [])),
        (Say, '{"type":"say"}', ("missing", ["text"])),
        (Command, '{"type":"shout"}', ("union_tag_invalid", [])),
        (Command, "{}", ("union_tag_not_found", [])),
        (list[int], '[1,"x"]', ("int_parsing", [1])),
        (int, b"\xff", ("json_invalid", [])),
        (int, "[" * 100_000, ("json_invalid", [])),
        (int, "1" * 5_000, ("json_invalid", [])),
        (int, '"\\ud800"', ("json_invalid", [])),
        (Any, "", ("json_invalid", [])),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place_and_the_kind(message_type, payload, expected):
    error = errors_of(message_type, payload)[0]
    assert (error["type"], error["loc"]) == expected


# Unions of JSON with what is taken as it is


T = TypeVar("T")
Or = TypeAliasType("Or", Union[T, bytes], type_params=(T,))  # noqa: UP007 - `T | bytes` before 3.12 has no parameters
Whole = TypeAliasType("Whole", Say | bytes)
SAY = '{"type":"say","text":"hi"}'


@pytest.mark.parametrize(
    "message_type",
    [
        Say | bytes,
        bytes | Say,
        Say | Blob,
        Or[Say],
        Whole,
        Annotated[Say | bytes, "a mark"],
        NewType("Named", Say | bytes),
        Command | Annotated[bytes, Field(max_length=40)],
    ],
)
def test_a_binary_frame_is_the_bytes_of_a_union_and_a_text_frame_the_rest(message_type):
    decoder = Decoder(message_type)
    assert decoder.decode(SAY) == Say(type="say", text="hi")
    assert decoder.decode(SAY.encode()) == SAY.encode()
    assert decoder.decode(b"\xff") == b"\xff"
    for text in ('"abc"', "abc", ""):
        assert errors_of(message_type, text)


@pytest.mark.parametrize("message_type", [Say | str, str | Say, Line | Say, Annotated[Say | str, "a mark"]])
def test_a_text_that_is_not_the_rest_of_a_union_is_its_str(message_type):
    decoder = Decoder(message_type)
    assert decoder.decode(SAY) == decoder.decode(SAY.encode()) == Say(type="say", text="hi")
    for text in ("hello", '"hello"', "null", "", '{"type":"say"}', '{"type":"ping"}'):
        assert decoder.decode(text) == text
    assert errors_of(message_type, b"hello")


@pytest.mark.parametrize(
    ("message_type", "payload", "value"),
    [
        (Say | str | bytes, "hello", "hello"),
        (Say | str | bytes, SAY, Say(type="say", text="hi")),
        (Say | str | bytes, SAY.encode(), SAY.encode()),
        (str | None, "hello", "hello"),
        (str | None, "null", None),
        (str | int, '"x"', '"x"'),
        (str | int, "5", 5),
        (bytes | None, "null", None),
        (bytes | None, b"null", b"null"),
        (dict[str, int] | str, '{"a": "x"}', '{"a": "x"}'),
        (Or[str], "5", "5"),
        (Annotated[Line | bytes, Field(min_length=1)] | Say, b"x", b"x"),
    ],
)
def test_what_has_a_frame_of_its_own_keeps_it_in_a_union(message_type, payload, value):
    assert Decoder(message_type).decode(payload) == value


def test_the_part_of_a_union_that_has_the_frame_says_what_is_wrong():
    short = Say | ShortLine | bytes
    assert [error["type"] for error in errors_of(short, "long")] == ["string_too_long"]
    assert [(error["type"], error["loc"]) for error in errors_of(short, '{"type":"say"}')] == [("missing", ["text"])]
    assert [error["type"] for error in errors_of(Say | Annotated[bytes, Field(max_length=3)], b"long")] == [
        "bytes_too_long"
    ]


@pytest.mark.parametrize(
    "message_type",
    [
        Annotated[Say | Move | bytes, Field(discriminator="type")],
        Annotated[Say | str, Field(discriminator="type")],
        Annotated[
            Annotated[Say, Tag("say")] | Annotated[Move, Tag("move")] | bytes, Discriminator(lambda value: "say")
        ],
    ],
)
def test_a_mark_that_no_frame_can_carry_is_refused_with_the_type_to_write(message_type):
    with pytest.raises(ConfigurationError, match=r"around these alone: Annotated\[A \| B, Field\(.*\)\] \| bytes"):
        Decoder(message_type)


@pytest.mark.parametrize("message_type", [bytearray, Say | bytearray, Annotated[bytearray, "a mark"]])
def test_no_frame_is_a_bytearray(message_type):
    with pytest.raises(ConfigurationError, match="take bytes"):
        Decoder(message_type)


# Reports


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("message_type", "payload"),
    [
        (Say, json.dumps({"type": "say", "text": [SECRET]})),
        (Say, json.dumps([SECRET])),
        (Say, f'{{"type":"say","text":"{SECRET}'),
        (int, json.dumps(SECRET)),
        (list[int], json.dumps([SECRET, {"a": SECRET}])),
        (Command, json.dumps({"type": "move", "x": SECRET})),
        (Annotated[str, Field(max_length=3)], SECRET),
        (Annotated[str, Field(pattern="^x$")], SECRET),
        (bytes, SECRET),
        (Strict, json.dumps({"name": "a", "extra": SECRET})),
    ],
)
def test_an_error_report_does_not_carry_what_the_client_sent(message_type, payload):
    for error in errors_of(message_type, payload):
        assert set(error) == {"type", "loc", "msg"}
        assert SECRET not in json.dumps(error)


def test_an_error_report_says_so_much_and_no_more():
    assert len(errors_of(list[int], json.dumps(["x"] * 1000))) == MAX_ERRORS
    assert len(errors_of(list[int], json.dumps(["x"] * 3))) == 3


def test_texts_in_an_error_report_are_cut():
    [error] = errors_of(Strict, json.dumps({"name": "a", "k" * 10_000: 1}))
    assert error["loc"] == ["k" * MAX_ERROR_CHARS]


class Tree(BaseModel, extra="forbid"):
    name: int = 0
    child: "Tree | None" = None
    others: dict[str, "Tree"] = {}


def nested(depth, key="child", leaf='{"x":1}'):
    return f'{{"{key}":' * depth + leaf + "}" * depth


def test_a_location_of_any_length_is_told_by_its_beginning_and_its_end():
    [error] = errors_of(Tree, nested(50))
    assert error["loc"] == [*["child"] * 8, "…", *["child"] * 6, "x"]
    [error] = errors_of(Tree, nested(15))
    assert error["loc"] == [*["child"] * 15, "x"]


def test_the_names_in_a_long_location_share_its_room():
    names = "".join(f'{{"others":{{"{letter * 200}":' for letter in "abcd") + '{"x":1}' + "}}" * 4
    [error] = errors_of(Tree, names)
    assert error["loc"] == [part for letter in "abcd" for part in ("others", letter * 44)] + ["x"]


def test_numbers_in_a_location_are_told_whole():
    [error] = errors_of(list[list[int]], "[[" + "1," * 1000 + '"x"]]')
    assert error["loc"] == [0, 1000]


@pytest.mark.parametrize(
    "payload",
    [
        nested(200, leaf="{" + ",".join(f'"{number}":1' for number in range(100)) + "}"),
        nested(30, leaf="{" + ",".join(f'"{number}":1' for number in range(100)) + "}"),
        json.dumps({"others": {"\x01" * 200 + str(number): {"x": 1} for number in range(20)}}),
        json.dumps({"😀" * 300 + str(number): 1 for number in range(20)}),
        nested(3, leaf=json.dumps({"\x01" * 9_000: 1})),
    ],
)
def test_a_report_is_bounded_in_size_whatever_the_client_sent(payload):
    errors = errors_of(Tree, payload)
    assert errors
    assert len(error_message("invalid_message", errors=errors).payload) <= MAX_REPORT_BYTES + 100


class Complaining(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def complain(cls, name: str) -> str:
        raise PydanticCustomError("odd" * 1000, "{name}", {"name": name})  # type: ignore[arg-type]


def test_one_error_alone_is_told_and_bounded_too():
    [error] = errors_of(
        dict[str, dict[str, Complaining]], json.dumps({"\x01" * 999: {"\x01" * 999: {"name": "\x01" * 999}}})
    )
    assert [len(part) for part in error["loc"]] == [133, 133, 4]
    assert len(error["type"]) == len(error["msg"]) == MAX_ERROR_CHARS
    assert len(json.dumps(error)) <= MAX_REPORT_BYTES


def test_an_unknown_tag_is_not_quoted():
    [error] = errors_of(Command, json.dumps({"type": SECRET}))
    assert error["type"] == "union_tag_invalid"
    assert SECRET not in json.dumps(error)
    assert "found using 'type' should be one of" in error["msg"]


class Wordy(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def complain(cls, name: str) -> str:
        raise ValueError("no " * 1000)


def test_long_texts_of_validators_are_cut():
    [error] = errors_of(Wordy, json.dumps({"name": "a"}))
    assert len(error["msg"]) == MAX_ERROR_CHARS


def test_an_error_shows_nothing_when_it_is_logged():
    with pytest.raises(InvalidMessageError, match=r"^invalid message$") as caught:
        Decoder(Annotated[str, Field(max_length=3)]).decode(SECRET)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_error_frame_says_what_kind_it_is():
    message = error_message("invalid_message", errors=[{"type": "missing", "loc": ["text"], "msg": "Field required"}])
    assert message.is_text
    assert json.loads(message.payload) == {
        "type": "error",
        "code": "invalid_message",
        "errors": [{"type": "missing", "loc": ["text"], "msg": "Field required"}],
    }


def test_what_a_validator_of_the_app_raises_by_mistake_is_not_the_clients_fault():
    def broken(value):
        raise KeyError(value)

    with pytest.raises(KeyError):
        Decoder(Annotated[str, AfterValidator(broken)]).decode("a")


TYPES = [
    str,
    bytes,
    str | bytes,
    ShortLine,
    int,
    Any,
    Say,
    Command,
    Strict,
    dict[str, int],
    list[Command],
    Annotated[str, Field(pattern="^a+$")],
    Annotated[bytes, Field(max_length=3)] | Annotated[str, Field(max_length=3)],
    Say | ShortLine | Annotated[bytes, Field(max_length=3)],
]
DECODERS = {str(message_type): Decoder(message_type) for message_type in TYPES}


@examples
@given(
    st.text(st.characters(), max_size=50)
    | st.binary(max_size=50)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["say", "move", "type", "name"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["type", "text", "x", "name"]) | st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ).map(json.dumps)
)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_arbitrary_payloads_fit_or_are_refused_with_a_report_that_can_be_sent(decoder, payload):
    try:
        decoder.decode(payload)
    except InvalidMessageError as error:
        errors = error.errors
    else:
        return
    assert 1 <= len(errors) <= MAX_ERRORS
    assert json.loads(error_message("invalid_message", errors=errors).payload)["errors"] == errors


# Decoders that are shared


def test_a_decoder_is_built_once_for_each_type():
    assert decoder_for(Say) is decoder_for(Say)
    assert decoder_for(Say) is not decoder_for(Move)


def test_a_type_that_cannot_be_hashed_has_a_decoder_too():
    marked = Annotated[str, ["a mutable mark"]]
    assert decoder_for(marked).decode("a") == "a"


def test_a_decoder_that_was_built_before_is_taken_as_it_is():
    decoder = Decoder(Say)
    assert decoder_for(decoder) is decoder


class Cat(BaseModel):
    name: str


class Dog(BaseModel):
    name: str


def test_types_that_are_equal_but_for_the_order_of_a_union_do_not_share_a_decoder():
    # Where several parts fit, pydantic takes the first; Python calls the two unions equal.
    assert type(decoder_for(Cat | Dog).decode('{"name":"x"}')) is Cat
    assert type(decoder_for(Dog | Cat).decode('{"name":"x"}')) is Dog


def test_a_type_that_pydantic_cannot_validate_fails_when_the_decoder_is_built():
    class Opaque:
        pass

    with pytest.raises(ConfigurationError, match=r"(?s)Opaque.*Take str, bytes or a type"):
        decoder_for(Opaque)
