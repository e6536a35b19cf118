"""The manager without a server: sockets in memory, one loop."""

import asyncio
import gc
import logging
import weakref
from datetime import UTC, datetime

import pytest
from support import counted

from engine.fakes import FakeWire, Peer, connected, is_empty, run_clocked, texts, ticks, until
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConfigurationError, ConnectionEnded, MessageError, NotConnectedError
from fastapi_rooms.domain.messages import Close, MessageType
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine import references
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.inbound.claimed import ClaimedWebSocket
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.references import connection_of

MODULE_LEVEL = ConnectionManager()


# Connecting


async def test_connecting_accepts_registers_and_joins(manager):
    before, peer = datetime.now(UTC), Peer()
    connection = await manager.connect(peer.websocket, "a", "ann", {"device": "phone"})
    assert [event["type"] for event in peer.events] == ["websocket.accept"]
    assert isinstance(connection, Connection)
    assert connection.is_open
    assert connection.websocket is peer.websocket
    assert (connection.user_id, connection.rooms, connection.metadata) == ("ann", {"a"}, {"device": "phone"})
    assert before <= connection.connected_at <= datetime.now(UTC)
    assert manager.active_connections == 1
    assert manager.active_rooms == ["a"]
    assert manager.get_room_members("a") == [connection]
    assert manager.get_user_connections("ann") == [connection]


async def test_a_connection_needs_neither_room_nor_user(manager):
    _, connection = await connected(manager)
    assert (connection.rooms, connection.user_id, connection.metadata) == (set(), None, {})
    assert (manager.active_connections, manager.active_rooms) == (1, [])


async def test_the_metadata_are_copied(manager):
    metadata = {"a": 1}
    connection = await manager.connect(Peer().websocket, metadata=metadata)
    metadata["a"] = 2
    assert connection.metadata == {"a": 1}


async def test_subprotocol_and_headers_go_into_the_handshake(manager):
    peer = Peer()
    await manager.connect(peer.websocket, subprotocol="chat", headers=[(b"x-a", b"1")])
    [accept] = peer.events
    assert accept["subprotocol"] == "chat"
    assert (b"x-a", b"1") in accept["headers"]


async def test_a_socket_that_the_app_has_accepted_is_not_accepted_again(manager):
    peer = Peer()
    await peer.websocket.accept()
    connection = await manager.connect(peer.websocket, "a")
    assert len(peer.events) == 1
    assert connection.is_open


async def test_connecting_twice_gives_the_same_connection_and_joins_the_room(manager):
    peer = Peer()
    first = await manager.connect(peer.websocket, "a", "ann", {"a": 1})
    second = await manager.connect(peer.websocket, "b", "ann", {"b": 2})
    third = await manager.connect(peer.websocket)
    assert first is second is third
    assert (first.user_id, first.rooms, first.metadata) == ("ann", {"a", "b"}, {"a": 1})
    assert len(peer.events) == 1
    assert manager.active_connections == 1


@pytest.mark.parametrize(("first", "whose"), [(None, "of nobody"), ("bob", "of another user")])
async def test_who_it_is_is_said_at_the_first_connect(manager, first, whose):
    peer = Peer()
    connection = await manager.connect(peer.websocket, user_id=first)
    with pytest.raises(ConfigurationError, match=f"open already, and {whose}"):
        await manager.connect(peer.websocket, "a", user_id="ann")
    assert (connection.user_id, connection.rooms, connection.is_open) == (first, frozenset(), True)
    assert await manager.connect(peer.websocket, "a", user_id=first) is connection


async def test_a_message_that_is_a_connection_says_that_the_arguments_are_the_other_way_round(manager):
    peer, connection = await connected(manager)
    for recipient in (connection, peer.websocket, ClaimedWebSocket({"type": "websocket"}, None, None)):
        with pytest.raises(MessageError, match="the arguments are the other way round"):
            await manager.send_personal("hello", recipient)
        with pytest.raises(MessageError, match="the arguments are the other way round"):
            await manager.broadcast_to_room("a", recipient)


async def test_connecting_concurrently_accepts_once_and_gives_the_same_connection(manager):
    peer = Peer()
    peer.accepts.clear()
    calls = [asyncio.create_task(manager.connect(peer.websocket, room)) for room in "abc"]
    await ticks()
    assert not any(call.done() for call in calls)
    peer.accepts.set()
    first, second, third = await asyncio.gather(*calls)
    assert first is second is third
    assert first.rooms == {"a", "b", "c"}
    assert [event["type"] for event in peer.events] == ["websocket.accept"]


async def test_a_connection_that_was_made_before_accept_is_the_one_that_is_connected(manager):
    peer = Peer()
    early = connection_of(peer.websocket)
    assert not early.is_open
    assert await manager.connect(peer.websocket) is early


class AcceptError(Exception):
    pass


async def test_the_time_of_connecting_is_that_of_the_answer(manager):
    peer = Peer()
    early = connection_of(peer.websocket)
    made = early.connected_at
    while datetime.now(UTC) == made:
        await asyncio.sleep(0)
    before = datetime.now(UTC)
    await manager.connect(peer.websocket)
    assert made < before <= early.connected_at


