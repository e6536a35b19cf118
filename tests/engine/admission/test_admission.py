"""Who is let in, into which rooms, and how many: asked of the app, counted, and nothing left behind by a no."""

import asyncio
import functools
import logging
import threading

import pytest
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketState
from support import until

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

YES, NO = True, False


class Gate:
    """An app's hook that waits until it is told what to say."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, str]] = []
        self._answers: list[asyncio.Future[object]] = []

    async def ask(self, connection, room):
        self.asked.append((connection, room))
        self._answers.append(asyncio.get_running_loop().create_future())
        return await self._answers[-1]

    def answer(self, value, which=0):
        self._answers[which].set_result(value)


async def refused(manager, peer, reason, *arguments, **options) -> HandshakeRefused:
    """Connect, be refused for that reason before accept, and leave nothing behind."""
    before = manager.counters.refused[reason]
    with pytest.raises(HandshakeRefused) as refusal:
        await manager.connect(peer.websocket, *arguments, **options)
    assert refusal.value.reason is reason
    assert manager.counters.refused[reason] == before + 1
    assert peer.events == []
    return refusal.value


# authorize_join


async def say_async(answer, connection, room):
    await asyncio.sleep(0)
    return answer


def say_sync(answer, connection, room):
    return answer


class Says:
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, connection, room):
        return self.answer


class SaysAsync(Says):
    async def __call__(self, connection, room):
        return self.answer


FORMS = pytest.mark.parametrize(
    "form",
    [
        lambda answer: functools.partial(say_async, answer),
        lambda answer: functools.partial(say_sync, answer),
        lambda answer: lambda connection, room: say_async(answer, connection, room),
        Says,
        SaysAsync,
    ],
    ids=["async", "sync", "returns an awaitable", "object", "async object"],
)


@FORMS
async def test_the_app_is_asked_before_the_first_room_and_before_any_other(form):
    manager = ConnectionManager(authorize_join=form(YES))
    _, connection = await connected(manager, "a")
    assert await manager.join_room(connection, "b") is True
    assert connection.rooms == {"a", "b"}

    for no in (False, None, 0, ""):
        manager._admission._authorize_join = form(no)
        with pytest.raises(JoinRefused, match="said no"):
            await manager.join_room(connection, "c")
        refusal = await refused(manager, Peer(), Refusal.JOIN, "a")
        assert (refusal.status_code, refusal.headers) == (403, None)
    assert connection.rooms == {"a", "b"}
    assert connection.is_open
    assert manager.active_connections == 1
    assert manager.counters.refused == {Refusal.JOIN: 8}
    await manager.stop()


@pytest.mark.parametrize("error", [RuntimeError("secret"), HTTPException(404, "secret"), KeyError(), OSError()])
@pytest.mark.parametrize("is_async", [True, False])
async def test_an_exception_means_no_and_is_logged_once_a_minute(error, is_async, caplog):
    def fail(connection, room):
        raise error

    async def fail_async(connection, room):
        raise error

    manager = ConnectionManager(authorize_join=fail_async if is_async else fail)
    _, connection = await connected(manager)
    for _ in range(3):
        with pytest.raises(JoinRefused) as refusal:
            await manager.join_room(connection, "a")
        assert refusal.value.__cause__ is error
        assert "secret" not in str(refusal.value)
    await refused(manager, Peer(), Refusal.JOIN, "a")
    assert connection.rooms == set()
    assert manager.active_rooms == []
    [record] = caplog.records
    assert (record.levelno, record.exc_info[1]) == (logging.WARNING, error)
    await manager.stop()


@pytest.mark.parametrize("error", [JoinRefused("not you"), InvalidName("not that"), TooManyRooms("no more")])
async def test_an_app_can_say_no_by_raising_what_we_raise_and_nothing_is_logged(error, caplog):
    async def refuse(connection, room):
        raise error

    manager = ConnectionManager(authorize_join=refuse)
    _, connection = await connected(manager)
    with pytest.raises(JoinRefused, match="said no"):
        await manager.join_room(connection, "a")
    await refused(manager, Peer(), Refusal.JOIN, "a")
    assert caplog.records == []
    await manager.stop()


async def test_a_plain_function_runs_in_a_thread_and_the_loop_goes_on():
    threads = []
    entered, go_on = threading.Event(), threading.Event()

    def ask(connection, room):
        threads.append(threading.current_thread())
        entered.set()
        return go_on.wait(5)

    manager = ConnectionManager(authorize_join=ask)
    connecting = asyncio.create_task(connected(manager, "a"))
    await until(entered.is_set)
    assert not connecting.done()
    go_on.set()
    _, connection = await connecting
    assert connection.rooms == {"a"}
    assert threads != [threading.current_thread()]
    await manager.stop()


async def test_it_is_asked_with_the_identity_of_the_connection():
    asked = []

    async def ask(connection, room):
        asked.append((connection.user_id, connection.metadata, connection.is_open, room))
        return True

    manager = ConnectionManager(authorize_join=ask)
    peer = Peer()
    connection = await manager.connect(peer.websocket, "a", "ann", {"role": "guest"})
    await manager.join_room(connection, "b")
    assert asked == [
        ("ann", {"role": "guest"}, False, "a"),
        ("ann", {"role": "guest"}, True, "b"),
    ]
    await manager.stop()


async def test_it_is_not_asked_about_what_changes_nothing_or_what_the_app_decides_itself():
    asked = []
    manager = ConnectionManager(authorize_join=lambda connection, room: asked.append(room))
    _, connection = await connected(manager)
    assert await manager.join_room(connection, "a", authorize=False) is True
    assert await manager.join_room(connection, "a") is True
    assert await manager.join_room("of nobody here", "b") is False
    assert asked == []
    with pytest.raises(InvalidName):
        await manager.join_room(connection, "b\n")
    assert asked == [], "and not about what can be no room"
    await manager.stop()


async def test_that_of_the_connection_stands_in_for_that_of_the_manager():
    manager = ConnectionManager(authorize_join=Says(NO))
    peer = Peer()
    connection = await manager.connect(peer.websocket, "a", authorize_join=Says(YES))
    assert await manager.join_room(connection, "b")
    await refused(manager, Peer(), Refusal.JOIN, "a")
    manager._admission._authorize_join = Says(YES)
    await refused(manager, Peer(), Refusal.JOIN, "a", authorize_join=Says(NO))
    await manager.stop()


@pytest.mark.parametrize("end", ["disconnect", "close"])
async def test_a_connection_that_goes_while_the_app_is_asked_leaves_nothing_behind(end):
    gate = Gate()
    manager = ConnectionManager(authorize_join=gate.ask)
    _, connection = await connected(manager)
    joining = asyncio.create_task(manager.join_room(connection, "a"))
    await until(lambda: gate.asked)
    if end == "disconnect":
        manager.disconnect(connection)
    else:
        await connection.close()
    gate.answer(YES)
    assert await joining is False
    assert is_empty(manager)
    await manager.stop()


@pytest.mark.parametrize("asks", ["authorize_join", "limiter"])
async def test_a_connect_that_is_cancelled_while_the_app_is_asked_leaves_nothing_behind(asks):
    gate = Gate()
    manager = ConnectionManager(**{asks: gate.ask})
    peer = Peer()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "a", "ann"))
    await until(lambda: gate.asked)
    assert manager.stats().connections == 0
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert is_empty(manager)
    assert not manager._admission._asking
    assert peer.events == []
    await manager.stop()


async def test_of_two_connects_at_once_the_first_says_who_it_is_and_each_room_is_asked_for():
    """Else the app would be asked about Ann, and Bob would be let in."""
    gate = Gate()
    manager = ConnectionManager(authorize_join=gate.ask)
    peer = Peer()
    first = asyncio.create_task(manager.connect(peer.websocket, "a", "ann", {"is": "first"}))
    await until(lambda: gate.asked)
    second = asyncio.create_task(manager.connect(peer.websocket, "b", "bob", {"is": "second"}))
    third = asyncio.create_task(manager.connect(peer.websocket, "c", "cid"))
    await settled()
    gate.answer(YES)
    connection = await first
    assert (connection.user_id, connection.metadata, connection.rooms) == ("ann", {"is": "first"}, {"a"})
    await until(lambda: len(gate.asked) == 3)
    assert gate.asked == [(connection, "a"), (connection, "b"), (connection, "c")]
    gate.answer(NO, 1)
    gate.answer(YES, 2)
    with pytest.raises(JoinRefused):
        await second
    assert await third is connection
    assert (connection.user_id, connection.rooms) == ("ann", {"a", "c"})
    assert manager.get_user_connections("bob") == []
    assert [event["type"] for event in peer.events] == ["websocket.accept"]
    await manager.stop()


async def test_who_waits_for_a_connect_that_is_refused_or_given_up_is_asked_about_in_turn():
    gate = Gate()
    manager = ConnectionManager(authorize_join=gate.ask)
    peer = Peer()
    first, second, third = (
        asyncio.create_task(manager.connect(peer.websocket, room, user))
        for room, user in (("a", "ann"), ("b", "bob"), ("c", "cid"))
    )
    await until(lambda: gate.asked)
    gate.answer(NO)
    with pytest.raises(HandshakeRefused):
        await first
    await until(lambda: len(gate.asked) == 2)
    await settled()
    assert [room for _, room in gate.asked] == ["a", "b"], "one after the other"
    second.cancel()
    await until(lambda: len(gate.asked) == 3)
    gate.answer(YES, 2)
    connection = await third
    assert (connection.user_id, connection.rooms) == ("cid", {"c"})
    assert second.cancelled()
    await manager.stop()


# The limiter


@pytest.mark.parametrize("is_async", [True, False])
async def test_the_app_can_limit_connects(is_async):
    asked = []

    async def limit_async(connection, action):
        return limit(connection, action)

    def limit(connection, action):
        asked.append((connection.user_id, action))
        return connection.user_id != "eve"

    manager = ConnectionManager(limiter=limit_async if is_async else limit)
    refusal = await refused(manager, Peer(), Refusal.LIMITER, "a", "eve")
    assert (refusal.status_code, refusal.headers) == (429, {"Retry-After": "5"})
    await connected(manager, "a", "ann")
    assert asked == [("eve", "connect"), ("ann", "connect")]
    await manager.stop()


async def test_a_limiter_that_fails_lets_through_and_is_logged_once_a_minute(caplog):
    async def fail(connection, action):
        raise ConnectionError("Redis is away")

    manager = ConnectionManager(limiter=fail)
    peer, connection = await connected(manager)
    messages = connection.messages(str)
    for number in range(5):
        peer.say(str(number))
        assert await anext(messages) == str(number)
    [record] = caplog.records
    assert record.exc_info[0] is ConnectionError
    assert manager.counters.rate_limited_messages == 0
    await manager.stop()


# How many


async def test_a_node_takes_as_many_connections_as_it_may_and_those_that_are_opening_count():
    manager = ConnectionManager(RoomsSettings(max_connections=2))
    _, first = await connected(manager)
    hanging = Peer()
    hanging.accepts.clear()
    opening = asyncio.create_task(manager.connect(hanging.websocket))
    await settled()
    refusal = await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    assert (refusal.status_code, refusal.headers) == (503, {"Retry-After": "5"})
    opening.cancel()
    await asyncio.wait([opening])
    _, second = await connected(manager)
    await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    manager.disconnect(first)
    await second.close()
    for _ in range(2):
        await connected(manager)
    await manager.stop()


async def test_of_two_who_want_the_last_place_while_the_app_is_asked_one_gets_it():
    gate = Gate()
    manager = ConnectionManager(RoomsSettings(max_connections=1), authorize_join=gate.ask)
    connecting = [asyncio.create_task(manager.connect(Peer().websocket, "a")) for _ in range(2)]
    await until(lambda: gate.asked)
    gate.answer(YES, 0)
    await asyncio.wait(connecting)
    assert len(gate.asked) == 1, "the app is not asked in vain"
    assert sorted(isinstance(one.exception(), HandshakeRefused) for one in connecting) == [False, True]
    assert manager.active_connections == 1
    await manager.stop()


async def test_a_user_has_as_many_connections_as_may_be_and_who_is_nobody_is_not_counted():
    manager = ConnectionManager(RoomsSettings(max_connections_per_user=2))
    _, phone = await connected(manager, None, "ann")
    await connected(manager, None, "ann")
    refusal = await refused(manager, Peer(), Refusal.MAX_CONNECTIONS_PER_USER, None, "ann")
    assert (refusal.status_code, refusal.headers) == (429, {"Retry-After": "5"})
    await connected(manager, None, "bob")
    for _ in range(5):
        await connected(manager)
    manager.disconnect(phone)
    await connected(manager, None, "ann")
    await manager.stop()


async def test_an_address_has_as_many_connections_as_may_be():
    manager = ConnectionManager(RoomsSettings(max_connections_per_address=2))

    def peer_from(host):
        peer = Peer()
        peer.websocket.scope["client"] = None if host is None else (host, 1)
        return peer

    await manager.connect(peer_from("192.0.2.1").websocket)
    mapped = await manager.connect(peer_from("::ffff:192.0.2.1").websocket)
    refusal = await refused(manager, peer_from("192.0.2.1"), Refusal.MAX_CONNECTIONS_PER_ADDRESS)
    assert (refusal.status_code, refusal.headers) == (429, {"Retry-After": "5"})
    await manager.connect(peer_from("192.0.2.2").websocket)
    for number in range(2):
        await manager.connect(peer_from(f"2001:db8::{number}").websocket)
    await refused(manager, peer_from("2001:db8::ffff:1"), Refusal.MAX_CONNECTIONS_PER_ADDRESS)
    for _ in range(3):
        await manager.connect(peer_from(None).websocket)  # a Unix socket has none
    manager.disconnect(mapped)
    await manager.connect(peer_from("192.0.2.1").websocket)
    await manager.stop()


async def test_a_handshake_that_fails_gives_its_places_back():
    manager = ConnectionManager(
        RoomsSettings(max_connections=1, max_connections_per_user=1, max_connections_per_address=1)
    )
    for _ in range(3):
        peer = Peer()
        peer.websocket.scope["client"] = ("192.0.2.1", 1)
        peer.accept_error = OSError("the client went")
        with pytest.raises(OSError, match="went"):
            await manager.connect(peer.websocket, "a", "ann")
        assert is_empty(manager)
    await manager.stop()


async def test_a_connection_is_in_as_many_rooms_as_it_may_be():
    manager = ConnectionManager(RoomsSettings(max_rooms_per_connection=2))
    _, connection = await connected(manager, "a")
    await manager.join_room(connection, "b")
    assert await manager.join_room(connection, "b") is True
    with pytest.raises(TooManyRooms, match=r"in 2 rooms: leave one first, or raise RoomsSettings\(max_rooms"):
        await manager.join_room(connection, "c")
    with pytest.raises(TooManyRooms):
        await manager.join_room(connection, "c", authorize=False)
    assert manager.counters.refused == {Refusal.MAX_ROOMS: 2}
    assert connection.rooms == {"a", "b"}
    assert "c" not in manager.active_rooms
    await manager.leave_room(connection, "a")
    assert await manager.join_room(connection, "c") is True
    await manager.stop()


async def test_two_joins_at_once_that_the_app_allows_do_not_pass_the_limit_together():
    gate = Gate()
    manager = ConnectionManager(RoomsSettings(max_rooms_per_connection=1), authorize_join=gate.ask)
    _, connection = await connected(manager)
    joins = [asyncio.create_task(manager.join_room(connection, room)) for room in "ab"]
    await until(lambda: len(gate.asked) == 2)
    gate.answer(YES, 0)
    gate.answer(YES, 1)
    await asyncio.wait(joins)
    assert await joins[0] is True
    assert isinstance(joins[1].exception(), TooManyRooms)
    assert connection.rooms == {"a"}
    await manager.stop()


async def test_what_is_none_is_off():
    manager = ConnectionManager(RoomsSettings(max_rooms_per_connection=None))
    _, connection = await connected(manager)
    for number in range(300):
        await manager.join_room(connection, str(number))
    assert len(connection.rooms) == 300
    await manager.stop()


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
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 2
    assert all(name not in record.getMessage() for record in caplog.records if name)
    await manager.stop()


async def test_a_name_that_is_none_is_an_error_also_if_nobody_wants_to_join_and_then_it_is_not_counted(manager):
    _, connection = await connected(manager, "a")
    with pytest.raises(InvalidName):
        await manager.join_room(connection, "")
    assert manager.counters.refused[Refusal.INVALID_NAME] == 1
    manager.disconnect(connection)
    with pytest.raises(InvalidName):
        await manager.join_room(connection, "")
    with pytest.raises(InvalidName):
        await manager.join_room("nobody", "")
    assert manager.counters.refused[Refusal.INVALID_NAME] == 1


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
    ("handlers", "found"),
    [
        ({HTTPException: default}, handshake_refused._answer),
        ({HTTPException: own}, own),
        ({HTTPException: default, HandshakeRefused: own}, own),
        ({HTTPException: default, RoomsError: own}, own),
        ({}, None),
    ],
)
async def test_the_apps_own_exception_handlers_have_their_say(manager, handlers, found):
    peer = peer_with(("origin", "null"))
    peer.websocket.scope["starlette.exception_handlers"] = (handlers, {})
    for _ in range(2):
        with pytest.raises(HandshakeRefused) as refusal:
            await manager.connect(peer.websocket)
    kinds = [kind for kind in type(refusal.value).__mro__ if kind in handlers]
    assert (handlers[kinds[0]] if kinds else None) is found


@pytest.mark.parametrize("function", [lambda: True, lambda connection: True, lambda connection, room, database: True])
def test_a_function_that_cannot_be_asked_about_joins_is_found_at_once(function):
    with pytest.raises(ConfigurationError, match=r"called with a connection and a room.*ws_route\(authorize_join"):
        ConnectionManager(authorize_join=function)


def yes_no(connection, what):
    yield False


async def yes_no_async(connection, what):
    yield False


class YesNo:
    def __call__(self, connection, what):
        yield False


@pytest.mark.parametrize("function", [yes_no, yes_no_async, YesNo(), functools.partial(yes_no)])
@pytest.mark.parametrize("name", ["authorize_join", "limiter"])
def test_what_yields_its_answer_would_say_yes_and_is_refused(name, function):
    with pytest.raises(ConfigurationError, match=f"{name} is asked a question, but .* yields: write `return`"):
        ConnectionManager(**{name: function})


@pytest.mark.parametrize("function", [5, "yes"])
@pytest.mark.parametrize("name", ["authorize_join", "limiter"])
def test_what_cannot_be_asked_is_refused(name, function):
    with pytest.raises(ConfigurationError, match=f"{name} takes a function"):
        ConnectionManager(**{name: function})


def test_a_limiter_takes_two():
    with pytest.raises(ConfigurationError, match="limiter is called with a connection and"):
        ConnectionManager(limiter=lambda connection: True)


def test_what_nobody_knows_the_arguments_of_is_believed():
    class Opaque:
        __signature__ = None

        def __call__(self, connection, room):
            return True

    assert ConnectionManager(authorize_join=Opaque()).active_connections == 0
    assert ConnectionManager(authorize_join=max).active_connections == 0


async def test_a_handshake_cannot_be_checked_in_a_thread_which_is_said():
    manager = ConnectionManager()
    with pytest.raises(ConfigurationError, match="write `async def` for the dependency"):
        await asyncio.to_thread(manager.check_handshake, Peer().websocket)


@pytest.mark.parametrize("end", ["client_state", "application_state"])
async def test_who_has_gone_is_not_refused_but_told_so(end):
    manager, peer = ConnectionManager(), Peer()
    setattr(peer.websocket, end, WebSocketState.DISCONNECTED)
    with pytest.raises(NotConnectedError):
        manager.refuse_credentials(peer.websocket)


async def test_a_connection_that_is_forgotten_keeps_nothing_that_a_route_has_given_it():
    manager = ConnectionManager()
    peer = Peer()
    connection = await manager.connect(peer.websocket, authorize_join=lambda connection, room: True)
    manager.disconnect(connection)
    assert connection._authorize_join is None
