"""What an app is told: each event once, in order, after it has happened; and what its hooks cannot break."""

import asyncio
import contextvars
import logging

import pytest
from support import until

from engine.fakes import Peer, connected, is_empty, run_clocked, settled
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.hooks import Announcer, Hooks
from fastapi_rooms.engine.manager import ConnectionManager


class Diary:
    """Keeps what it is told, connection by connection."""

    def __init__(self) -> None:
        self.entries: list[tuple[object, ...]] = []
        self.ends = []
        self.hooks = Hooks(
            connected=lambda connection: self.note("connected", connection.is_open),
            disconnected=self.disconnected,
            joined=lambda connection, room: self.note("joined", room, room in connection.rooms),
            left=lambda connection, room: self.note("left", room),
            overflow=lambda connection: self.note("overflow"),
            refused=lambda refused: self.note("refused", str(refused.reason)),
            gap=lambda gap: self.note("gap", gap),
        )

    def note(self, *entry: object) -> None:
        self.entries.append(entry)

    def disconnected(self, end) -> None:
        self.ends.append(end)
        self.note("disconnected", end.code, end.reason)


async def test_a_life_is_told_in_order_and_after_the_event():
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    peer = Peer()
    connection = await manager.connect(peer.websocket, "a", "ann")
    assert diary.entries == [], "not before the end of the tick"
    await settled()
    await manager.join_room(connection, "b")
    await manager.join_room(connection, "b")
    await manager.leave_room(connection, "a")
    await manager.leave_room(connection, "a")
    await connection.close(4000, "enough")
    await connection.close(4001, "again")
    manager.disconnect(connection)
    await settled()
    assert diary.entries == [
        ("connected", True),
        ("joined", "a", True),
        ("joined", "b", True),
        ("left", "a"),
        ("left", "b"),
        ("disconnected", 4000, "enough"),
    ]
    [end] = diary.ends
    assert end.connection is connection
    assert connection.rooms == {"b"}, "they can be told"
    await manager.stop()


# How it ended


async def ended(diary, manager, *, reads=True):
    """Return a new client that is read from, or not, and what was told about its end, in a list."""
    diary.ends.clear()
    peer, connection = await connected(manager, "a", "ann")
    if reads:
        connection.messages(str)
    await settled()
    return peer, connection


@pytest.mark.parametrize(
    ("event", "code", "reason"),
    [
        ({"code": 4321, "reason": "bye"}, 4321, "bye"),
        ({"code": 1001}, 1001, ""),
        ({"code": 1005, "reason": ""}, 1005, ""),
        ({"code": 1005}, 1006, ""),
        ({"code": 1006}, 1006, ""),
        ({}, 1006, ""),
        ({"code": None, "reason": None}, 1006, ""),
    ],
)
async def test_the_clients_code_is_told_and_1006_if_there_was_no_close_frame(event, code, reason):
    """uvicorn says 1005 of a lost connection, too, but then without a reason."""
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    peer, connection = await ended(diary, manager)
    peer._incoming.put_nowait({"type": "websocket.disconnect", **event})
    await until(lambda: diary.ends)
    assert [(end.code, end.reason) for end in diary.ends] == [(code, reason)]
    assert (connection.close_code, connection.close_reason) == (code, reason)
    await manager.stop()


async def test_our_code_is_told_and_not_what_the_client_answers():
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    peer, connection = await ended(diary, manager)
    await connection.close(4000, "ours")
    peer.go(4999)
    await settled()
    assert [(end.code, end.reason) for end in diary.ends] == [(4000, "ours")]
    await manager.stop()


@pytest.mark.parametrize("reads", [True, False])
async def test_who_is_forgotten_has_no_code(reads):
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    _, connection = await ended(diary, manager, reads=reads)
    manager.disconnect(connection)
    await settled()
    assert [(end.code, end.reason) for end in diary.ends] == [(None, "")]
    await manager.stop()


async def test_the_stop_of_the_manager_is_told_before_it_is_over():
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    await ended(diary, manager)
    await ended(diary, manager, reads=False)
    await manager.stop()
    assert [end.code for end in diary.ends] == [1012, 1012]


