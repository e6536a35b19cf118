"""What `fastapi_rooms.engine` relies on in Starlette's WebSocket: what it leaves out of `receive` and `send`."""

import inspect

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

SCOPE = {"type": "websocket", "path": "/", "headers": []}
ADVICE = (
    "engine/inbound/reader.py calls `WebSocket._receive` and engine/outbound/wire.py `WebSocket._send`: "
    "look at what {} does beside it"
)


class Server:
    """Both ends of ASGI."""

    def __init__(self):
        self.events = [{"type": "websocket.connect"}]  # to be received
        self.sent = []
        self.error = None  # raised by the next send

    async def receive(self):
        return self.events.pop(0)

    async def send(self, event):
        if self.error is not None:
            raise self.error
        self.sent.append(event)


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def websocket(server):
    made = WebSocket(dict(SCOPE), server.receive, server.send)
    await made.accept()
    server.sent.clear()
    return made


def state(websocket):
    """Everything that a WebSocket remembers."""
    return {name: value for name, value in vars(websocket).items() if name not in {"_receive", "_send"}}


async def test_a_websocket_has_the_callables_of_the_server_as_they_were_given(server, websocket):
    assert websocket._receive == server.receive
    assert websocket._send == server.send


@pytest.mark.parametrize(
    "event",
    [
        {"type": "websocket.receive", "text": "a"},
        {"type": "websocket.receive", "bytes": b"a"},
        {"type": "websocket.receive", "text": None, "bytes": b""},
    ],
)
async def test_once_accepted_receive_passes_messages_on_and_remembers_nothing(server, websocket, event):
    before = state(websocket)
    server.events.append(event)
    assert await websocket.receive() is event, ADVICE.format("receive")
    assert state(websocket) == before


async def test_all_that_receive_does_with_a_disconnect_is_to_note_it(server, websocket):
    before = state(websocket)
    event = {"type": "websocket.disconnect", "code": 1001}
    server.events.append(event)
    assert await websocket.receive() is event
    assert state(websocket) == {**before, "client_state": WebSocketState.DISCONNECTED}, (
        "engine/inbound/reader.py sets `client_state` in its place"
    )


async def test_once_accepted_send_passes_messages_on_as_they_are_and_remembers_nothing(server, websocket):
    before = state(websocket)
    events = [{"type": "websocket.send", "text": "a"}, {"type": "websocket.send", "bytes": b"a"}]
    for event in events:
        await websocket.send(event)
    assert all(sent is event for sent, event in zip(server.sent, events, strict=True)), ADVICE.format("send")
    assert state(websocket) == before


async def test_all_that_send_does_with_an_error_is_to_rename_it(server, websocket):
    server.error = OSError("the peer is gone")
    with pytest.raises(OSError, match="the peer is gone"):
        await websocket._send({"type": "websocket.send", "text": "a"})
    assert websocket.application_state is WebSocketState.CONNECTED
    with pytest.raises(WebSocketDisconnect):
        await websocket.send({"type": "websocket.send", "text": "a"})
    assert websocket.application_state is WebSocketState.DISCONNECTED


async def test_an_error_that_is_none_of_the_system_is_passed_on(server, websocket):
    server.error = ValueError("anything else")
    with pytest.raises(ValueError, match="anything else"):
        await websocket.send({"type": "websocket.send", "text": "a"})
    assert websocket.application_state is WebSocketState.CONNECTED


def test_receive_and_send_have_no_parameter_that_we_leave_out():
    assert list(inspect.signature(WebSocket.receive).parameters) == ["self"]
    assert list(inspect.signature(WebSocket.send).parameters) == ["self", "message"]
