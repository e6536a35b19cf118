"""What a handler returns is sent as its annotation says: fields that the annotation does not have stay here."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Never, NoReturn, Union

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, SecretStr
from stage import FASTAPI
from typing_extensions import TypeAliasType, TypedDict

from fastapi_rooms import ConfigurationError, Incoming, MessageError, RoomsExtension
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.web.answer import Answer, read_answer
from fastapi_rooms.web.plan import make_plan, read_options


class Out(BaseModel):
    name: str


class DB(Out):
    password: str


class Other(BaseModel):
    number: int


class Named(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    full_name: str = Field(alias="fullName")


@dataclass
class Point:
    x: float


@dataclass
class Secret(Point):
    password: str = "hunter2"


class Typed(TypedDict):
    name: str


class Place(StrEnum):
    KITCHEN = "kitchen"


class OfAnOrm:
    name = "ann"
    password = "hunter2"


class Unknown:
    pass


ANN = DB(name="ann", password="hunter2")
NAME = '{"name":"ann"}'
Short = Annotated[str, Field(max_length=3)]


def returns(annotation: Any, value: Any = None) -> Callable[..., Any]:
    async def handler(message: Incoming[str]):
        return value

    handler.__annotations__["return"] = annotation
    return handler


def yields(annotation: Any, *values: Any) -> Callable[..., Any]:
    async def handler(message: Incoming[str]):
        for value in values:
            yield value

    handler.__annotations__["return"] = annotation
    return handler


def plain(annotation: Any, value: Any = None) -> Callable[..., Any]:
    def handler(message: Incoming[str]):
        return value

    handler.__annotations__["return"] = annotation
    return handler


SENT = [
    (Out, ANN, NAME),
    (Out, {"name": "ann", "password": "hunter2"}, NAME),
    (Out, OfAnOrm(), NAME),
    (Out | None, ANN, NAME),
    (Union[Other, Out], ANN, NAME),  # noqa: UP007 - the other spelling of a union
    (Out | str, ANN, NAME),
    (list[Out], [ANN], f"[{NAME}]"),
    (tuple[Out, ...], (ANN,), f"[{NAME}]"),
    (dict[str, Out], {"a": ANN}, f'{{"a":{NAME}}}'),
    (Annotated[Out, "documented"], ANN, NAME),
    (TypeAliasType("Alias", Out | None), ANN, NAME),
    (Typed, {"name": "ann"}, NAME),
    pytest.param(
        Point,
        Secret(float("nan")),
        '{"x":null}',
        marks=pytest.mark.skipif(FASTAPI < (0, 140), reason="this FastAPI answers it with an error"),
    ),
    (Named, Named(fullName="Ann"), '{"fullName":"Ann"}'),
    (int, 3, "3"),
    (bool, False, "false"),
    (Literal["yes"], "yes", '"yes"'),
]


@pytest.mark.parametrize(("annotation", "value", "text"), SENT)
def test_what_is_sent_is_what_an_http_route_answers(annotation, value, text):
    app = FastAPI()
    app.add_api_route("/", lambda: value, response_model=annotation)
    answer = read_answer(returns(annotation), annotation)
    assert answer is not None
    sent = answer.fit(value)
    assert (sent.payload.decode() if isinstance(sent, Message) else f'"{sent}"') == text
    with TestClient(app) as client:
        assert client.get("/").text == text


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Out | str, "text"), (Out | bytes, b"\x00"), (Short, "abc"), (Place, Place.KITCHEN), (Annotated[bytes, "b"], b"")],
)
def test_texts_and_bytes_stay_frames_of_their_kind(annotation, value):
    answer = read_answer(returns(annotation), annotation)
    assert answer is not None
    assert answer.fit(value) is value


@pytest.mark.parametrize(
    "annotation",
    [
        *(Any, object, None, Never, NoReturn, str, bytes, bytearray, memoryview, dict),
        *(str | None, str | bytes | None, dict[str, Any], dict[str, str] | None, Annotated[Any, "whatever"]),
        *(TypeAliasType("Text", str), AsyncIterator, AsyncIterator[str], AsyncGenerator[Any, None], Awaitable),
    ],
)
def test_an_annotation_that_leaves_nothing_out_costs_nothing(annotation):
    for function in (returns(annotation), plain(annotation)):
        assert make_plan(function, read_options("/ws")).answer is None


def test_without_an_annotation_all_is_sent():
    async def handler(message: Incoming[str]): ...

    assert make_plan(handler, read_options("/ws")).answer is None


async def text(message: Incoming[str]) -> "Out | None":
    return ANN


@pytest.mark.parametrize(
    "handler",
    [
        text,
        returns(Out, ANN),
        plain(Out, ANN),
        plain(Awaitable[Out], ANN),
        plain(Coroutine[Any, Any, Out], ANN),
        plain(TypeAliasType("Later", Awaitable[Out]), ANN),
        yields(AsyncIterator[Out], ANN),
        yields(AsyncIterable[Out], ANN),
        yields(AsyncGenerator[Out, None], ANN),
        yields(TypeAliasType("Stream", AsyncIterator[Out]), ANN),
        plain(AsyncIterator[Out], yields(None, ANN)("")),
    ],
)
async def test_whatever_the_kind_of_handler_its_client_sees_what_the_annotation_has(stage, handler):
    rooms = RoomsExtension()
    rooms.ws_route("/ws")(handler)
    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert await client.receive() == NAME


async def test_the_last_word_of_a_session_is_no_exception(rooms, stage, wire):
    @rooms.ws_route("/ws")
    async def session() -> Out:
        return ANN

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == NAME
        assert await client.closed() == (1000, "")


async def test_none_is_not_sent_and_what_a_stream_yields_is(rooms, stage):
    rooms.ws_route("/returns")(returns(Out | None, None))
    rooms.ws_route("/yields")(yields(AsyncIterator[Out | None], None, ANN))
    async with stage.plays(rooms) as server:
        async with server.client("/returns") as client:
            await client.send("go")
            await server.call(rooms.manager.broadcast, "first")
            assert await client.receive() == "first"
        async with server.client("/yields") as client:
            await client.send("go")
            assert [await client.receive(), await client.receive()] == ["null", NAME]


@pytest.mark.parametrize("handler", [returns(Out, Other(number=1)), yields(AsyncIterator[Out], ANN, Other(number=1))])
async def test_what_does_not_fit_is_an_error_of_the_server_and_says_how(rooms, stage, wire, tracebacks, handler):
    rooms.ws_route("/ws")(handler)
    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert await client.closed() == (1011, "")
    (traceback,) = tracebacks()
    assert (
        "MessageError: handler() returned Other, which does not fit its annotation <class 'test_answer.Out'> "
        "(name: Field required): return what it says, or change the annotation" in traceback
    )


def test_an_error_holds_nothing_of_the_value():
    with pytest.raises(MessageError, match=r"chat\(\) returned str.*\(it: Input should be") as refused:
        Answer("chat", Out).fit("hunter2")
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
    with pytest.raises(MessageError) as refused:
        Answer("chat", list[Out]).fit(["hunter2"] * 100)
    assert str(refused.value).count("Input should be") == 5


def test_what_cannot_be_encoded_says_so():
    def fails(value: str) -> str:
        raise ValueError("not today")

    with pytest.raises(MessageError, match=r"what chat\(\) returned cannot be encoded as JSON: .*not today"):
        Answer("chat", Annotated[SecretStr, PlainSerializer(fails)]).fit("hunter2")


@pytest.mark.parametrize("handler", [returns(Unknown), returns(list[Unknown]), yields(AsyncIterator[Unknown])])
def test_what_pydantic_does_not_know_is_refused_at_decoration(handler):
    with pytest.raises(
        ConfigurationError,
        match=r"handler\(\) returns .*Unknown.*, which pydantic does not know.*-> Any.*Unable to generate",
    ):
        RoomsExtension().ws_route("/ws")(handler)


def test_a_mark_that_does_not_go_with_its_type_is_refused_at_decoration():
    handler = returns(Annotated[Out | int, Field(discriminator="name")])
    with pytest.raises(ConfigurationError, match=r"handler\(\) returns .*Out \| int.*discriminat"):
        RoomsExtension().ws_route("/ws")(handler)


def test_a_long_place_in_what_does_not_fit_is_cut():
    with pytest.raises(MessageError) as refused:
        Answer("chat", dict[str, int]).fit({"k" * 10_000: "x"})
    assert str(refused.value).count("k") == 200


def test_a_stream_with_the_type_of_one_value_is_refused_at_decoration():
    with pytest.raises(ConfigurationError, match=r"handler\(\) yields, and says .*Out.*write -> AsyncIterator"):
        RoomsExtension().ws_route("/ws")(yields(Out))
    assert make_plan(yields(Any), read_options("/ws")).answer is None