async def test_a_handshake_that_fails_leaves_nothing_behind(manager):
    peer = Peer()
    peer.accept_error = AcceptError()
    with pytest.raises(AcceptError):
        await manager.connect(peer.websocket, "a", "ann")
    assert is_empty(manager)
    assert manager.disconnect(peer.websocket) is None
    with pytest.raises(NotConnectedError):
        await manager.connect(peer.websocket)


async def test_a_handshake_that_is_cancelled_leaves_nothing_behind(manager):
    peer = Peer()
    peer.accepts.clear()
    call = asyncio.create_task(manager.connect(peer.websocket, "a", "ann"))
    await until(lambda: not is_empty(manager))
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert is_empty(manager)


async def test_who_waits_for_a_handshake_that_fails_learns_that_the_socket_has_ended(manager):
    peer = Peer()
    peer.accepts.clear()
    peer.accept_error = AcceptError()
    calls = [asyncio.create_task(manager.connect(peer.websocket, "a")) for _ in range(3)]
    await ticks()
    peer.accepts.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [AcceptError, NotConnectedError, NotConnectedError]
    assert is_empty(manager)


async def test_cancelling_one_who_waits_for_a_handshake_leaves_the_handshake_alone(manager):
    peer = Peer()
    peer.accepts.clear()
    first, second, third = (asyncio.create_task(manager.connect(peer.websocket)) for _ in range(3))
    await ticks()
    second.cancel()
    await asyncio.wait([second])
    peer.accepts.set()
    assert await first is await third
    assert manager.active_connections == 1


async def test_while_the_handshake_is_answered_room_and_user_reach_it_but_nobody_sees_it(manager):
    peer = Peer()
    peer.accepts.clear()
    call = asyncio.create_task(manager.connect(peer.websocket, "a", "ann"))
    other, _ = await connected(manager, "a")
    await ticks()
    assert manager.active_connections == 1
    assert manager.active_rooms == ["a"]
    assert len(manager.get_room_members("a")) == 1
    assert manager.get_user_connections("ann") == []
    assert await manager.broadcast_to_room("a", "to the room") == 2
    assert await manager.send_to_user("ann", "to the user") == 1
    assert await manager.broadcast("to all") == 2
    await ticks()
    assert peer.events == []
    assert other.texts == ["to the room", "to all"]
    peer.accepts.set()
    connection = await call
    assert await texts(peer) == [["to the room", "to the user", "to all"]]
    assert peer.events[0]["type"] == "websocket.accept"
    assert manager.active_connections == 2
    assert manager.get_user_connections("ann") == [connection]


async def test_a_room_with_nobody_but_those_whose_handshake_is_answered_is_not_active(manager):
    peer = Peer()
    peer.accepts.clear()
    call = asyncio.create_task(manager.connect(peer.websocket, "a"))
    await ticks()
    assert manager.active_rooms == []
    peer.accepts.set()
    await call
    assert manager.active_rooms == ["a"]


async def test_a_connection_that_is_closed_during_the_handshake_is_closed_after_it(manager):
    peer = Peer()
    peer.accepts.clear()
    call = asyncio.create_task(manager.connect(peer.websocket, "a", "ann"))
    await ticks()
    await manager.broadcast_to_room("a", "last words")
    assert await manager.close_user("ann", 4000, "banned") == 1
    assert is_empty(manager)
    assert await manager.broadcast_to_room("a", "too late") == 0
    peer.accepts.set()
    connection = await call
    await connection.wait_until_closed()
    assert [event["type"] for event in peer.events] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert peer.close_codes == [4000]
    assert not connection.is_open
    assert is_empty(manager)


async def test_a_connection_that_is_closed_and_forgotten_during_the_handshake_gets_its_close_frame(manager):
    peer = Peer()
    peer.accepts.clear()
    call = asyncio.create_task(manager.connect(peer.websocket, "a"))
    await ticks()
    await manager.broadcast_to_room("a", "last words")
    await manager.close_room("a", 1000, "bye")
    manager.disconnect(peer.websocket)
    peer.accepts.set()
    connection = await call
    assert await texts(peer) == [["last words"]]
    assert peer.close_codes == [1000]
    assert connection.close_code == 1000
    stats = manager.stats()
    assert (stats.closing, stats.queued_messages, stats.dropped["lost"]) == (1, 0, 0)
    peer.transport.closing = True  # as the client hangs up
    manager._parts.flusher.look_for_left()
    assert manager.stats().closing == 0
    assert is_empty(manager)


async def test_who_waits_for_a_handshake_during_which_it_is_closed_learns_that_it_has_ended(manager):
    peer = Peer()
    peer.accepts.clear()
    first = asyncio.create_task(manager.connect(peer.websocket, "a"))
    second = asyncio.create_task(manager.connect(peer.websocket, "b"))
    await ticks()
    await manager.close_room("a")
    peer.accepts.set()
    assert not (await first).is_open
    with pytest.raises(NotConnectedError):
        await second
    assert is_empty(manager)


async def test_a_connection_that_is_closed_during_a_handshake_that_fails_is_done(manager):
    peer = Peer()
    peer.accepts.clear()
    peer.accept_error = AcceptError()
    call = asyncio.create_task(manager.connect(peer.websocket, "a"))
    await ticks()
    [connection] = manager._parts.lifecycle.opening
    await manager.broadcast_to_room("a", "lost")
    await manager.close_room("a")
    peer.accepts.set()
    with pytest.raises(AcceptError):
        await call
    async with asyncio.timeout(1):
        await connection.wait_until_closed()
    assert manager.stats().dropped["lost"] == 1
    assert is_empty(manager)


