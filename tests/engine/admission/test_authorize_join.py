"""The app is asked whether a connection may come into a room, and nothing is left behind by a no."""

import asyncio
import functools
import logging
import threading

import pytest
from starlette.exceptions import HTTPException
from support import counted, until

from engine.admission.asking import NO, YES, Gate, Says, SaysAsync, refused, say_async, say_sync
from engine.fakes import Peer, connected, is_empty, settled
from fastapi_rooms.domain.errors import (
    ConfigurationError,
    InvalidName,
    JoinRefused,
    TooManyRooms,
)
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.manager import ConnectionManager

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
        manager._parts.admission._authorize_join = form(no)
        with pytest.raises(JoinRefused, match="said no"):
            await manager.join_room(connection, "c")
        refusal = await refused(manager, Peer(), Refusal.JOIN, "a")
        assert (refusal.status_code, refusal.headers) == (403, None)
    assert connection.rooms == {"a", "b"}
    assert connection.is_open
    assert manager.active_connections == 1
    assert counted(manager.stats().refused) == {Refusal.JOIN: 8}
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
    manager._parts.admission._authorize_join = Says(YES)
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
    assert not manager._parts.admission._asking
    assert peer.events == []
    await manager.stop()


async def test_of_two_connects_at_once_the_first_says_who_it_is_and_each_room_is_asked_for():
    """Else the app would be asked about Ann, and Bob would be let in."""
    gate = Gate()
    manager = ConnectionManager(authorize_join=gate.ask)
    peer = Peer()
    first = asyncio.create_task(manager.connect(peer.websocket, "a", "ann", {"is": "first"}))
    await until(lambda: gate.asked)
    second = asyncio.create_task(manager.connect(peer.websocket, "b", "ann", {"is": "second"}))
    third = asyncio.create_task(manager.connect(peer.websocket, "c"))
    other = asyncio.create_task(manager.connect(peer.websocket, "d", "bob"))
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
    with pytest.raises(ConfigurationError, match="open already, and of another user"):
        await other
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


async def test_one_that_answers_nothing_means_no_and_that_is_said_once(caplog):
    async def forgets_to_answer(connection, room):
        """Look something up, and return nothing."""

    manager = ConnectionManager(authorize_join=forgets_to_answer)
    _, connection = await connected(manager)
    for _ in range(2):
        with pytest.raises(JoinRefused):
            await manager.join_room(connection, "a")
    [said] = [record.getMessage() for record in caplog.records]
    assert "authorize_join returned None, which means no: return True" in said
    await manager.stop()
