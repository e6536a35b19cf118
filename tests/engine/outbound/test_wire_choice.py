"""Which way the bytes take, and what each way does."""

import asyncio
import functools
import logging
import types
from inspect import getclosurevars
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.websockets import WebSocket, WebSocketState

from engine.fakes import FakeTransport, Peer, ticks, until
from fastapi_rooms import Incoming, RoomsExtension
from fastapi_rooms.domain.messages import Close, encode
from fastapi_rooms.engine.outbound import wire_choice
from fastapi_rooms.engine.outbound.batch import Batch
from fastapi_rooms.engine.outbound.transport import Transport
from fastapi_rooms.engine.outbound.uvicorn_wire import MODULE, NAME, UvicornWire
from fastapi_rooms.engine.outbound.wire import AsgiWire
from fastapi_rooms.engine.outbound.wire_choice import choose_wire, peel
from fastapi_rooms.tasks import wait_for

SCOPE = {"type": "websocket", "path": "/", "headers": []}


class Server:
    """A server's protocol object: `send` is a method of it, as an ASGI server has it."""

    def __init__(self):
        self.transport = FakeTransport()
        self.writable = asyncio.Event()
        self.writable.set()
        self.close_sent = False
        self.disconnected = False
        self.events = []

    async def send(self, event):
        self.events.append(event)

    async def receive(self):
        return {"type": "websocket.connect"}


Known = type(NAME, (Server,), {"__module__": MODULE})
OtherOfUvicorn = type("WSProtocol", (Server,), {"__module__": "uvicorn.protocols.websockets.wsproto_impl"})


class Callable:
    """A middleware's send that is no function."""

    async def __call__(self, event):
        """Swallow it."""


def sentrys(receive):
    """Wrap a receive as sentry-sdk does: it does not say what it wraps, but is known."""

    async def _sentry_receive(*arguments):
        return await receive(*arguments)

    [(_sentry_receive.__module__, _sentry_receive.__qualname__)] = wire_choice._RECEIVES
    return _sentry_receive


async def _receive():
    return {"type": "websocket.connect"}


def websocket(send):
    return WebSocket(dict(SCOPE), _receive, send)


async def wrapped(send, times=1):
    """Wrap a send as FastAPI does: once for an app, once more for every app that it is mounted in."""
    seen = []

    async def innermost(scope, receive, send):
        seen.append(send)

    app = innermost
    for _ in range(times):
        app = wrap_app_handling_exceptions(app, websocket(send))
    await app({}, _receive, send)
    return seen[0]


@pytest.fixture(autouse=True)
def _nothing_reported_yet(monkeypatch):
    monkeypatch.setattr(wire_choice, "_reported", set())


async def test_the_known_protocol_of_uvicorn_gets_ready_made_frames():
    assert isinstance(choose_wire(websocket(Known().send), "auto"), UvicornWire)


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_wrappers_of_fastapi_are_looked_through(times):
    send = await wrapped(Known().send, times)
    assert send.__name__ == "sender"
    assert isinstance(choose_wire(websocket(send), "auto"), UvicornWire)


@pytest.mark.parametrize("inside", [False, True])
async def test_a_foreign_wrapper_is_not_looked_through_wherever_it_is(inside):
    async def send(event):
        await server_send({**event, "changed": True})

    server_send = Known().send
    assert getclosurevars(send).nonlocals == {"server_send": server_send}
    wire = choose_wire(websocket(await wrapped(send) if inside else send), "auto")
    assert isinstance(wire, AsgiWire)
    assert not wire.can_abort(), "what is behind an unknown wrapper is none of our business"


def under_another(function):
    """A decorator that says what it wraps, and goes by its name."""

    @functools.wraps(function)
    async def wrapper(*arguments):
        return await function(*arguments)

    return wrapper