async def test_what_was_sent_during_a_handshake_that_fails_is_counted_as_lost(manager):
    peer = Peer()
    peer.accepts.clear()
    peer.accept_error = AcceptError()
    call = asyncio.create_task(manager.connect(peer.websocket, "a"))
    await ticks()
    for number in range(3):
        await manager.broadcast_to_room("a", number)
    await ticks()
    peer.accepts.set()
    await asyncio.wait([call])
    assert isinstance(call.exception(), AcceptError)
    assert manager.stats().dropped["lost"] == 3


async def test_a_connection_that_is_forgotten_during_the_handshake_gets_nothing_and_that_is_counted(manager):
    peer = Peer()
    peer.accepts.clear()
    call = asyncio.create_task(manager.connect(peer.websocket, "a"))
    await ticks()
    await manager.broadcast_to_room("a", "lost")
    assert manager.disconnect(peer.websocket) is not None
    assert is_empty(manager)
    peer.accepts.set()
    connection = await call
    assert not connection.is_open
    assert await texts(peer) == [[]]
    assert manager.stats().dropped["lost"] == 1
    assert is_empty(manager)


async def end_by_app(peer):
    await peer.websocket.accept()
    await peer.websocket.close()


async def refuse(peer):
    await peer.websocket.receive()
    await peer.websocket.close()


async def end_by_client(peer):
    await peer.websocket.accept()
    peer.go()
    await peer.websocket.receive()


@pytest.mark.parametrize("end", [end_by_app, refuse, end_by_client])
async def test_a_socket_that_has_ended_cannot_be_connected(manager, end):
    peer = Peer()
    await end(peer)
    with pytest.raises(NotConnectedError, match="has ended"):
        await manager.connect(peer.websocket, "a", "ann")
    assert is_empty(manager)


async def test_a_connection_that_has_ended_cannot_be_connected_again(manager):
    peer, connection = await connected(manager)
    await connection.close()
    with pytest.raises(NotConnectedError, match="a client that comes again is a new WebSocket"):
        await manager.connect(peer.websocket)
    manager.disconnect(connection)
    with pytest.raises(NotConnectedError, match="a client that comes again is a new WebSocket"):
        await manager.connect(peer.websocket)


async def test_one_socket_belongs_to_one_manager(manager):
    other = ConnectionManager()
    peer, connection = await connected(manager, "a", "ann")
    with pytest.raises(ConfigurationError, match="another manager"):
        await other.connect(peer.websocket, "b")
    assert is_empty(other)
    assert other.disconnect(peer.websocket) is None
    assert await other.send_personal(peer.websocket, "hi") is False
    assert await other.join_room(connection, "b") is False
    await other.close(connection)
    assert connection.is_open
    assert connection.rooms == {"a"}
    assert await texts(peer) == [[]]
    await other.stop()
    assert connection.is_open


# Disconnecting


async def test_disconnecting_forgets_at_once_and_does_not_close(manager):
    peer, connection = await connected(manager, "a", "ann")
    await manager.join_room(connection, "b")
    assert manager.disconnect(peer.websocket) is connection
    assert is_empty(manager)
    assert not connection.is_open
    assert connection.rooms == {"a", "b"}, "so that they can be told"
    await ticks()
    assert peer.events == []


async def test_disconnecting_is_idempotent_by_socket_and_by_connection(manager):
    peer, connection = await connected(manager)
    assert manager.disconnect(connection) is connection
    assert manager.disconnect(connection) is None
    assert manager.disconnect(peer.websocket) is None


async def test_disconnecting_a_stranger_is_nothing(manager):
    peer = Peer()
    assert manager.disconnect(peer.websocket) is None
    assert manager.disconnect(connection_of(peer.websocket)) is None


async def test_what_was_sent_before_disconnecting_is_still_written(manager):
    peer, connection = await connected(manager)
    await connection.send("last words")
    manager.disconnect(connection)
    assert await texts(peer) == [["last words"]]


async def test_a_connection_that_was_closed_is_forgotten_once(manager):
    _, connection = await connected(manager)
    await connection.close()
    assert manager.disconnect(connection) is connection
    assert manager.disconnect(connection) is None


@pytest.mark.parametrize("is_read", [False, True], ids=["not read", "read"])
@pytest.mark.parametrize("end", ["forgotten", "closed", "gone"])
async def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector(manager, end, is_read):
    gc.collect()
    gc.disable()
    try:
        peer, connection = await connected(manager, "a", "ann")
        if is_read:
            connection.messages(str)
        await connection.send("hi")
        await ticks()
        if end == "closed":
            await connection.close()
            await connection.wait_until_closed()
        elif end == "gone":
            peer.go()
            await ticks()
        peer.transport.closing = True
        manager.disconnect(connection)
        kept = weakref.ref(connection)
        del connection
        await ticks()
        manager._parts.flusher._sweep()
        assert kept() is None
    finally:
        gc.enable()


async def test_an_outbox_whose_socket_is_gone_is_not_watched_any_more(manager):
    peer, connection = await connected(manager)
    peer.transport.closing = True
    await connection.close()
    assert manager._parts.flusher._watched == {}


