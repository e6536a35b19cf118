"""How many are let in, as the app and the settings say, and nothing is left of who is not."""

import asyncio

import pytest
from support import counted, until

from engine.admission.asking import NO, YES, Gate, refused
from engine.fakes import Peer, connected, is_empty, settled
from engine.scripted import ScriptedBackend
from fastapi_rooms.domain.close_codes import CloseCode, may_reconnect
from fastapi_rooms.domain.errors import (
    TooManyRooms,
)
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound.flusher import LEFT_AT_ONCE

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
    assert manager.stats().dropped["rate_limited"] == 0
    await manager.stop()


# How many


async def test_a_node_takes_as_many_connections_as_it_may_and_those_that_are_opening_count():
    manager = ConnectionManager(RoomsSettings(max_connections=2))
    first_peer, first = await connected(manager)
    hanging = Peer()
    hanging.accepts.clear()
    opening = asyncio.create_task(manager.connect(hanging.websocket))
    await settled()
    refusal = await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    assert (refusal.status_code, refusal.headers) == (503, {"Retry-After": "5"})
    opening.cancel()
    await asyncio.wait([opening])
    second_peer, second = await connected(manager)
    await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    manager.disconnect(first)
    await second.close()
    await second.wait_until_closed()
    assert (manager.stats().connections, manager.stats().closing) == (0, 2)
    await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    for peer in (first_peer, second_peer):
        peer.transport.closing = True
        await connected(manager)
    await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    assert (manager.stats().connections, manager.stats().closing) == (2, 0)
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


LIMITS = {
    Refusal.MAX_CONNECTIONS: {"max_connections": 5},
    Refusal.MAX_CONNECTIONS_PER_USER: {"max_connections_per_user": 5},
    Refusal.MAX_CONNECTIONS_PER_ADDRESS: {"max_connections_per_address": 5},
}


def peer_from(host: str | None) -> Peer:
    peer = Peer()
    peer.websocket.scope["client"] = None if host is None else (host, 1)
    return peer


@pytest.mark.parametrize("limit", LIMITS)
async def test_the_app_is_asked_about_no_more_than_may_come_in(limit):
    gate = Gate()
    manager = ConnectionManager(RoomsSettings(**LIMITS[limit]), authorize_join=gate.ask)

    def come():
        return asyncio.create_task(manager.connect(peer_from("192.0.2.1").websocket, "a", "ann"))

    crowd = [come() for _ in range(200)]
    await settled()
    assert len(gate.asked) == 5
    assert counted(manager.stats().refused) == {limit: 195}
    if limit is not Refusal.MAX_CONNECTIONS:
        others = asyncio.create_task(manager.connect(peer_from("192.0.2.2").websocket, "a", "bob"))
        await until(lambda: len(gate.asked) == 6)
        others.cancel()

    # A place is given back by who is refused and who goes; who comes in keeps it.
    first, second, *_ = [one for one in crowd if not one.done()]
    gate.answer(NO, 0)
    second.cancel()
    gate.answer(YES, 2)
    await until(lambda: first.done() and second.done() and manager.active_connections == 1)
    more = [come() for _ in range(10)]
    await settled()
    assert sum(not one.done() for one in more) == 2
    for one in [*crowd, *more]:
        one.cancel()
    await asyncio.wait([*crowd, *more])
    await manager.stop()
    assert is_empty(manager)
    places = manager._parts.admission._places
    assert not any((places._asked, places._asked_users, places._asked_addresses))


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


def replacing(most: int, **options) -> ConnectionManager:
    return ConnectionManager(RoomsSettings(max_connections_per_user=most, user_limit_policy="replace"), **options)


async def test_the_oldest_of_a_user_gives_way_to_the_newest():
    ends = []
    hooks = Hooks(connected=lambda one: ends.append("connected"), disconnected=lambda end: ends.append(end.code))
    manager = replacing(2, hooks=hooks)
    phone, first = await connected(manager, "a", "ann")
    _, second = await connected(manager, "a", "ann")
    bob, _ = await connected(manager, "a", "bob")
    for _ in range(3):
        await connected(manager, "a")
    newest_peer, newest = await connected(manager, "a", "ann")
    await settled()
    assert phone.close_codes == [CloseCode.REPLACED]
    assert phone.events[-1]["reason"] == "replaced by a newer connection"
    assert manager.get_user_connections("ann") == [second, newest]
    assert first.close_code == CloseCode.REPLACED
    assert not may_reconnect(first.close_code)
    await connected(manager, "a", "ann")
    assert second.close_code == CloseCode.REPLACED
    assert (bob.events, newest_peer.events) == ([], [])
    assert counted(manager.stats().closed) == {"replaced": 2}
    assert counted(manager.stats().refused) == {}
    await settled()
    assert ends.count(4509) == 2
    await manager.stop()


