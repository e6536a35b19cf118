"""What clients send to a `ws_route`: kinds of messages, order, answers, streams, and everything that is wrong."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar, copy_context
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from stage import smallest_app
from support import RawClient, frames, live, until
from typing_extensions import TypedDict

from fastapi_rooms import (
    CloseCode,
    ConfigurationError,
    ConnectionDep,
    Incoming,
    ManagerDep,
    MessageType,
    RefusedError,
    RoomsExtension,
    RoomsSettings,
)
from fastapi_rooms.domain.incoming import reference_in
from fastapi_rooms.web.handlers import _is_as


class Say(BaseModel):
    type: Literal["say"]
    text: str


class Move(BaseModel):
    type: Literal["move"]
    x: int
    y: int


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["login"]
    password: SecretStr = Field(min_length=8, max_length=20)
    attempts: int = 0


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Book(TypedDict):
    title: str


Action = Annotated[Say | Move, Field(discriminator="type")]
SAY = '{"type":"say","text":"hi"}'
MOVE = '{"type":"move","x":1,"y":2}'


# What fits


@pytest.mark.parametrize(
    ("message_type", "sent", "expected"),
    [
        (str, "héllo", "'héllo'"),
        (str, "", "''"),
        (str, SAY, repr(SAY)),
        (bytes, b"\x00\xff", r"b'\x00\xff'"),
        (bytes, b"", "b''"),
        (Say | bytes, SAY, "Say(type='say', text='hi')"),
        (Say | bytes, SAY.encode(), repr(SAY.encode())),
        (Say | str, SAY, "Say(type='say', text='hi')"),
        (Say | str, "say", "'say'"),
        (str | bytes, "text", "'text'"),
        (str | bytes, b"data", "b'data'"),
        (Annotated[str, StringConstraints(to_upper=True)], "loud", "'LOUD'"),
        (Annotated[int, Ge(3)], "3", "3"),
        (Say, SAY, "Say(type='say', text='hi')"),
        (Say, SAY.encode(), "Say(type='say', text='hi')"),
        (Action, SAY, "Say(type='say', text='hi')"),
        (Action, MOVE, "Move(type='move', x=1, y=2)"),
        (Say | Move, MOVE, "Move(type='move', x=1, y=2)"),
        (Point, '{"x":1,"y":2}', "Point(x=1, y=2)"),
        (list[Point], '[{"x":1,"y":2}]', "[Point(x=1, y=2)]"),
        (Book, '{"title":"Emma"}', "{'title': 'Emma'}"),
        (dict[str, Any], '{"type":"ping"}', "{'type': 'ping'}"),
        (Any, "[1,null,true]", "[1, None, True]"),
        (type(None), "null", "None"),
    ],
)
async def test_a_handler_takes_its_type(rooms, stage, message_type, sent, expected):
    @rooms.ws_route("/handler")
    async def handler(message: Incoming[message_type]) -> str:
        return repr(message)

    @rooms.ws_route("/session")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(message_type):
            await connection.send(repr(message))

    async with stage.plays(rooms) as server:
        for path in ("/handler", "/session"):
            async with server.client(path) as client:
                await client.send(sent)
                assert await client.receive() == expected


async def test_messages_are_handled_one_after_the_other_in_order(rooms, stage, wire, loop):
    running = 0

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[int]) -> int:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(message % 5):  # the later ones would overtake
            await asyncio.sleep(0)
        running -= 1
        return message

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for number in range(200):
            await client.send(str(number))
        assert [await client.receive_json() for _ in range(200)] == list(range(200))


@pytest.mark.parametrize(
    ("returned", "frame"),
    [
        ("text", "text"),
        ("", ""),
        (b"\x00\xff", b"\x00\xff"),
        (Say(type="say", text="hi"), SAY),
        (Point(1, 2), '{"x":1,"y":2}'),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (0, "0"),
        (False, "false"),
        ([], "[]"),
    ],
)
async def test_a_value_that_a_handler_returns_is_sent_to_the_sender_alone(rooms, stage, wire, returned, frame):
    @rooms.ws_route("/ws", room="hall")
    async def handler(message: Incoming[str]) -> Any:
        return returned if message == "answer" else None

    async with stage.plays(rooms) as server, server.client("/ws") as client, server.client("/ws") as other:
        await client.send("nothing")
        await client.send("answer")
        assert await client.receive() == frame
        await until(lambda: rooms.manager.active_connections == 2)
        assert await server.call(rooms.manager.broadcast, "end") == 2
        assert await client.receive() == "end"
        assert await other.receive() == "end"


async def test_a_session_handler_may_return_a_last_word(rooms, stage, wire):
    @rooms.ws_route("/ws")
    async def session() -> dict[str, str]:
        return {"type": "bye"}

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive_json() == {"type": "bye"}
        assert await client.closed() == (1000, "")


@pytest.mark.parametrize("path", ["/handler", "/session"])
async def test_a_streamed_answer_is_sent_as_it_comes(rooms, stage, wire, loop, path):
    gate = {}

    async def answer():
        gate["event"] = asyncio.Event()
        yield "first"
        await gate["event"].wait()
        yield {"second": 2}
        yield b"third"

    @rooms.ws_route("/handler")
    async def handler(message: Incoming[str]):
        async for value in answer():
            yield value

    @rooms.ws_route("/session")
    async def session():
        async for value in answer():
            yield value

    async with stage.plays(rooms) as server, server.client(path) as client:
        if path == "/handler":
            await client.send("go")
        assert await client.receive() == "first"  # the generator waits, and only we can let it go on
        await server.call(gate["event"].set)
        assert await client.receive_json() == {"second": 2}
        assert await client.receive() == b"third"


async def test_a_streamed_answer_ends_when_its_client_goes(rooms, stage, wire, loop, tracebacks):
    ended = []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[str]):
        task = asyncio.current_task()
        try:
            while True:
                yield "more"
                await asyncio.sleep(0)
        finally:
            ended.append((message, asyncio.current_task() is task))

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("go")
        assert await client.receive() == "more"
        client.vanish()
        await until(lambda: ended)
    assert ended == [("go", True)], "it is closed where it ran, not by the garbage collector"
    assert tracebacks() == []


async def test_a_plain_function_runs_in_a_thread_of_its_own(rooms, stage, wire):
    threads = []

    @rooms.ws_route("/ws/{room_id}", room="{room_id}")
    def handler(room_id: str, message: Incoming[Say]) -> dict[str, str]:
        threads.append(threading.current_thread().name)
        return {room_id: message.text}

    async with stage.plays(rooms) as server, server.client("/ws/hall") as client:
        await client.send(SAY)
        assert await client.receive_json() == {"hall": "hi"}
    assert threads
    assert "uvicorn" not in threads


async def test_a_session_may_take_one_type_after_the_other(rooms, stage, wire):
    @rooms.ws_route("/ws")
    async def session(connection: ConnectionDep) -> None:
        async for login in connection.messages(Login):
            await connection.send(f"welcome {login.attempts}")
            break
        async for action in connection.messages(Action):
            await connection.send(repr(action))

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send({"type": "login", "password": "12345678", "attempts": 2})
        await client.send(SAY)
        await client.send(MOVE)
        assert await client.receive() == "welcome 2"
        assert await client.receive() == "Say(type='say', text='hi')"
        assert await client.receive() == "Move(type='move', x=1, y=2)"


async def test_two_iterators_at_once_are_told_apart_before_they_steal_from_each_other(rooms, stage):
    @rooms.ws_route("/ws")
    async def session(connection: ConnectionDep) -> None:
        first = asyncio.ensure_future(anext(connection.messages(str)))
        await asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="two iterators"):
            await anext(connection.messages(str))
        await connection.send("ready")
        await connection.send(await first)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        assert await client.receive() == "ready"
        await client.send("mine")
        assert await client.receive() == "mine"


# What does not fit


async def test_an_invalid_message_is_answered_with_an_error_frame_of_this_shape(rooms, stage, wire, loop, tracebacks):
    called = []

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[Say]) -> None:
        called.append(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send({"type": "say", "text": 7})
        assert await client.receive_json() == {
            "type": "error",
            "code": "invalid_message",
            "errors": [{"type": "string_type", "loc": ["text"], "msg": "Input should be a valid string"}],
        }
        await client.send({"type": "shout"})
        assert [error["loc"] for error in (await client.receive_json())["errors"]] == [["type"], ["text"]]
        await client.send(SAY)
        await until(lambda: called)
        assert rooms.manager.active_connections == 1
        assert rooms.manager.stats().dropped["invalid"] == 2
    assert called == [Say(type="say", text="hi")]
    assert tracebacks() == []


@pytest.mark.parametrize(
    ("message_type", "sent", "kind"),
    [(str, b"data", "text"), (bytes, "text", "binary"), (Annotated[str, Field(max_length=9)], b"data", "text")],
)
async def test_the_wrong_kind_of_frame_is_answered_with_an_error_frame(rooms, stage, message_type, sent, kind):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[message_type]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send(sent)
        assert await client.receive_json() == {
            "type": "error",
            "code": "invalid_message",
            "errors": [{"type": "frame_type", "loc": [], "msg": f"Input should be a {kind} frame"}],
        }


@pytest.mark.parametrize(
    "message",
    [
        {"type": "login", "password": "hunter2"},
        {"type": "login", "password": "hunter2" * 5},
        {"type": "login", "password": ["hunter2"]},
        {"type": "login", "password": "12345678", "attempts": "hunter2"},
        {"type": "login", "password": "12345678", "more": "hunter2"},
        {"type": "hunter2", "password": "12345678"},
        "hunter2",
        ["hunter2"],
    ],
)
async def test_an_error_frame_does_not_repeat_what_the_client_sent(rooms, stage, caplog, message):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[Login]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for sent in (json.dumps(message), json.dumps(message)[:-1]):
            await client.send(sent)
            error = await client.receive()
            assert json.loads(error)["code"] == "invalid_message"
            assert "hunter2" not in error
    assert "hunter2" not in caplog.text


async def test_an_error_frame_is_small_whatever_the_client_sent(rooms, stage):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[dict[str, Login]]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send({f"{number}{'k' * 2000}": {"nonsense" * 100: 1} for number in range(20)})
        assert len(await client.receive()) < 20_000


@pytest.mark.parametrize("path", ["/handler", "/session"])
async def test_ten_invalid_messages_in_a_row_close_with_1007(rooms, stage, wire, loop, tracebacks, path):
    @rooms.ws_route("/handler")
    async def handler(message: Incoming[Say]) -> str:
        return message.text

    @rooms.ws_route("/session")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(Say):
            await connection.send(message.text)

    async with stage.plays(rooms) as server, server.client(path) as client:
        for _ in range(9):
            await client.send("nonsense")
            assert (await client.receive_json())["code"] == "invalid_message"
        await client.send(SAY)
        assert await client.receive() == "hi"
        for _ in range(9):
            await client.send("nonsense")
            assert (await client.receive_json())["code"] == "invalid_message"
        await client.send({"type": "ping"})
        assert await client.receive_json() == {"type": "pong"}
        for _ in range(10):
            await client.send("nonsense")
            assert (await client.receive_json())["code"] == "invalid_message"
        assert (await client.closed())[0] == 1007
        assert rooms.manager.stats().dropped["invalid"] == 28
    assert tracebacks() == []


async def test_a_flood_of_invalid_messages_is_answered_ten_times_and_closed_with_1007(rooms, stage, wire):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[Say]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server:
        raw = RawClient(server, "/ws")
        for _ in range(200):
            raw.send_frame(1, b"nonsense")
        received = await asyncio.to_thread(raw.read_to_close)
        assert [kind for kind, _ in received] == [0x81] * 10 + [0x88]
        assert int.from_bytes(received[-1][1][:2], "big") == CloseCode.INVALID_DATA
        raw.close()


DEEP = 30_000

BAD_INPUTS = {
    "bytes where text is wanted": (str, b"\x00"),
    "bytes that are not UTF-8 where JSON is wanted": (Say, b"\xff\xfe"),
    "text where bytes are wanted": (bytes, "text"),
    "bad JSON": (Say, "{nonsense"),
    "a JSON that ends too early": (Say, '{"type":"say","text":"'),
    "two JSON values": (Say, SAY + SAY),
    "nothing but a blank": (Say, " "),
    "white space": (Say, " \n"),
    "a byte order mark": (Say, "\ufeff" + SAY),
    "deep nesting": (Any, "[" * DEEP + "]" * DEEP),
    "deep nesting of objects": (Any, '{"a":' * 5000 + "1" + "}" * 5000),
    "deep nesting in a field": (Say, '{"type":"say","text":' + "[" * DEEP + "]" * DEEP + "}"),
    "a lone surrogate": (Say, r'{"type":"say","text":"\ud800"}'),
    "a lone low surrogate": (Any, r'"\udc00"'),
    "a lone surrogate as a key": (Any, r'{"\ud800":1}'),
    "two high surrogates": (Any, r'"\ud800\ud800"'),
    "a huge integer in a field": (Move, '{"type":"move","x":' + "9" * 5000 + ',"y":1}'),
    "a huge integer": (Any, "9" * 60_000),
    "a huge integer as a text": (int, '"' + "9" * 60_000 + '"'),
    "NaN in an integer": (Move, '{"type":"move","x":NaN,"y":1}'),
    "infinity in an integer": (Move, '{"type":"move","x":1e999,"y":1}'),
    "NaN where a finite number is wanted": (Annotated[float, Field(allow_inf_nan=False)], "NaN"),
    "a null byte": (Say, "\x00"),
    "the wrong type at the top": (Say, "[]"),
    "no discriminator": (Action, "{}"),
    "an unhashable discriminator": (Action, '{"type":[]}'),
    "an unhashable type that is not a ping": (Say, '{"type":{"ping":1}}'),
}


@pytest.mark.parametrize("bad", BAD_INPUTS)
async def test_a_bad_input_is_answered_and_costs_nobody_anything(rooms, stage, wire, tracebacks, bad):
    message_type, payload = BAD_INPUTS[bad]

    @rooms.ws_route("/bad", room="hall")
    async def never(message: Incoming[message_type], manager: ManagerDep) -> None:
        raise AssertionError(message)

    @rooms.ws_route("/good", room="hall")
    async def good(message: Incoming[str], manager: ManagerDep) -> None:
        await manager.broadcast_to_room("hall", message)

    async with stage.plays(rooms) as server, server.client("/bad") as client, server.client("/good") as other:
        await client.send(payload)
        assert (await client.receive_json())["code"] == "invalid_message"
        await other.send("still here")
        assert await client.receive() == "still here"
        assert await other.receive() == "still here"
    assert tracebacks() == []


@pytest.mark.parametrize(
    ("payload", "frame"),
    [
        ("NaN", '{"got":null}'),
        ("-Infinity", '{"got":null}'),
        ("1e999", '{"got":null}'),
        ("9" * 4000, '{"got":%s}' % ("9" * 4000)),
        (r'"\ud83d\ude00"', '{"got":"😀"}'),
        (r'"\u0000"', r'{"got":"\u0000"}'),
        ("[" * 150 + "]" * 150, '{"got":%s}' % ("[" * 150 + "]" * 150)),
        ('{"a":1,"a":2}', '{"got":{"a":2}}'),
    ],
    ids=["NaN", "minus infinity", "overflow", "4000 digits", "a pair", "null byte", "150 deep", "twice"],
)
async def test_an_odd_input_that_a_handler_takes_can_be_sent_on(rooms, stage, wire, tracebacks, payload, frame):
    @rooms.ws_route("/ws", room="hall")
    async def handler(message: Incoming[Any], manager: ManagerDep) -> None:
        await manager.broadcast_to_room("hall", {"got": message})

    async with stage.plays(rooms) as server, server.client("/ws") as client, server.client("/ws") as other:
        await client.send(payload)
        assert await client.receive() == frame
        assert await other.receive() == frame
    assert tracebacks() == []


async def test_whatever_nesting_pydantic_takes_can_be_sent_back(rooms, stage, tracebacks):
    """Else a client could make a handler that sends on raise by choosing the right depth."""

    @rooms.ws_route("/ws")
    async def handler(message: Incoming[Any]) -> Any:
        return [message]

    taken = 0
    async with stage.plays(rooms) as server:
        for depth in range(180, 261, 4):
            async with server.client("/ws") as client:
                await client.send("[" * depth + "]" * depth)
                answer = await client.receive()
                taken += answer.startswith("[")
                assert answer.startswith("[") or json.loads(answer)["code"] == "invalid_message"
    assert taken > 0
    assert tracebacks() == []


async def test_text_that_is_not_utf8_is_closed_with_1007(rooms, stage, wire, loop, tracebacks):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[str]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server:
        for fragments in ([b"\xff\xfe"], [b"\xc3", b"\x28"]):
            async with server.client("/ws") as client:
                await client.websocket.send(iter(fragments) if len(fragments) > 1 else fragments[0], text=True)
                assert (await client.closed())[0] == 1007
        await until(lambda: rooms.manager.active_connections == 0)
    assert [t for t in tracebacks() if "Invalid UTF-8 sequence received from client" not in t] == []


async def test_fragmented_messages_arrive_whole(rooms, stage, wire, loop):
    @rooms.ws_route("/text")
    async def text(message: Incoming[str]) -> str:
        return message

    @rooms.ws_route("/json")
    async def read(message: Incoming[Say]) -> str:
        return message.text

    async with stage.plays(rooms) as server:
        raw = RawClient(server, "/text")
        raw.send_frame(1, "hé".encode()[:2], fin=False)
        raw.send_frame(9, b"ping between fragments")
        raw.send_frame(0, "hé".encode()[2:], fin=False)
        raw.send_frame(0, b"", fin=False)
        raw.send_frame(0, b"llo")
        raw.send_frame(1, b"", fin=False)
        raw.send_frame(0, b"")
        data = b""
        while len(data) < 24 + 8 + 2:
            data += await asyncio.to_thread(raw.socket.recv, 1024)
        assert frames(data) == [(0x8A, b"ping between fragments"), (0x81, "héllo".encode()), (0x81, b"")]
        raw.close()
        async with server.client("/json") as client:
            await client.websocket.send(iter(list(SAY)))
            assert await client.receive() == "hi"


@pytest.mark.parametrize(
    ("first", "payload"), [(0xC1, b"reserved bit"), (0x83, b"reserved opcode"), (0x80, b"nothing to continue")]
)
async def test_a_breach_of_the_protocol_is_closed_with_1002(rooms, stage, wire, tracebacks, first, payload):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[str]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server:
        raw = RawClient(server, "/ws")
        raw.socket.sendall(bytes((first, 0x80 | len(payload))) + bytes(4) + payload)
        received = await asyncio.to_thread(raw.read_to_close)
        assert int.from_bytes(received[-1][1][:2], "big") == 1002
        raw.close()
        await until(lambda: rooms.manager.active_connections == 0)
    assert tracebacks() == []


async def test_a_flood_of_pings_of_both_kinds_is_answered_in_full(rooms, stage, wire, loop, tracebacks):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[Say]) -> str:
        return message.text

    count = 900  # fewer than messages_burst
    async with stage.plays(rooms) as server:
        raw = RawClient(server, "/ws")

        def flood() -> bytes:
            data = b""
            for number in range(count):
                raw.send_frame(9, number.to_bytes(2, "big"))
                raw.send_frame(1, b'{"type":"ping"}')
                data += raw.socket.recv(1 << 16)
            raw.send_frame(1, SAY.encode())
            while not data.endswith(b"\x81\x02hi"):
                data += raw.socket.recv(1 << 16)
            return data

        received = frames(await asyncio.to_thread(flood))
        assert [p for kind, p in received if kind == 0x8A] == [n.to_bytes(2, "big") for n in range(count)]
        assert [p for kind, p in received if kind == 0x81] == [b'{"type":"pong"}'] * count + [b"hi"]
        raw.close()
    assert rooms.manager.stats().dropped["invalid"] == 0
    assert tracebacks() == []


# Too large


@pytest.mark.parametrize("oversized", ["x" * 65, b"x" * 65, "ü" * 33, "[" * 65], ids=["text", "bytes", "UTF-8", "JSON"])
@pytest.mark.parametrize("path", ["/handler", "/session"])
async def test_an_oversized_message_is_closed_with_1009(stage, wire, tracebacks, oversized, path):
    rooms = RoomsExtension(settings=RoomsSettings(wire=wire, max_message_bytes=64))
    seen = []

    @rooms.ws_route("/handler")
    async def handler(message: Incoming[str | bytes]) -> int:
        seen.append(message)
        return len(message)

    @rooms.ws_route("/session")
    async def session(connection: ConnectionDep) -> None:
        async for message in connection.messages(str | bytes):
            await connection.send(await handler(message))

    async with stage.plays(rooms) as server, server.client(path) as client:
        for fits in ("x" * 64, b"x" * 64):
            await client.send(fits)
            assert await client.receive() == "64"
        await client.send("ü" * 32)
        assert await client.receive() == "32"
        await client.send(oversized)
        assert await client.closed() == (1009, "a message may have 64 bytes")
    assert rooms.manager.stats().dropped["oversized"] == 1
    assert len(seen) == 3
    assert tracebacks() == []


async def test_the_default_limit_is_64_kib(rooms, stage):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[bytes]) -> int:
        return len(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send(bytes(64 * 1024))
        assert await client.receive_json() == 64 * 1024
        await client.websocket.send(iter([bytes(64 * 1024), b"x"]))
        assert (await client.closed())[0] == 1009


async def test_the_servers_own_limit_is_1009_too(rooms, wire, tracebacks):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[bytes]) -> None:
        raise AssertionError(message)

    with live(smallest_app(rooms), ws_max_size=100) as server:
        async with server.client("/ws") as client:
            await client.send(bytes(101))
            assert (await client.closed())[0] == 1009
        await until(lambda: rooms.manager.active_connections == 0)
    assert tracebacks() == []


# Pings and pongs


@pytest.mark.parametrize("message_type", [Say, Action, bytes, list[int]])
async def test_a_ping_that_the_handler_does_not_claim_is_answered_and_a_pong_ignored(
    rooms, stage, wire, tracebacks, message_type
):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[message_type]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for ping in ('{"type":"ping"}', ' {"data": 7, "type": "ping"} '):
            await client.send('{"type":"pong"}')
            await client.send(ping)
            assert await client.receive() == '{"type":"pong"}'
    assert rooms.manager.stats().dropped["invalid"] == 0
    assert tracebacks() == []


class Ping(BaseModel):
    type: Literal["ping"]


class Pong(BaseModel):
    type: Literal["pong"]


@pytest.mark.parametrize(
    "message_type", [str, Any, dict[str, str], Annotated[Ping | Pong | Say, Field(discriminator="type")]]
)
async def test_a_ping_or_pong_that_the_handler_claims_is_its_own(rooms, stage, message_type):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[message_type]) -> str:
        return "mine"

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for kind in ("ping", "pong"):
            await client.send({"type": kind})
            assert await client.receive() == "mine"


@pytest.mark.parametrize("message_type", [Say, Action, bytes, Any, Literal["ping"], Say | bytes])
async def test_the_heartbeats_of_libraries_are_answered_and_never_too_many(
    rooms, stage, wire, tracebacks, message_type
):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[message_type]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for _ in range(2 * rooms.manager.settings.max_invalid_messages):
            for unanswered in ("", "pong"):
                await client.send(unanswered)
            for ping in ("ping", "heartbeat"):
                await client.send(ping)
                assert await client.receive() == "pong"
    assert rooms.manager.stats().dropped["invalid"] == 0
    assert tracebacks() == []


async def test_a_heartbeat_in_a_binary_frame_is_one_too_where_json_is_taken(rooms, stage):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[Say]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for _ in range(2 * rooms.manager.settings.max_invalid_messages):
            await client.send(b"")
            await client.send(b"ping")
            assert await client.receive() == "pong"


@pytest.mark.parametrize("message_type", [str, str | bytes, Say | str, Annotated[str, Ge("a")]])
async def test_a_heartbeat_is_the_handlers_where_it_takes_texts(rooms, stage, message_type):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[message_type]) -> str:
        return f"got {message}"

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for text in ("ping", "pong", "heartbeat"):
            await client.send(text)
            assert await client.receive() == f"got {text}"


async def test_a_text_that_a_handler_of_texts_refuses_is_no_heartbeat(rooms, stage):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[Annotated[str, StringConstraints(min_length=9)]]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for text in ("", "ping"):
            await client.send(text)
            assert (await client.receive_json())["errors"][0]["type"] == "string_too_short"


async def test_heartbeats_count_against_the_rate(stage):
    rooms = RoomsExtension(settings=RoomsSettings(messages_per_second=1, messages_burst=3))

    @rooms.ws_route("/ws")
    async def never(message: Incoming[Say]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for _ in range(4):
            await client.send("ping")
        assert [await client.receive() for _ in range(3)] == ["pong"] * 3
        assert (await client.receive_json())["code"] == "rate_limited"
        for _ in range(100):
            await client.send("")
        assert await client.closed() == (1008, "too many messages")


@pytest.mark.parametrize(
    "text", ['{"type":"PING"}', '{"type":["ping"]}', '["ping"]', '"ping"', "PING", "pings", '{"ping":1}']
)
async def test_what_only_resembles_a_ping_is_an_invalid_message(rooms, stage, text):
    @rooms.ws_route("/ws")
    async def never(message: Incoming[Say]) -> None:
        raise AssertionError(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send(text)
        assert (await client.receive_json())["code"] == "invalid_message"


async def test_a_handler_may_ping_its_client(rooms, stage, wire):
    @rooms.ws_route("/ws")
    async def handler(message: Incoming[Say], connection: ConnectionDep) -> str:
        await connection.send(None, MessageType.PING)
        return "said"

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send(SAY)
        assert await client.receive_json() == {"type": "ping"}
        await client.send({"type": "pong"})
        assert await client.receive() == "said"
        await client.send(SAY)
        assert await client.receive_json() == {"type": "ping"}


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Incomparable:
    """A value that cannot be asked whether it equals another, as some arrays."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None


