"""Who is let in by name, HTTP origin and time, and how somebody is told that he is not."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketState
from support import until

from engine.admission.asking import NO, YES, Gate, Says, refused
from engine.fakes import Peer, connected, is_empty, run_clocked, settled
from fastapi_rooms.domain.errors import (
    ConfigurationError,
    InvalidName,
    JoinRefused,
    NotConnectedError,
    RoomsError,
    TooManyRooms,
)
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission import handshake_refused
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of

# Names


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256, "\ud800", "e\u0301", "\u2028"])
async def test_a_name_that_is_none_is_refused_before_anything_is_asked(name, caplog):
    asked = []
    manager = ConnectionManager(limiter=lambda *_: asked.append("limiter"), authorize_join=lambda *_: asked.append(1))
    with caplog.at_level(logging.INFO):
        for arguments in ((name, "ann"), ("a", name)):
            refusal = await refused(manager, Peer(), Refusal.INVALID_NAME, *arguments)
            assert refusal.status_code == 400
    assert asked == []
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith("refused (said once a minute)")
    assert not name or name not in record.getMessage()
    await manager.stop()


async def test_a_name_that_is_none_is_an_error_also_if_nobody_wants_to_join_and_then_it_is_not_counted(manager):
    _, connection = await connected(manager, "a")
    with pytest.raises(InvalidName):
        await manager.join_room(connection, "")
    assert manager.stats().refused[Refusal.INVALID_NAME] == 1
    manager.disconnect(connection)
    with pytest.raises(InvalidName):
        await manager.join_room(connection, "")
    with pytest.raises(InvalidName):
        await manager.join_room("nobody", "")
    assert manager.stats().refused[Refusal.INVALID_NAME] == 1


async def test_a_name_that_is_no_text_is_the_apps_mistake(manager):
    with pytest.raises(ConfigurationError, match="user_id takes a str"):
        await manager.connect(Peer().websocket, "a", 7)
    assert is_empty(manager)


# Origins and drain


def peer_with(*headers, **scope):
    peer = Peer()
    peer.websocket.scope.update(headers=[(key.encode(), value.encode()) for key, value in headers], **scope)
    return peer


async def test_foreign_pages_are_named_once_a_minute_with_what_to_do(manager, caplog):
    for _ in range(3):
        peer = peer_with(("host", "chat.example"), ("origin", "https://evil.example\n" + "x" * 500))
        await refused(manager, peer, Refusal.HTTP_ORIGIN, "a")
    [record] = caplog.records
    text = record.getMessage()
    assert "allowed_origins" in text
    assert "\n" not in text
    assert len(text) < 700


@pytest.mark.parametrize(("scheme", "is_let_in"), [("wss", True), ("https", True), ("ws", False), ("http", False)])
async def test_the_scheme_is_the_servers_word(manager, scheme, is_let_in):
    peer = peer_with(("host", "chat.example"), ("origin", "https://chat.example"), scheme=scheme)
    if is_let_in:
        await manager.connect(peer.websocket)
    else:
        await refused(manager, peer, Refusal.HTTP_ORIGIN)


def test_while_a_node_drains_everybody_is_told_when_to_come_again():
    async def main():
        gate = Gate()
        manager = ConnectionManager(RoomsSettings(send_timeout=60), authorize_join=gate.ask)
        late = Peer()
        asking = asyncio.create_task(manager.connect(late.websocket, "a"))
        await until(lambda: gate.asked)
        stuck, _ = await connected(manager)
        stuck.reads.clear()
        draining = asyncio.create_task(manager.drain(8))
        await asyncio.sleep(2.5)
        refusal = await refused(manager, Peer(), Refusal.DRAINING)
        assert (refusal.status_code, refusal.headers) == (503, {"Retry-After": "6"})
        gate.answer(YES)
        with pytest.raises(HandshakeRefused) as refusal:
            await asking
        assert refusal.value.reason is Refusal.DRAINING, "who was let in before, but not yet accepted"
        assert manager.stats().is_draining
        await draining
        refusal = await refused(manager, Peer(), Refusal.DRAINING)
        assert refusal.headers == {"Retry-After": "1"}
        await manager.stop()
        assert is_empty(manager)

    run_clocked(main)


# How it is told


@pytest.mark.parametrize(
    ("settings", "options", "code"),
    [
        ({"max_connections": 1}, {}, 1013),
        ({"max_connections_per_user": 1}, {"user_id": "ann"}, 1013),
        ({"require_origin": True}, {}, 1008),
        ({}, {"room": "a\n"}, 1008),
        ({}, {"expires_at": 0}, 4401),
        ({}, {"room": "no"}, 1008),
    ],
)
async def test_who_was_accepted_by_the_app_gets_a_close_code_in_place_of_a_status(settings, options, code):
    manager = ConnectionManager(RoomsSettings(**settings), authorize_join=Says(NO))
    if "require_origin" not in settings:
        await connected(manager, None, "ann")
    peer = Peer()
    await peer.websocket.accept()
    with pytest.raises(WebSocketException) as refusal:
        await manager.connect(peer.websocket, **options)
    assert refusal.value.code == code
    assert refusal.value.reason
    assert manager.active_connections == len(manager.get_user_connections("ann"))
    await manager.stop()


async def test_every_refusal_is_told_with_what_is_known():
    told = []
    hooks = Hooks(
        refused=lambda refused: told.append((refused.reason, refused.websocket, refused.user_id, refused.room))
    )
    manager = ConnectionManager(RoomsSettings(max_rooms_per_connection=1), hooks=hooks, authorize_join=Says(NO))
    foreign = peer_with(("host", "a.example"), ("origin", "https://b.example"))
    with pytest.raises(HandshakeRefused):
        await manager.connect(foreign.websocket, "a", "ann")
    peer = Peer()
    with pytest.raises(HandshakeRefused):
        await manager.connect(peer.websocket, "a", "ann")
    mine, connection = await connected(manager, None, "bob")
    with pytest.raises(JoinRefused):
        await manager.join_room(connection, "b")
    await manager.join_room(connection, "c", authorize=False)
    with pytest.raises(TooManyRooms):
        await manager.join_room(connection, "d", authorize=False)
    await settled()
    assert told == [
        (Refusal.HTTP_ORIGIN, foreign.websocket, None, None),
        (Refusal.JOIN, peer.websocket, "ann", "a"),
        (Refusal.JOIN, mine.websocket, "bob", "b"),
        (Refusal.MAX_ROOMS, mine.websocket, "bob", "d"),
    ]
    await manager.stop()


def own(websocket, error):
    """Stand for an app's exception handler."""