async def test_neither_room_nor_user_is_left_by_all_when_one_takes_the_place_of_the_other():
    backend = ScriptedBackend()
    unsubscribed = []
    backend.unsubscribe = unsubscribed.append
    settings = RoomsSettings(max_connections_per_user=1, user_limit_policy="replace")
    manager = DistributedWebSocketManager(backend, settings=settings)
    await manager.start()
    for _ in range(3):
        await connected(manager, "a", "ann")
    assert unsubscribed == []
    assert len(manager.get_room_members("a")) == 1
    await manager.stop()


async def test_of_two_that_come_at_once_one_is_left_whether_the_first_was_answered_or_not():
    manager = replacing(1)
    peers = [Peer() for _ in range(5)]
    for peer in peers:
        peer.accepts.clear()
    connecting = [asyncio.create_task(manager.connect(peer.websocket, "a", "ann")) for peer in peers]
    await settled()
    assert manager.stats().connections == 1
    for peer in peers:
        peer.accepts.set()
    await asyncio.wait(connecting)
    await settled()
    [left] = manager.get_user_connections("ann")
    assert left.websocket is peers[-1].websocket
    assert [peer.close_codes for peer in peers] == [[4509]] * 4 + [[]]
    assert manager.stats().closed["replaced"] == 4
    await manager.stop()
    assert is_empty(manager)


def hanging() -> Peer:
    peer = Peer()
    peer.accepts.clear()
    return peer


async def test_nobody_who_is_open_gives_way_before_the_handshake_of_the_newest_was_answered():
    told = []
    hooks = Hooks(
        connected=lambda one: told.append(("connected", one)),
        disconnected=lambda end: told.append(("disconnected", end.connection)),
    )
    manager = replacing(2, hooks=hooks)
    peers = [await connected(manager, "a", "ann") for _ in range(2)]
    first, second = [connection for _, connection in peers]
    peer = hanging()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "a", "ann"))
    await settled()
    assert manager.get_user_connections("ann") == [first, second]
    told.clear()
    peer.accepts.set()
    third = await connecting
    await settled()
    assert manager.get_user_connections("ann") == [second, third]
    assert told == [("disconnected", first), ("connected", third)], "so that a set of users stays right"
    assert [peer.close_codes for peer, _ in peers] == [[4509], []]
    await manager.stop()


@pytest.mark.parametrize("ending", ["hangs up", "is cancelled", "is closed"])
async def test_nobody_gives_way_to_who_goes_during_its_handshake(ending):
    manager = replacing(1)
    old_peer, old = await connected(manager, "a", "ann")
    peer = hanging()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "a", "ann"))
    await settled()
    if ending == "hangs up":
        peer.accept_error = OSError("the client went")
    elif ending == "is cancelled":
        connecting.cancel()
    else:
        [opening] = manager._parts.lifecycle.opening
        await manager.close(opening, 4000)
    peer.accepts.set()
    await asyncio.wait([connecting])
    await settled()
    assert manager.get_user_connections("ann") == [old]
    assert (old_peer.close_codes, manager.stats().closed["replaced"]) == ([], 0)
    await manager.stop()
    assert is_empty(manager)