@pytest.mark.parametrize("reads", [True, False])
async def test_who_is_found_gone_when_it_is_written_to_is_told_once(reads):
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    peer, connection = await ended(diary, manager, reads=reads)
    peer.send_error = OSError("gone")
    await connection.send("x")
    await until(lambda: not connection.is_open)
    if reads:
        await settled()
        assert diary.ends == [], "the reader will see why"
        peer.go(1001)
    await until(lambda: diary.ends)
    manager.disconnect(connection)
    await settled()
    assert [end.code for end in diary.ends] == [1001 if reads else 1006]
    assert diary.entries[-2:] == [("left", "a"), ("disconnected", diary.ends[0].code, "")]
    await manager.stop()


async def test_who_is_found_gone_and_whose_handler_ends_before_its_reader_learns_why_has_1006():
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    peer, connection = await ended(diary, manager)
    peer.send_error = OSError("gone")
    await connection.send("x")
    await until(lambda: not connection.is_open)
    manager.disconnect(connection)
    await settled()
    assert [end.code for end in diary.ends] == [1006]
    await manager.stop()


async def test_a_slow_consumer_is_told_and_how_it_ended():
    diary = Diary()
    manager = ConnectionManager(RoomsSettings(outbox_messages=1), hooks=diary.hooks)
    peer, connection = await ended(diary, manager)
    peer.reads.clear()
    for _ in range(4):
        await manager.send_personal(connection, "x")
        await settled()
    assert diary.entries[-3:] == [("overflow",), ("left", "a"), ("disconnected", 1013, "slow consumer")]
    peer.reads.set()
    await manager.stop()
    assert len(diary.ends) == 1


@pytest.mark.parametrize("reads", [True, False])
def test_a_stalled_peer_is_told_when_it_is_aborted(reads):
    async def main():
        diary = Diary()
        manager = ConnectionManager(RoomsSettings(send_timeout=8), hooks=diary.hooks)
        peer, connection = await ended(diary, manager, reads=reads)
        peer.reads.clear()
        await asyncio.sleep(100)
        await connection.send("x")
        await asyncio.sleep(20)
        [end] = diary.ends
        assert (end.code, end.connection) == (1006, connection)
        assert end.seconds + 110 >= 107, "of the wall clock, which does not jump"
        peer.go(1001)
        await settled()
        assert len(diary.ends) == 1
        await manager.stop()

    run_clocked(main)


async def test_how_long_it_was_connected_is_told_in_seconds(monkeypatch):
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    _, connection = await ended(diary, manager)
    connection.connected_at = connection.connected_at.replace(year=connection.connected_at.year - 1)
    await connection.close()
    _, later = await connected(manager)
    later.connected_at = later.connected_at.replace(year=later.connected_at.year + 1)
    await later.close()
    await settled()
    lasted, none = (end.seconds for end in diary.ends)
    assert 365 * 86_400 <= lasted < 367 * 86_400
    assert none == 0, "the wall clock was set back"
    await manager.stop()


# What was never open


@pytest.mark.parametrize("how", ["fails", "is closed", "is forgotten"])
async def test_who_was_never_open_is_not_told_of_though_it_was_in_rooms(how):
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    peer = Peer()
    peer.accepts.clear()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "a"))
    await settled()
    await manager.join_room(peer.websocket, "b")
    await manager.join_room(peer.websocket, "c")
    await manager.leave_room(peer.websocket, "c")
    match how:
        case "fails":
            peer.accept_error = OSError("gone")
        case "is closed":
            await manager.close(peer.websocket)
        case "is forgotten":
            manager.disconnect(peer.websocket)
    peer.accepts.set()
    await asyncio.wait([connecting])
    await settled()
    assert diary.entries == []
    assert connecting.exception() is None or how == "fails"
    assert is_empty(manager)
    await manager.stop()


async def test_rooms_that_were_joined_during_the_handshake_are_told_when_it_is_open():
    diary = Diary()
    manager = ConnectionManager(hooks=diary.hooks)
    peer = Peer()
    peer.accepts.clear()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "a"))
    await settled()
    await manager.join_room(peer.websocket, "b")
    peer.accepts.set()
    await connecting
    await settled()
    assert diary.entries[0] == ("connected", True)
    assert sorted(diary.entries[1:]) == [("joined", "a", True), ("joined", "b", True)]
    await manager.stop()


# Hooks that fail, take long, or go their own ways