# Membership


async def test_joining_and_leaving_say_what_was(manager):
    _, connection = await connected(manager)
    assert await manager.join_room(connection, "a") is True
    assert await manager.join_room(connection, "a") is True
    assert await manager.leave_room(connection, "a") is True
    assert await manager.leave_room(connection, "a") is False
    assert await manager.leave_room(connection, "never") is False
    assert (connection.rooms, manager.active_rooms) == (set(), [])


async def test_a_target_is_a_connection_its_socket_or_its_id(manager):
    peer, connection = await connected(manager)
    for room, target in [("a", connection), ("b", peer.websocket), ("c", connection.connection_id)]:
        assert await manager.join_room(target, room) is True
        assert room in connection.rooms
        assert await manager.leave_room(target, room) is True
    for target in (connection, peer.websocket, connection.connection_id):
        assert await manager.send_personal(target, "hi") is True
    assert await texts(peer) == [["hi"] * 3]


async def test_strangers_are_in_no_room_and_get_nothing(manager):
    stranger = Peer().websocket
    _, gone = await connected(manager, "a")
    manager.disconnect(gone)
    for target in (stranger, connection_of(stranger), "no such id", gone, gone.websocket, gone.connection_id):
        assert await manager.join_room(target, "a") is False
        assert await manager.leave_room(target, "a") is False
        assert await manager.send_personal(target, "hi") is False
        await manager.close(target)
    assert is_empty(manager)


async def test_members_are_listed_first_come_first_and_the_list_is_a_snapshot(manager):
    connections = [(await connected(manager, "a", "ann"))[1] for _ in range(3)]
    members, devices = manager.get_room_members("a"), manager.get_user_connections("ann")
    assert members == devices == connections
    members.clear()
    devices.clear()
    assert manager.get_room_members("a") == manager.get_user_connections("ann") == connections
    assert manager.get_room_members("b") == manager.get_user_connections("bob") == []
    assert manager.active_rooms == ["a"]


# Sending


async def test_a_message_to_a_room_reaches_its_members_only(manager):
    first, _ = await connected(manager, "a")
    second, _ = await connected(manager, "a")
    other, _ = await connected(manager, "b")
    assert await manager.broadcast_to_room("a", "hi") == 2
    assert await manager.broadcast_to_room("nowhere", "hi") == 0
    assert await texts(first, second, other) == [["hi"], ["hi"], []]


async def test_a_message_to_a_user_reaches_all_devices(manager):
    phone, _ = await connected(manager, user_id="ann")
    laptop, _ = await connected(manager, user_id="ann")
    other, _ = await connected(manager, user_id="bob")
    assert await manager.send_to_user("ann", {"a": 1}) == 2
    assert await manager.send_to_user("nobody", {"a": 1}) == 0
    assert await texts(phone, laptop, other) == [['{"a":1}'], ['{"a":1}'], []]


async def test_a_broadcast_reaches_everybody(manager):
    peers = [(await connected(manager))[0] for _ in range(3)]
    assert await manager.broadcast(b"\xff") == 3
    await ticks()
    assert [peer.events for peer in peers] == [[{"type": "websocket.send", "bytes": b"\xff"}]] * 3


EXCLUDED = {
    "an id": lambda ann, bob: ann.connection_id,
    "a connection": lambda ann, bob: ann,
    "a set of ids": lambda ann, bob: {ann.connection_id},
    "a list of connections": lambda ann, bob: [ann],
    "a generator": lambda ann, bob: (one for one in [ann]),
    "a stranger too": lambda ann, bob: [ann, "no such id", Connection(None)],
}


@pytest.mark.parametrize("exclude", EXCLUDED.values(), ids=EXCLUDED)
async def test_one_can_be_left_out_in_many_forms(manager, exclude):
    (ann_peer, ann), (bob_peer, bob) = await connected(manager, "a"), await connected(manager, "a")
    assert await manager.broadcast("all", exclude=exclude(ann, bob)) == 1
    assert await manager.broadcast_to_room("a", "room", exclude=exclude(ann, bob)) == 1
    assert await texts(ann_peer, bob_peer) == [[], ["all", "room"]]


@pytest.mark.parametrize("exclude", [(), None, "", set(), iter(())])
async def test_nobody_is_left_out_by_an_empty_exclusion(manager, exclude):
    peer, _ = await connected(manager)
    assert await manager.broadcast("all", exclude=exclude) == 1
    assert await texts(peer) == [["all"]]


async def test_a_user_is_left_out_with_all_connections(manager):
    ann = [(await connected(manager, "a", "ann"))[0] for _ in range(2)]
    (bob_peer, bob), (eve_peer, _) = await connected(manager, "a", "bob"), await connected(manager, "a")
    assert await manager.broadcast("all", exclude_user="ann") == 2
    assert await manager.broadcast_to_room("a", "room", exclude=bob, exclude_user="ann") == 1
    assert await texts(*ann, bob_peer, eve_peer) == [[], [], ["all"], ["all", "room"]]