values: ContextVar[Incomparable | None] = ContextVar("values", default=None)


@pytest.mark.parametrize("path", ["/async", "/def", "/yields", "/streams", "/waits"])
async def test_a_context_variable_that_one_message_sets_is_gone_at_the_next(stage, rooms, path):
    def login() -> str:
        return "ann"

    async def outer() -> None:
        tenant.set("of the connection")
        values.set(Incomparable())

    def take(message: str) -> str:
        found = tenant.get()
        tenant.set(message)
        values.set(Incomparable())
        return found

    @rooms.ws_route("/async", dependencies=[outer], user_id=login)
    async def handle(message: Incoming[str]) -> str:
        return take(message)

    @rooms.ws_route("/def", dependencies=[outer])
    def plain(message: Incoming[str]) -> str:
        return take(message)

    @rooms.ws_route("/yields", dependencies=[outer])
    async def yields(message: Incoming[str]) -> AsyncIterator[str]:
        yield take(message)

    @rooms.ws_route("/streams", dependencies=[outer])
    async def streams(message: Incoming[str]) -> AsyncIterator[str]:
        return yields(message)

    @rooms.ws_route("/waits", dependencies=[outer])
    async def waits(message: Incoming[str], connection: ConnectionDep) -> None:
        found = take(message)
        await asyncio.sleep(0)
        assert tenant.get() == message
        await connection.send(found)

    async with stage.plays(rooms) as server, server.client(path) as client:
        for message in ("one", "two", "three"):
            await client.send(message)
            assert await client.receive() == "of the connection"