def default(websocket, error):
    """Stand for FastAPI's."""


default.__module__ = "fastapi.exception_handlers"


@pytest.mark.parametrize(
    ("handlers", "registered", "is_default"),
    [
        ({HTTPException: default}, {HTTPException: default}, True),
        ({HTTPException: default}, {}, True),
        ({HTTPException: own}, {HTTPException: own}, False),
        ({HTTPException: own}, {HTTPException: default}, True),  # a tool has put its own around it
        ({HTTPException: own}, {}, True),  # or around that of Starlette, which nobody registers
        ({RoomsError: own}, {}, False),
    ],
)
async def test_we_stand_once_around_an_exception_handler_and_know_whose_it_is(
    manager, handlers, registered, is_default
):
    kind, handler = next(iter(handlers.items()))
    by_status = {403: own}
    found = []
    for _ in range(2):
        peer = peer_with(("origin", "null"))
        peer.websocket.scope["starlette.exception_handlers"] = (handlers, by_status)
        peer.websocket.scope["app"] = SimpleNamespace(exception_handlers=registered)
        with pytest.raises(HandshakeRefused):
            await manager.connect(peer.websocket)
        found.append((handlers[kind], by_status[403]))
    assert found[0] == found[1]
    assert (list(handlers), list(by_status)) == ([kind], [403])
    assert found[0][0].handler is handler
    assert handshake_refused.is_default(found[0][0]) is is_default
    assert not handshake_refused.is_default(found[0][1])


async def test_an_app_without_exception_handlers_is_left_alone(manager):
    with pytest.raises(HandshakeRefused):
        await manager.connect(peer_with(("origin", "null")).websocket)


async def answers_nothing(connection, action):
    """Count something, and return nothing."""


@pytest.mark.parametrize("limiter", [answers_nothing, lambda *_: None])
async def test_a_limiter_that_answers_nothing_means_no_and_that_is_said_once(limiter, caplog):
    manager = ConnectionManager(limiter=limiter)
    for _ in range(2):
        with pytest.raises(HandshakeRefused):
            await manager.connect(Peer().websocket)
    [said] = [record.getMessage() for record in caplog.records]
    assert said == "the limiter returned None, which means no: return True to let somebody through (said once)"


async def test_a_handshake_cannot_be_checked_in_a_thread_which_is_said():
    manager = ConnectionManager()
    with pytest.raises(ConfigurationError, match="write `async def` for the dependency"):
        await asyncio.to_thread(sessions_of(manager).check_handshake, Peer().websocket)


@pytest.mark.parametrize("end", ["client_state", "application_state"])
async def test_who_has_gone_is_not_refused_but_told_so(end):
    manager, peer = ConnectionManager(), Peer()
    setattr(peer.websocket, end, WebSocketState.DISCONNECTED)
    with pytest.raises(NotConnectedError):
        sessions_of(manager).refuse_credentials(peer.websocket, "Bearer")


async def test_a_connection_that_is_forgotten_keeps_nothing_that_a_route_has_given_it():
    manager = ConnectionManager()
    peer = Peer()
    connection = await manager.connect(peer.websocket, authorize_join=lambda connection, room: True)
    manager.disconnect(connection)
    assert connection._authorize_join is None