@pytest.mark.parametrize("is_async", [True, False])
async def test_hooks_that_raise_break_nothing_and_are_logged(is_async, caplog):
    def fail(*_):
        raise RuntimeError("a bug of the app")

    async def fail_async(*_):
        raise RuntimeError("a bug of the app")

    names = ("connected", "disconnected", "joined", "left", "overflow", "refused", "gap")
    hooks = Hooks(**dict.fromkeys(names, fail_async if is_async else fail))
    manager = ConnectionManager(hooks=hooks, authorize_join=lambda connection, room: room != "no")
    peer, connection = await connected(manager, "a")
    other, _ = await connected(manager, "a")
    with pytest.raises(Exception, match="403"):
        await manager.connect(Peer().websocket, "no")
    assert await manager.broadcast_to_room("a", "x") == 2
    await settled()
    assert peer.texts == other.texts == ["x"]
    await manager.leave_room(connection, "a")
    await connection.close()
    await manager.stop()
    (record,) = caplog.records  # of one function once a minute, however often it is called
    assert record.exc_info[0] is RuntimeError
    assert record.levelno == logging.ERROR
    assert f"the hook {hooks.connected.__qualname__} failed" in record.getMessage()


def test_what_is_no_function_is_no_hook():
    with pytest.raises(ConfigurationError, match="the hook 'joined' takes a function, not 5"):
        Hooks(joined=5)


async def test_async_hooks_run_beside_each_other_and_are_ended_with_the_manager():
    begun, ended = [], []

    async def take_for_ever(connection):
        begun.append(connection)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(connection)

    async def at_once(end):
        begun.append(end.connection)

    settings = RoomsSettings(disconnect_grace=0.05)
    manager = ConnectionManager(settings, hooks=Hooks(connected=take_for_ever, disconnected=at_once))
    connections = [(await connected(manager))[1] for _ in range(3)]
    await settled()
    assert begun == connections
    assert {task.get_name() for task in manager._parts.announcer._tasks} == {"fastapi_rooms hook"}
    await manager.stop()
    assert begun == connections * 2, "who was closed by the stop was told, too"
    assert sorted(map(id, ended)) == sorted(map(id, connections))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("is_drained", [False, True])
async def test_a_hook_that_writes_something_down_comes_to_its_end_also_when_the_manager_stops(is_drained):
    offline = []

    async def write_down(end):
        await asyncio.sleep(0.05)  # a database
        offline.append((end.connection, end.code))

    manager = ConnectionManager(hooks=Hooks(disconnected=write_down))
    connections = [(await connected(manager))[1] for _ in range(3)]
    if is_drained:
        await manager.drain(1)
    await manager.stop()
    assert offline == [(connection, 1012) for connection in connections]


async def test_what_is_due_at_the_stop_is_told_and_gets_to_its_first_await():
    told = []

    async def tell(what):
        told.append(what)
        await asyncio.Event().wait()

    announcer = Announcer()
    announcer.tell(tell, "in the tick of the stop")
    await announcer.stop()
    assert told == ["in the tick of the stop"]
    assert not announcer._tasks


async def test_a_hook_may_call_the_manager_and_even_stop_it():
    stopped = asyncio.Event()

    async def stop(connection):
        await manager.stop()
        stopped.set()

    async def join(connection):
        await manager.join_room(connection, "lobby")

    manager = ConnectionManager(hooks=Hooks(connected=join))
    _, connection = await connected(manager)
    await until(lambda: connection.rooms == {"lobby"})
    await manager.stop()
    manager = ConnectionManager(hooks=Hooks(connected=stop))
    _, connection = await connected(manager)
    await asyncio.wait_for(stopped.wait(), 5)
    assert connection.close_code == 1012
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_a_hook_does_not_see_the_context_of_who_caused_the_event():
    """What it does is of the node; a request's database session in a context variable would live on in it."""
    request = contextvars.ContextVar("request", default=None)
    seen = []

    async def look(connection):
        seen.append(request.get())

    manager = ConnectionManager(hooks=Hooks(connected=lambda connection: seen.append(request.get()), joined=None))
    request.set("mine")
    await connected(manager)
    await settled()
    manager._parts.hooks = manager._parts.lifecycle._hooks = Hooks(connected=look)
    await connected(manager)
    await settled()
    assert seen == [None, None]
    await manager.stop()