@pytest.mark.parametrize("is_newest_first", [False, True])
async def test_whoever_of_a_crowd_is_answered_first_as_many_are_left_as_may_be(is_newest_first):
    manager = replacing(2)
    old = [await connected(manager, "a", "ann") for _ in range(2)]
    crowd = [hanging() for _ in range(5)]
    connecting = [asyncio.create_task(manager.connect(peer.websocket, "a", "ann")) for peer in crowd]
    await settled()
    assert manager.stats().connections == 4, "as many as may be, and so many more that are being connected"
    for peer in reversed(crowd) if is_newest_first else crowd:
        peer.accepts.set()
        await settled()
        assert manager.stats().connections <= 4
    await asyncio.wait(connecting)
    assert [one.websocket for one in manager.get_user_connections("ann")] == [peer.websocket for peer in crowd[-2:]]
    assert [peer.close_codes for peer, _ in old] == [[4509]] * 2
    assert [peer.close_codes for peer in crowd] == [[4509]] * 3 + [[]] * 2
    assert manager.stats().closed["replaced"] == 5
    await manager.stop()
    assert is_empty(manager)


async def test_nobody_gives_way_to_who_is_refused_and_the_app_is_asked_about_no_more_than_may_be():
    gate = Gate()
    manager = replacing(1, authorize_join=gate.ask)
    here = asyncio.create_task(manager.connect(Peer().websocket, "a", "ann"))
    await until(lambda: gate.asked)
    await refused(manager, Peer(), Refusal.MAX_CONNECTIONS_PER_USER, "a", "ann")
    gate.answer(YES, 0)
    first = await here
    again = asyncio.create_task(manager.connect(Peer().websocket, "a", "ann"))
    await until(lambda: len(gate.asked) == 2)
    assert first.is_open, "while the app is asked"
    gate.answer(NO, 1)
    await asyncio.wait([again])
    assert first.is_open
    assert manager.stats().closed["replaced"] == 0
    await manager.stop()


async def test_an_address_has_as_many_connections_as_may_be(caplog):
    manager = ConnectionManager(RoomsSettings(max_connections_per_address=2))
    await manager.connect(peer_from("192.0.2.1").websocket)
    mapped_peer = peer_from("::ffff:192.0.2.1")
    mapped = await manager.connect(mapped_peer.websocket)
    refusal = await refused(manager, peer_from("192.0.2.1"), Refusal.MAX_CONNECTIONS_PER_ADDRESS)
    assert (refusal.status_code, refusal.headers) == (429, {"Retry-After": "5"})
    await manager.connect(peer_from("192.0.2.2").websocket)
    for number in range(2):
        await manager.connect(peer_from(f"2001:db8::{number}").websocket)
    await refused(manager, peer_from("2001:db8::ffff:1"), Refusal.MAX_CONNECTIONS_PER_ADDRESS)
    for nowhere in (None, None, None, "", ""):  # a Unix socket has none, and granian says so in its way
        await manager.connect(peer_from(nowhere).websocket)
    [said] = [record.getMessage() for record in caplog.records if "counts nothing here" in record.getMessage()]
    assert "--forwarded-allow-ips" in said
    manager.disconnect(mapped)
    await refused(manager, peer_from("192.0.2.1"), Refusal.MAX_CONNECTIONS_PER_ADDRESS)
    mapped_peer.transport.closing = True
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


async def test_who_finds_no_place_waits_for_nobody_who_has_left_however_many_have_not():
    """The sweep looks at everybody; who finds no place looks at some each time, in turn."""
    many = 3 * LEFT_AT_ONCE
    manager = ConnectionManager(RoomsSettings(max_connections=many))
    peers = []
    for _ in range(many):
        peer, connection = await connected(manager)
        manager.disconnect(connection)
        peers.append(peer)
    peers[-1].transport.closing = True
    for _ in range(2):
        await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    await connected(manager)
    await refused(manager, Peer(), Refusal.MAX_CONNECTIONS)
    assert (manager.stats().connections, manager.stats().closing) == (1, many - 1)
    await manager.stop()
    assert is_empty(manager)
    assert manager.stats().closing == 0


async def test_a_connection_is_in_as_many_rooms_as_it_may_be():
    manager = ConnectionManager(RoomsSettings(max_rooms_per_connection=2))
    _, connection = await connected(manager, "a")
    await manager.join_room(connection, "b")
    assert await manager.join_room(connection, "b") is True
    with pytest.raises(TooManyRooms, match=r"in 2 rooms: leave one first, or raise RoomsSettings\(max_rooms"):
        await manager.join_room(connection, "c")
    with pytest.raises(TooManyRooms):
        await manager.join_room(connection, "c", authorize=False)
    assert counted(manager.stats().refused) == {Refusal.MAX_ROOMS: 2}
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