@pytest.mark.parametrize("wrappers", [[], [under_another], [under_another, sentrys, under_another]])
async def test_where_a_send_is_wrapped_the_receive_leads_to_the_socket(wrappers):
    server = Known()
    receive = server.receive
    for wrap in wrappers:
        receive = wrap(receive)
    wire = choose_wire(WebSocket(dict(SCOPE), receive, under_another(server.send)), "auto")
    assert isinstance(wire, AsgiWire), "the wrapper sees what is sent"
    assert wire.can_abort()
    wire.abort()
    assert server.transport.aborted


async def test_a_wrapper_that_goes_by_the_name_of_one_that_is_looked_through_is_not():
    send = under_another(await wrapped(Known().send))
    assert peel(send) is send


@pytest.mark.parametrize("send", [under_another(_receive), Callable()])
async def test_what_stands_between_us_and_uvicorn_is_said_once(send, caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    for _ in range(3):
        choose_wire(WebSocket(dict(SCOPE), Known().receive, send), "auto")
    [record] = caplog.records
    name = "under_another.<locals>.wrapper" if isinstance(send, types.FunctionType) else "Callable"
    assert f"{name} is not known here" in record.getMessage().replace("'>", "")


async def test_a_foreign_function_with_the_name_of_fastapis_wrapper_is_not_looked_through():
    inner = Known().send

    async def sender(event):
        await inner(event)

    sender.__qualname__ = "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"
    assert isinstance(choose_wire(websocket(sender), "auto"), AsgiWire)


@pytest.mark.parametrize("kind", ["other variable", "no closure", "no function"])
async def test_a_wrapper_of_starlette_that_has_changed_inside_is_not_looked_through(kind):
    inner = Known().send

    async def sender(event):
        await inner(event)

    async def bare(event):
        """Swallow what is sent."""

    class Compiled:
        async def __call__(self, event):
            await inner(event)

    send = {"other variable": sender, "no closure": bare, "no function": Compiled()}[kind]
    send.__module__ = "starlette._exception_handler"
    send.__qualname__ = "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"
    assert peel(send) is send
    assert isinstance(choose_wire(websocket(send), "auto"), AsgiWire)


async def test_the_policy_asgi_never_writes_frames_but_can_abort():
    server = Known()
    wire = choose_wire(websocket(await wrapped(server.send)), "asgi")
    assert isinstance(wire, AsgiWire)
    wire.abort()
    assert server.transport.aborted


@pytest.mark.parametrize(
    "change",
    [
        {"writable": True},
        {"close_sent": None},
        {"disconnected": 0},
        {"writable": None},
    ],
)
async def test_a_known_name_with_another_shape_falls_back(change):
    server = Known()
    vars(server).update(change)
    assert isinstance(choose_wire(websocket(server.send), "auto"), AsgiWire)


async def test_a_subclass_of_the_known_protocol_falls_back_since_it_may_do_anything():
    class Custom(Known):
        pass

    assert isinstance(choose_wire(websocket(Custom().send), "auto"), AsgiWire)


@pytest.mark.parametrize(
    "transport", [None, "transport", object(), SimpleNamespace(**dict.fromkeys(vars(Transport), 1))]
)
async def test_a_server_without_a_transport_cannot_be_aborted(transport):
    server = Server()
    server.transport = transport
    wire = choose_wire(websocket(server.send), "auto")
    wire.abort()
    assert (wire.can_abort(), wire.buffered()) == (False, 0)


async def test_a_plain_function_as_send_is_fine():
    async def send(event):
        pass

    wire = choose_wire(websocket(send), "auto")
    assert isinstance(wire, AsgiWire)
    assert not wire.can_abort()


async def test_a_fallback_on_uvicorn_is_logged_once_per_server(caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    for _ in range(3):
        choose_wire(websocket(OtherOfUvicorn().send), "auto")
    [record] = caplog.records
    assert record.getMessage().startswith("uvicorn.protocols.websockets.wsproto_impl.WSProtocol is not known here")


async def test_what_is_lost_where_the_socket_is_out_of_reach_is_logged_once(caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")

    async def send(event):
        pass

    for _ in range(3):
        choose_wire(websocket(send), "auto")
    [record] = caplog.records
    text = record.getMessage()
    assert "test_what_is_lost_where_the_socket_is_out_of_reach_is_logged_once.<locals>.send leads to no socket" in text
    assert "cannot be aborted" in text
    assert "set RoomsSettings(heartbeat_interval=...)" in text
    assert "await manager.drain() before" in text


def test_a_test_client_is_no_server(caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    rooms = RoomsExtension()

    @rooms.ws_route("/ws")
    async def echo(message: Incoming[str]) -> str:
        return message

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    with TestClient(app) as client, client.websocket_connect("/ws") as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
    assert [record for record in caplog.records if "socket" in record.getMessage()] == []


@pytest.mark.parametrize(("kind", "policy"), [(Server, "auto"), (Known, "auto"), (OtherOfUvicorn, "asgi")])
async def test_nothing_is_logged_where_nothing_was_hoped_for(caplog, kind, policy):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    choose_wire(websocket(kind().send), policy)
    assert caplog.records == []


# uvicorn's


@pytest.fixture
async def server():
    return Known()


@pytest.fixture
async def uvicorn_wire(server):
    socket = websocket(server.send)
    await socket.accept()
    server.events.clear()
    return choose_wire(socket, "auto")


async def test_many_messages_are_one_write_of_ready_made_frames(server, uvicorn_wire):
    messages = [encode("a"), encode(b"\xff"), encode({"a": 1})]
    assert uvicorn_wire.write_now(Batch.of(messages))
    assert uvicorn_wire.write_now(Batch.of(messages[:1]))
    assert server.transport.written == [b"".join(message.frame() for message in messages), messages[0].frame()]
    assert server.events == []


async def test_a_single_frame_is_passed_on_without_a_copy(server, uvicorn_wire):
    message = encode("a")
    uvicorn_wire.write_now(Batch.of([message]))
    assert server.transport.written[0] is message.frame()


async def test_it_waits_until_the_buffer_is_below_its_mark(server, uvicorn_wire):
    server.writable.clear()
    server.transport.held = 100_000
    assert not uvicorn_wire.is_writable()
    assert not uvicorn_wire.write_now(Batch.of([encode("a")]))
    writing = asyncio.create_task(uvicorn_wire.write(Batch.of([encode("a")])))
    await ticks()
    assert server.transport.written == []
    server.writable.set()
    await writing
    assert uvicorn_wire.is_writable()
    assert server.transport.written == [encode("a").frame()]


async def test_a_peer_that_goes_while_its_buffer_is_full_is_not_written_to(server, uvicorn_wire):
    server.writable.clear()
    server.transport.held = 100_000
    writing = asyncio.create_task(uvicorn_wire.write(Batch.of([encode("a")])))
    await ticks()
    server.transport.closing = True
    server.writable.set()
    with pytest.raises(ConnectionResetError):
        await writing
    assert server.transport.written == []


async def test_a_write_behind_one_that_found_the_peer_gone_says_so(server, uvicorn_wire, monkeypatch):
    def fail(data):
        server.transport.closing = True  # as a transport does whose peer has reset the connection

    monkeypatch.setattr(server.transport, "write", fail)
    assert uvicorn_wire.write_now(Batch.of([encode("a")]))
    assert uvicorn_wire.is_gone()
    with pytest.raises(ConnectionResetError):
        uvicorn_wire.write_now(Batch.of([encode("a")]))


async def test_a_socket_is_gone_when_either_side_has_ended_it(server, uvicorn_wire):
    assert not uvicorn_wire.is_gone()
    for name in ("disconnected", "close_sent"):
        setattr(server, name, True)
        assert uvicorn_wire.is_gone()
        setattr(server, name, False)
    server.transport.closing = True
    assert uvicorn_wire.is_gone()


async def test_closing_is_left_to_the_server(server, uvicorn_wire):
    await uvicorn_wire.close(Close(4000, "bye"))
    assert server.events == [{"type": "websocket.close", "code": 4000, "reason": "bye"}]
    assert server.transport.written == []


async def test_an_abort_ends_the_transport(server, uvicorn_wire):
    assert uvicorn_wire.can_abort()
    uvicorn_wire.abort()
    assert server.transport.aborted


async def test_where_nobody_tells_what_was_acknowledged_a_buffer_that_shrinks_is_progress(server, uvicorn_wire):
    uvicorn_wire.write_now(Batch.of([encode("x" * 100)]))
    server.transport.held = 30
    assert uvicorn_wire.buffered() == 30
    begin = uvicorn_wire.taken()
    assert uvicorn_wire.taken() == begin
    server.transport.held = 60  # somebody else wrote
    assert uvicorn_wire.taken() == begin
    server.transport.held = 50
    assert uvicorn_wire.taken() == begin + 10


async def test_a_wire_has_left_when_its_transport_is_closed_and_empty(server, uvicorn_wire):
    server.transport.held = 30
    assert not uvicorn_wire.is_closing()
    assert not uvicorn_wire.has_left()
    server.transport.closing = True
    assert uvicorn_wire.is_closing()
    assert not uvicorn_wire.has_left()
    server.transport.held = 0
    assert uvicorn_wire.has_left()


# ASGI's


@pytest.fixture
async def peer():
    peer = Peer()
    await peer.websocket.accept()
    peer.events.clear()
    return peer


@pytest.fixture
async def asgi_wire(peer):
    return choose_wire(peer.websocket, "auto")


async def test_every_message_is_an_event(peer, asgi_wire):
    await asgi_wire.write(Batch.of([encode("a"), encode(b"\xff")]))
    assert peer.events == [{"type": "websocket.send", "text": "a"}, {"type": "websocket.send", "bytes": b"\xff"}]


async def test_a_middleware_that_changes_an_event_in_place_changes_it_for_one_recipient_only():
    message = encode("text")
    received = []

    async def send(event):
        if event["type"] == "websocket.send":
            event["text"] += "!"
            received.append(event["text"])

    for _ in range(3):
        socket = websocket(send)
        await socket.accept()
        await choose_wire(socket, "auto").write(Batch.of([message]))
    assert received == ["text!"] * 3


async def test_it_cannot_write_at_once(asgi_wire):
    assert not asgi_wire.is_writable()
    assert not asgi_wire.write_now(Batch.of([encode("a")]))


async def test_it_waits_while_the_server_does(peer, asgi_wire):
    peer.reads.clear()
    writing = asyncio.create_task(wait_for(asgi_wire.write(Batch.of([encode("a")]))))
    await ticks()
    assert (writing.done(), asgi_wire.taken()) == (False, 0)
    peer.reads.set()
    await writing
    assert (peer.texts, asgi_wire.taken()) == (["a"], 1)


async def test_an_asgi_socket_is_gone_when_either_side_has_ended_it(peer, asgi_wire):
    assert not asgi_wire.is_gone()
    peer.go()
    await peer.websocket.receive()
    assert peer.websocket.client_state is WebSocketState.DISCONNECTED
    assert asgi_wire.is_gone()


async def test_an_asgi_socket_is_gone_once_it_was_closed(peer, asgi_wire):
    await asgi_wire.close(Close(4000, "bye"))
    assert peer.events == [{"type": "websocket.close", "code": 4000, "reason": "bye"}]
    assert asgi_wire.is_gone()


async def test_an_asgi_socket_is_gone_when_its_transport_is(peer, asgi_wire):
    assert isinstance(asgi_wire, AsgiWire)
    await until(lambda: not asgi_wire.is_gone())
    peer.transport.closing = True
    assert asgi_wire.is_gone()


async def test_what_an_asgi_server_holds_is_taken_when_it_shrinks(peer, asgi_wire):
    await asgi_wire.write(Batch.of([encode("x" * 100)]))
    peer.transport.held = 30
    assert (asgi_wire.buffered(), asgi_wire.taken()) == (30, 100)
    peer.transport.held = 10
    assert asgi_wire.taken() == 120