async def test_a_hook_that_causes_events_is_told_of_them_after_those_that_are_due():
    told = []
    announcer = Announcer()
    announcer.tell(lambda: (told.append(1), announcer.tell(told.append, 3)))
    announcer.tell(told.append, 2)
    announcer.tell(None, "nobody wants to know")
    assert told == []
    await announcer.stop()
    assert told == [1, 2, 3]
    await settled()
    assert told == [1, 2, 3], "what was scheduled has nothing left to call"


def test_what_was_due_on_a_loop_that_has_ended_is_told_on_the_next():
    told = []
    announcer = Announcer()

    async def main():
        announcer.tell(told.append, 2)
        await settled()

    ended = asyncio.new_event_loop()
    ended.call_soon(announcer.tell, told.append, 1)
    ended.call_soon(ended.stop)
    ended.run_forever()
    ended.close()
    assert told == []
    asyncio.run(main())
    assert told == [1, 2]


async def test_a_manager_without_hooks_tells_nobody_and_schedules_nothing():
    manager = ConnectionManager()
    _, connection = await connected(manager, "a")
    await manager.leave_room(connection, "a")
    assert not manager._parts.announcer._due
    assert manager._parts.announcer._loop is None
    await manager.stop()


def test_hooks_that_are_none_are_refused():
    with pytest.raises(ConfigurationError, match="hooks takes Hooks, not dict"):
        ConnectionManager(hooks={"connected": print})


async def test_a_hook_that_begins_while_others_finish_has_its_time_too():
    finished = []

    async def note(refused):
        await asyncio.sleep(0.1)
        finished.append(refused.reason)

    async def write_down(end):
        await asyncio.sleep(0.05)

    manager = ConnectionManager(hooks=Hooks(disconnected=write_down, refused=note))
    await connected(manager)
    stopping = asyncio.create_task(manager.stop())
    await until(lambda: manager._parts.announcer._tasks)
    with pytest.raises(HandshakeRefused):
        await manager.connect(Peer().websocket)
    await stopping
    assert finished == ["draining"]


async def test_a_hook_that_begins_while_others_are_ended_is_ended_with_them():
    async def take_for_ever(refused):
        await asyncio.Event().wait()

    async def end_slowly(end):
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(HandshakeRefused):
                await manager.connect(Peer().websocket)
            await asyncio.sleep(0.01)

    settings = RoomsSettings(disconnect_grace=0.01)
    manager = ConnectionManager(settings, hooks=Hooks(disconnected=end_slowly, refused=take_for_ever))
    await connected(manager)
    await manager.stop()
    assert not manager._parts.announcer._tasks
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("how", ["itself", "in a task"])
async def test_a_hook_that_stops_the_manager_is_not_waited_for_by_that_stop(how):
    stopped = asyncio.Event()

    async def stop(end):
        stopping = manager.stop()
        await (stopping if how == "itself" else asyncio.create_task(stopping))
        stopped.set()

    manager = ConnectionManager(RoomsSettings(disconnect_grace=60), hooks=Hooks(disconnected=stop))
    _, connection = await connected(manager)
    manager.disconnect(connection)
    await asyncio.wait_for(stopped.wait(), 5)
    assert not manager.is_draining
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


def takes_nothing():
    raise AssertionError("it is never called")


async def yields(one):
    yield one


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("connected", takes_nothing, r"the hook 'connected' is called with 1 argument, but takes_nothing\(\)"),
        ("joined", lambda connection: None, "the hook 'joined' is called with 2 arguments"),
        ("left", lambda connection, room, more: None, "the hook 'left' is called with 2 arguments"),
        ("disconnected", yields, "the hook 'disconnected' would do nothing, since .* yields"),
        ("gap", 7, "the hook 'gap' takes a function, not 7"),
    ],
)
def test_a_hook_that_cannot_be_called_is_refused_when_it_is_made(name, wrong, said):
    with pytest.raises(ConfigurationError, match=said):
        Hooks(**{name: wrong})


@pytest.mark.parametrize("fine", [print, lambda *anything: None, lambda one, two=2: None])
def test_a_hook_may_take_more_than_it_is_given(fine):
    assert Hooks(connected=fine, joined=fine).joined is fine