async def test_an_async_function_that_returns_a_generator_streams_it(stage, rooms):
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @rooms.ws_route("/ws")
    async def handle(message: Incoming[int]) -> Any:
        return count(message)

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        await client.send("3")
        assert [await client.receive() for _ in range(3)] == ["0", "1", "2"]


class Order(BaseModel):
    what: str


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ({"what": "known", "id": 7}, {"id": 7}),
        ({"what": "known", "ref": "a-1", "id": "b"}, {"id": "b", "ref": "a-1"}),
        ({"what": "known"}, {}),
        ({"what": "known", "id": True, "ref": [1]}, {}),
        ({"what": "known", "id": "x" * 201, "ref": 1 << 64}, {}),
        ({"id": 7}, {"id": 7}),
        (["known", 7], {}),
        ("what", {}),
    ],
)
async def test_an_error_frame_says_which_message_it_answers_and_what_about(stage, rooms, sent, echoed):
    @rooms.ws_route("/ws")
    async def handle(message: Incoming[Order]) -> None:
        raise RefusedError("the log's business", code="sold_out", data={"left": 0})

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for _ in range(2):
            await client.send(sent)
            told = await client.receive_json()
            if isinstance(sent, dict) and "what" in sent:
                assert told == {"type": "error", "code": "sold_out", "data": {"left": 0}, **echoed}
            else:
                assert told.pop("errors")
                assert told == {"type": "error", "code": "invalid_message", **echoed}


async def test_what_is_no_json_has_no_reference_and_one_message_has_not_that_of_another(stage, rooms):
    @rooms.ws_route("/ws")
    async def handle(message: Incoming[Order | bytes]) -> None:
        raise RefusedError

    async with stage.plays(rooms) as server, server.client("/ws") as client:
        for sent, echoed in ((b'{"id": 1}', {"id": 1}), (b"\xff", {}), ('{"what": "x", "id": 2}', {"id": 2})):
            await client.send(sent)
            assert await client.receive_json() == {"type": "error", "code": "refused", **echoed}


def test_a_message_that_is_not_there_has_no_reference():
    assert reference_in(None) == {}


def test_context_variables_that_cannot_be_compared_are_taken_for_changed():
    def look() -> None:
        values.set(Incomparable())
        before = copy_context()
        assert _is_as(before)
        values.set(Incomparable())
        assert not _is_as(before)

    copy_context().run(look)