@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.send_personal("ann", "hi"),
        lambda manager: manager.close("ann"),
        lambda manager: manager.join_room("ann", "b"),
        lambda manager: manager.leave_room("ann", "a"),
        lambda manager: manager.broadcast("hi", exclude="ann"),
        lambda manager: manager.broadcast_to_room("a", "hi", exclude=["ann"]),
        lambda manager: manager.close_user("bob", exclude="ann"),
    ],
)
async def test_a_user_in_place_of_a_connection_is_nobody_and_that_is_said(manager, call, caplog, monkeypatch):
    monkeypatch.setattr(references, "_mistakes_said", Seldom())
    peer, _ = await connected(manager, "a", "ann")
    await call(manager)
    await call(manager)
    [told] = [record.getMessage() for record in caplog.records]
    assert told == (
        "'ann' is no connection_id, which has 32 hexadecimal digits: take `connection.connection_id`. All connections "
        "of a user are reached by send_to_user and close_user, and left out by exclude_user (said once a minute)"
    )
    assert peer.close_codes == []


async def test_many_can_be_left_out_in_mixed_forms(manager):
    (_, ann), (_, bob), (peer, _) = [await connected(manager, "a") for _ in range(3)]
    assert await manager.broadcast_to_room("a", "hi", exclude={ann, bob.connection_id}) == 1
    assert await texts(peer) == [["hi"]]


async def test_order_is_the_order_of_the_calls_whatever_their_kind(manager):
    peer, connection = await connected(manager, "a", "ann")
    for number in range(0, 20, 4):
        await manager.broadcast(str(number))
        await manager.broadcast_to_room("a", str(number + 1))
        await manager.send_to_user("ann", str(number + 2))
        await connection.send(str(number + 3))
        await asyncio.sleep(0)
    assert await texts(peer) == [[str(number) for number in range(20)]]


class Opaque:
    pass


async def test_what_cannot_be_encoded_is_sent_to_nobody(manager):
    peer, connection = await connected(manager, "a", "ann")
    for send in (
        lambda message, kind=None: manager.broadcast(message, kind),
        lambda message, kind=None: manager.broadcast_to_room("a", message, kind),
        lambda message, kind=None: manager.send_to_user("ann", message, kind),
        lambda message, kind=None: manager.send_personal(connection, message, kind),
        lambda message, kind=None: manager.send_personal("no such id", message, kind),
        connection.send,
    ):
        with pytest.raises(MessageError):
            await send({"a": Opaque()})
        with pytest.raises(MessageError):
            await send("\ud800")
        with pytest.raises(MessageError):
            await send("{", MessageType.JSON)
        with pytest.raises(ConfigurationError):
            await send("hi", "no such type")
    assert await texts(peer) == [[]]
    assert connection.is_open


async def test_a_message_is_encoded_once_for_all_recipients(manager):
    encoded = []

    class Counting(dict):
        def __init__(self):
            super().__init__(a=1)

    peers = [(await connected(manager, "a"))[0] for _ in range(5)]

    async def note(event):
        encoded.append(event["text"])

    for peer in peers:
        peer.websocket._send = note
    await manager.broadcast_to_room("a", Counting())
    await until(lambda: len(encoded) == 5)
    assert all(text is encoded[0] for text in encoded)


async def test_a_dead_peer_is_not_the_senders_problem(manager):
    dead, lost = await connected(manager, "a", "ann")
    alive, _ = await connected(manager, "a")
    dead.send_error = OSError("reset")
    assert await manager.broadcast_to_room("a", "hi") == 2
    await until(lambda: not lost.is_open)
    assert await texts(alive) == [["hi"]]
    assert manager.get_room_members("a") != []
    assert lost not in manager.get_room_members("a")
    assert manager.get_user_connections("ann") == []
    assert lost.rooms == {"a"}
    assert await manager.broadcast_to_room("a", "again") == 1
    assert manager.stats().dropped["lost"] == 1
    assert manager.disconnect(dead.websocket) is lost, "the endpoint still has to learn which rooms it was in"


class Refusing(Peer):
    """A peer behind a middleware that fails for messages, and, if told so, for the close frame."""

    def __init__(self):
        super().__init__()
        self.refuses = {"websocket.send"}

    async def _send(self, event):
        if event["type"] in self.refuses:
            raise LookupError("no context")
        await super()._send(event)


async def test_who_cannot_be_sent_to_is_closed_with_1011_and_said_once_a_minute(caplog):
    caplog.set_level(logging.DEBUG, "fastapi_rooms")
    ended = []
    manager = ConnectionManager(hooks=Hooks(disconnected=ended.append))
    peers = [Refusing() for _ in range(3)]
    peers[2].refuses.add("websocket.close")
    connections = [await manager.connect(peer.websocket, "a") for peer in peers]
    reading = [asyncio.create_task(anext(connection.messages(str), "the end")) for connection in connections]
    assert await manager.broadcast_to_room("a", "hi") == 3
    assert await asyncio.wait_for(asyncio.gather(*reading), 1) == ["the end"] * 3
    assert [peer.close_codes for peer in peers] == [[1011], [1011], []]
    assert [end.code for end in ended] == [1011] * 3
    assert (manager.active_connections, manager.stats().dropped["lost"]) == (0, 3)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info[0] is LookupError
    assert "closed with 1011. Does a middleware around the app fail in its `send`?" in record.getMessage()
    await manager.stop()


async def test_a_slow_consumer_is_closed_and_reported_once_and_delays_nobody(caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    manager = ConnectionManager(RoomsSettings(outbox_messages=3))
    stuck, slow = await connected(manager, "a", "ann")
    quick, _ = await connected(manager, "a")
    stuck.reads.clear()
    counts = []
    for number in range(10):
        counts.append(await manager.broadcast_to_room("a", str(number)))
        await ticks()
    assert quick.texts == [str(number) for number in range(10)]
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {1, 2}
    assert not slow.is_open
    assert manager.get_user_connections("ann") == []
    assert (manager.stats().closed["slow_consumer"], manager.stats().dropped["lost"]) == (1, 1)
    [record] = caplog.records
    assert record.getMessage() == f"{slow!r} is a slow consumer: closed with 1013"
    stuck.reads.set()
    await slow.wait_until_closed()
    assert stuck.texts == [str(number) for number in range(counts.count(2))]
    assert stuck.close_codes == [1013]
    await manager.stop()


async def test_who_has_too_much_waiting_since_the_node_is_behind_is_not_called_slow(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "fastapi_rooms")
    manager = ConnectionManager(RoomsSettings(outbox_messages=1))
    peer, connection = await connected(manager, "a")
    writers = manager._parts.lifecycle.flusher._writers
    monkeypatch.setattr(writers, "_start", lambda loop: None)  # their turn never comes
    while connection.is_open:
        await manager.broadcast("x")
        await asyncio.sleep(0)
        manager._parts.lifecycle.flusher._sweep()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.endswith("is not written to, since this node is behind: closed with 1013")
    assert manager.stats().closed["slow_consumer"] == 1
    monkeypatch.undo()
    writers._start(asyncio.get_running_loop())
    await until(lambda: peer.close_codes == [1013])
    await manager.stop()


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_a_slow_consumer_may_lose_messages_instead(overflow):
    manager = ConnectionManager(RoomsSettings(outbox_messages=3, overflow=overflow))
    peer, connection = await connected(manager, "a")
    peer.reads.clear()
    handed = 0
    for number in range(10):
        handed += await manager.broadcast_to_room("a", str(number))
        await ticks()
    peer.reads.set()
    await connection.wait_until_caught_up()
    assert connection.is_open
    expected = ["0", "7", "8", "9"] if overflow == "drop_oldest" else ["0", "1", "2", "3", "4"]
    assert peer.texts == expected
    assert manager.stats().dropped["lost"] == 10 - len(expected)
    assert handed == (10 if overflow == "drop_oldest" else 5)
    assert manager.stats().closed["slow_consumer"] == 0
    await manager.stop()


async def test_a_producer_can_wait_until_a_connection_has_caught_up(manager):
    peer, connection = await connected(manager)
    peer.reads.clear()
    await manager.send_personal(connection, "a")
    await ticks()
    waiting = asyncio.create_task(connection.wait_until_caught_up())
    await ticks()
    assert not waiting.done()
    peer.reads.set()
    await asyncio.wait_for(waiting, 1)
    manager.disconnect(connection)
    await asyncio.wait_for(connection.wait_until_caught_up(), 1)


# Closing


async def test_closing_sends_a_close_frame_behind_what_was_sent(manager):
    peer, connection = await connected(manager, "a", "ann")
    await connection.send("last words")
    await connection.close(4000, "bye")
    assert peer.events == [
        {"type": "websocket.send", "text": "last words"},
        {"type": "websocket.close", "code": 4000, "reason": "bye"},
    ]
    assert not connection.is_open
    assert is_empty(manager)
    assert await manager.send_personal(connection, "too late") is False
    with pytest.raises(ConnectionEnded, match=r"manager\.send_personal, which returns False") as error:
        await connection.send("too late")
    assert error.value.connection is connection


@pytest.mark.parametrize("form", [lambda c: c, lambda c: c.websocket, lambda c: c.connection_id])
async def test_any_target_can_be_closed_and_closing_twice_is_closing_once(manager, form):
    peer, connection = await connected(manager)
    await manager.close(form(connection), 4000)
    await manager.close(form(connection), 4001)
    await connection.wait_until_closed()
    assert peer.close_codes == [4000]


async def test_closing_does_not_wait_for_the_peer(manager):
    peer, connection = await connected(manager)
    peer.reads.clear()
    async with asyncio.timeout(1):
        await connection.close()
    waiting = asyncio.create_task(connection.wait_until_closed())
    await ticks()
    assert not waiting.done()
    peer.reads.set()
    await asyncio.wait_for(waiting, 1)
    assert peer.close_codes == [1000]


async def test_closing_a_user_closes_all_devices(manager):
    (phone, _), (laptop, _) = await connected(manager, "a", "ann"), await connected(manager, "b", "ann")
    other, _ = await connected(manager, "a", "bob")
    assert await manager.close_user("ann", 4001, "banned") == 2
    assert await manager.close_user("ann") == 0
    assert (phone.close_codes, laptop.close_codes, other.close_codes) == ([4001], [4001], [])
    assert manager.active_rooms == ["a"]


async def test_closing_a_room_closes_its_members(manager):
    (first, _), (second, _) = await connected(manager, "a"), await connected(manager, "a")
    other, _ = await connected(manager, "b")
    assert await manager.close_room("a") == 2
    assert await manager.close_room("a") == 0
    assert (first.close_codes, second.close_codes, other.close_codes) == ([1000], [1000], [])
    assert manager.active_rooms == ["b"]


@pytest.mark.parametrize("code", [1006, 70_000])
async def test_a_code_that_may_not_be_sent_closes_nobody(manager, code):
    _, connection = await connected(manager, "a", "ann")
    for call in (
        connection.close(code),
        manager.close("no such id", code),
        manager.close_user("ann", code),
        manager.close_room("a", code),
        manager.broadcast(code, MessageType.CLOSE),
    ):
        with pytest.raises(ConfigurationError):
            await call
    assert connection.is_open


async def test_a_close_can_be_sent_like_a_message(manager):
    (ann_peer, ann), (bob_peer, _) = await connected(manager, "a", "ann"), await connected(manager, "a", "bob")
    eve_peer, eve = await connected(manager, "a", "eve")
    assert await manager.broadcast_to_room("a", (4000, "bye"), MessageType.CLOSE, exclude=[ann, eve]) == 1
    assert bob_peer.close_codes == [4000]
    assert await ann.send(None, "close") is True
    with pytest.raises(ConnectionEnded):
        await ann.send(None, "close")
    assert await manager.send_to_user("eve", 4002, MessageType.CLOSE) == 1
    assert await manager.broadcast(None, MessageType.CLOSE) == 0
    assert (ann_peer.close_codes, eve_peer.close_codes) == ([1000], [4002])


async def test_a_socket_that_the_app_closed_behind_our_back_is_found_gone(manager):
    peer, connection = await connected(manager, "a")
    await peer.websocket.close(4000)
    await manager.broadcast("hi")
    await until(lambda: not connection.is_open)
    assert peer.close_codes == [4000]
    assert is_empty(manager)


@pytest.mark.parametrize("reason", ["lifetime", "replaced", "slow_consumer"])
def test_who_was_closed_for_a_reason_that_is_counted_and_does_not_take_even_that_is_counted_once(reason):
    async def main():
        settings = {
            "lifetime": {"max_connection_seconds": 1},
            "replaced": {"max_connections_per_user": 1, "user_limit_policy": "replace"},
            "slow_consumer": {"outbox_messages": 1},
        }[reason]
        manager = ConnectionManager(RoomsSettings(send_timeout=4, **settings))
        stuck, _ = await connected(manager, "a", "ann")
        stuck.reads.clear()
        for _ in range(1 if reason != "slow_consumer" else 5):
            await manager.broadcast("x")
            await ticks()
        if reason == "replaced":
            await connected(manager, "a", "ann")
        await asyncio.sleep(10)
        assert stuck.transport.aborted
        assert counted(manager.stats().closed) == {reason: 1}
        await manager.stop()

    run_clocked(main)


@pytest.mark.parametrize("is_ours", [False, True])
def test_who_was_closed_by_the_server_and_does_not_take_even_that_is_counted_once(is_ours):
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=4))
        _, connection = await connected(manager, "a")
        outbox = connection._outbox
        wire = outbox._wire = FakeWire()
        wire.held = 100
        if is_ours:
            await connection.close(4000)
        wire.gone, wire.said_by_server = True, (1011, "keepalive ping timeout")
        manager._parts.flusher._sweep()
        await asyncio.sleep(10)
        assert wire.aborts == 1
        assert not connection.is_open
        assert counted(manager.stats().closed) == ({"stalled": 1} if is_ours else {"by_server": 1})
        await manager.stop()

    run_clocked(main)


def test_a_peer_that_takes_nothing_is_aborted_and_counted():
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8))
        peer, connection = await connected(manager, "a", "ann")
        reading = asyncio.create_task(anext(connection.messages(str), "the end"))
        peer.reads.clear()
        await connection.send("hi")
        await asyncio.sleep(20)
        assert reading.done()
        assert reading.result() == "the end"
        assert peer.transport.aborted
        assert not connection.is_open
        assert is_empty(manager)
        assert (manager.stats().closed["stalled"], manager.stats().dropped["lost"]) == (1, 1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_clocked(main)


def test_a_peer_that_takes_no_close_frame_is_aborted():
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8))
        peer, connection = await connected(manager)
        peer.reads.clear()
        await connection.close(4000)
        await connection.wait_until_closed()
        assert peer.transport.aborted
        assert peer.events == []
        assert asyncio.get_running_loop().time() <= 13
        assert manager.stats().closed["stalled"] == 1

    run_clocked(main)


@pytest.mark.parametrize(("closes", "code", "counted"), [(False, 1013, 1), (True, 4000, 0)])
def test_a_peer_that_takes_nothing_and_cannot_be_aborted_gets_a_close_frame_when_it_can(closes, code, counted):
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8))
        peer = Peer()
        peer.transport = None
        connection = await manager.connect(peer.websocket, "a")
        peer.reads.clear()
        await manager.send_personal(connection, "hi")
        await asyncio.sleep(0)
        await manager.send_personal(connection, "there")
        if closes:
            await connection.close(4000)
        asyncio.get_running_loop().call_later(14, peer.reads.set)
        await connection.wait_until_closed()
        assert asyncio.get_running_loop().time() == pytest.approx(14)
        assert peer.close_codes == [code]
        assert connection.close_code == code
        assert peer.texts == [], "what it did not take is given up"
        stats = manager.stats()
        assert (stats.closed["slow_consumer"], stats.closed["stalled"], stats.dropped["lost"]) == (counted, 0, 2)
        assert is_empty(manager)
        await manager.stop()

    run_clocked(main)


def test_a_peer_that_went_while_nothing_was_sent_is_noticed():
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8))
        peer, connection = await connected(manager, "a")
        peer.transport.closing = True
        await asyncio.sleep(3)
        assert not connection.is_open
        assert is_empty(manager)
        assert not peer.transport.aborted

    run_clocked(main)


# Lifecycle


async def test_stopping_closes_everybody_with_1012_and_leaves_nothing():
    manager = ConnectionManager()
    peers = [(await connected(manager, "a", "ann")) for _ in range(3)]
    reader = asyncio.create_task(anext(peers[0][1].messages(str), "the end"))
    await ticks()
    await manager.broadcast("last words")
    await manager.stop()
    assert [peer.texts for peer, _ in peers] == [["last words"]] * 3
    assert [peer.close_codes for peer, _ in peers] == [[1012]] * 3
    assert is_empty(manager)
    assert await asyncio.wait_for(reader, 1) == "the end"
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_stopping_ends_the_reader_of_a_peer_that_was_found_gone():
    manager = ConnectionManager()
    peer, connection = await connected(manager, "a")
    reading = asyncio.create_task(anext(connection.messages(str), "the end"))
    peer.send_error = OSError("reset")
    await manager.broadcast("hi")
    await until(lambda: not connection.is_open)
    await manager.stop()
    assert await asyncio.wait_for(reading, 1) == "the end"
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_stopping_waits_for_nobody_longer_than_the_time_to_send():
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8))
        stuck, _ = await connected(manager)
        quick, _ = await connected(manager)
        stuck.reads.clear()
        await manager.stop()
        assert asyncio.get_running_loop().time() <= 9
        assert stuck.transport.aborted
        assert (quick.close_codes, quick.transport.aborted) == ([1012], False)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_clocked(main)


def test_nobody_is_let_in_while_it_stops():
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8))
        stuck, _ = await connected(manager)
        stuck.reads.clear()
        stopping = asyncio.create_task(manager.stop())
        await asyncio.sleep(3)
        assert manager.is_draining
        with pytest.raises(HandshakeRefused) as refused:
            await connected(manager)
        assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "5"})
        await stopping
        assert not manager.is_draining
        _, connection = await connected(manager)
        assert connection.is_open
        await manager.stop()

    run_clocked(main)


def test_stopping_ends_a_hook_that_swallows_its_cancellation_by_cancelling_it_again():
    async def main():
        async def stubborn(connection):
            for _ in range(2):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    swallowed.append(connection)
            await asyncio.Event().wait()

        swallowed = []
        manager = ConnectionManager(hooks=Hooks(connected=stubborn))
        _, connection = await connected(manager)
        await ticks()
        await manager.stop()
        assert swallowed == [connection] * 2
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_clocked(main)


async def test_a_manager_that_was_stopped_can_be_used_again():
    manager = ConnectionManager()
    await manager.stop()
    await connected(manager)
    await manager.stop()
    peer, _ = await connected(manager, "a")
    assert await manager.broadcast("hi") == 1
    assert await texts(peer) == [["hi"]]
    await manager.stop()


def test_a_manager_at_module_level_works_on_one_loop_after_the_other():
    async def main(stop):
        peer, connection = await connected(MODULE_LEVEL, "a", "ann")
        assert await MODULE_LEVEL.broadcast_to_room("a", "hi") == 1
        assert await texts(peer) == [["hi"]]
        waiting = asyncio.create_task(anext(connection.messages(str)))
        peer.say("hello")
        assert await waiting == "hello"
        await MODULE_LEVEL.close_user("ann")
        await connection.wait_until_closed()
        assert peer.close_codes == [1000]
        if stop:
            await MODULE_LEVEL.stop()

    for stop in (False, True, False, True):
        asyncio.run(main(stop))
    assert is_empty(MODULE_LEVEL)
    assert MODULE_LEVEL.stats().dropped["lost"] == 0


# Looking at it


async def test_no_repr_shows_what_is_said_or_secret(manager):
    connection = await manager.connect(Peer().websocket, "a", "ann", {"token": "hunter2"})
    await connection.send("hunter2")
    assert repr(manager) == "<ConnectionManager connections=1 rooms=1>"
    assert "hunter2" not in repr(connection)
    assert repr(connection) == f"<Connection {connection.connection_id} user='ann' open rooms=1>"


def test_the_defaults_are_the_default_settings():
    assert ConnectionManager().settings == RoomsSettings()
    settings = RoomsSettings(outbox_bytes=5)
    assert ConnectionManager(settings).settings is settings


async def test_a_websocket_does_wherever_a_connection_does(manager):
    first, second = Peer(), Peer()
    one = await manager.connect(first.websocket, "r")
    two = await manager.connect(second.websocket, "r")
    assert await manager.broadcast("psst", exclude=first.websocket) == 1
    assert await manager.broadcast("psst", exclude=[first.websocket, two]) == 0
    assert await manager.broadcast("psst", exclude=Peer().websocket) == 2
    assert manager.disconnect(one.connection_id) is one
    assert manager.disconnect(one.connection_id) is None


def test_a_close_code_that_is_no_number_is_refused():
    with pytest.raises(ConfigurationError, match="'4000' is no close code"):
        Close("4000")
