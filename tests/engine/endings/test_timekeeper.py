"""What ends a connection when its time has come: on a clock that jumps."""

import asyncio
import functools
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import counted

from engine.fakes import Peer, connected, is_empty, run_clocked, settled
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.incoming import Decoder
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission import admission
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.endings import timekeeper
from fastapi_rooms.engine.endings.timekeeper import LONGEST_SECONDS, as_datetime
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of

EPOCH = 1_800_000_000.0
"""When the wall clock of these tests begins."""


@pytest.fixture
def wall(monkeypatch):
    """A wall clock that goes with the loop's, and can be set by changing `wall.ahead`."""

    class Wall(datetime):
        ahead = 0.0

        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(EPOCH + cls.ahead + asyncio.get_running_loop().time(), tz)

        @classmethod
        def in_seconds(cls, seconds: float) -> float:
            return cls.now(UTC).timestamp() + seconds

    for module in (admission, timekeeper):
        monkeypatch.setattr(module, "datetime", Wall)
    return Wall


def clocked(main):
    """Run a test on a loop whose clock jumps."""

    @functools.wraps(main)
    def test(**fixtures):
        run_clocked(lambda: main(**fixtures))

    return test


async def expiring(manager, expires_at, **options):
    peer = Peer()
    return peer, await manager.connect(peer.websocket, "a", "ann", expires_at=expires_at, **options)


async def seconds_to_the_end(manager, connection) -> float:
    begin = asyncio.get_running_loop().time()
    await connection.wait_until_closed()
    return asyncio.get_running_loop().time() - begin


# Times


@pytest.mark.parametrize("when", [datetime(2030, 1, 1), datetime.max, datetime.fromtimestamp(0)])  # noqa: DTZ001, DTZ006, DTZ901
def test_a_time_without_a_zone_is_nobodys_time(when):
    with pytest.raises(ConfigurationError, match=r"no zone: write datetime.now\(UTC\) \+ timedelta"):
        as_datetime(when)


@pytest.mark.parametrize(
    "when",
    [
        1.8e12,  # milliseconds, as JavaScript has them
        float("inf"),
        float("nan"),
        1e300,
        "1800000000",
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    ],
)
def test_what_is_no_time_is_refused_with_what_to_pass(when):
    with pytest.raises(ConfigurationError, match=r"is no time: .*Pass a datetime with its zone, or seconds since"):
        as_datetime(when)


def test_who_has_no_time_never_expires():
    assert as_datetime(None) is None


@given(when=st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1)), hours=st.integers(-12, 14))  # noqa: DTZ001
def test_a_time_is_the_same_in_every_zone_and_as_a_number(when, hours):
    here = when.replace(tzinfo=timezone(timedelta(hours=hours)), microsecond=0)
    assert as_datetime(here) == here
    assert as_datetime(here).tzinfo is UTC
    assert as_datetime(here.timestamp()) == here
    assert as_datetime(int(here.timestamp())) == here


# Expiry


@clocked
async def test_a_connection_is_closed_when_its_credentials_expire(wall):
    manager = ConnectionManager()
    peer, connection = await expiring(manager, wall.in_seconds(50))
    _, forever = await connected(manager, "a", "ann")
    assert connection.expires_at.timestamp() == wall.in_seconds(50)
    assert await seconds_to_the_end(manager, connection) == pytest.approx(50, abs=0.1)
    assert peer.close_codes == [4401]
    assert (connection.close_code, connection.close_reason) == (4401, "the login has expired")
    assert connection not in manager.get_room_members("a")
    assert manager.stats().closed["expired"] == 1
    assert len(manager._parts.lifecycle.timekeeper) == 0
    assert forever.is_open
    await manager.stop()


@clocked
async def test_refreshing_moves_the_end_both_ways_and_takes_it_away(wall):
    manager = ConnectionManager()
    _, connection = await expiring(manager, wall.in_seconds(10))
    assert await manager.refresh(connection, wall.in_seconds(1000)) is True
    await asyncio.sleep(500)
    assert connection.is_open
    assert await manager.refresh(connection.connection_id, None) is True
    assert connection.expires_at is None
    assert len(manager._parts.lifecycle.timekeeper) == 0
    await asyncio.sleep(5000)
    assert connection.is_open
    assert await manager.refresh(connection.websocket, wall.in_seconds(100))
    assert await manager.refresh(connection, wall.in_seconds(20))
    assert await seconds_to_the_end(manager, connection) == pytest.approx(20, abs=0.1)
    assert manager.stats().closed["expired"] == 1
    await manager.stop()


@clocked
async def test_who_is_refreshed_to_a_time_that_has_passed_is_closed_at_once(wall):
    manager = ConnectionManager()
    _, connection = await expiring(manager, None)
    assert await manager.refresh(connection, 0) is True
    assert await seconds_to_the_end(manager, connection) == pytest.approx(0, abs=0.1)
    assert connection.close_code == 4401
    await manager.stop()


@clocked
async def test_who_is_not_open_is_not_refreshed(wall):
    manager = ConnectionManager()
    peer, connection = await expiring(manager, None)
    with pytest.raises(ConfigurationError, match="no zone"):
        await manager.refresh(connection, wall(2030, 1, 1))
    await connection.close()
    assert await manager.refresh(connection, wall.in_seconds(10)) is False
    assert await manager.refresh(peer.websocket, None) is False
    assert await manager.refresh("nobody", None) is False
    assert is_empty(manager)
    await manager.stop()


@clocked
async def test_expired_credentials_do_not_connect(wall):
    manager = ConnectionManager()
    for expires_at in (wall.in_seconds(0), wall.in_seconds(-1), 0):
        with pytest.raises(HandshakeRefused) as refusal:
            await expiring(manager, expires_at)
        assert (refusal.value.reason, refusal.value.status_code) == (Refusal.EXPIRED, 401)
    with pytest.raises(ConfigurationError, match="no zone"):
        await expiring(manager, wall(2030, 1, 1))
    assert is_empty(manager)
    assert counted(manager.stats().refused) == {Refusal.EXPIRED: 3}
    assert manager.stats().closed["expired"] == 0
    await manager.stop()


@clocked
async def test_what_expires_while_the_app_is_asked_is_closed_as_soon_as_it_is_open(wall):
    manager = ConnectionManager()

    async def take_long(connection, room):
        await asyncio.sleep(30)
        return True

    _, connection = await expiring(manager, wall.in_seconds(10), authorize_join=take_long)
    assert await seconds_to_the_end(manager, connection) == pytest.approx(0, abs=0.1)
    assert connection.close_code == 4401
    await manager.stop()


@clocked
async def test_a_wall_clock_that_is_set_back_gives_the_time_that_it_says(wall):
    manager = ConnectionManager()
    _, connection = await expiring(manager, wall.in_seconds(100))
    await asyncio.sleep(50)
    wall.ahead = -200.0
    assert await seconds_to_the_end(manager, connection) == pytest.approx(250, abs=0.1)
    assert manager.stats().closed["expired"] == 1
    await manager.stop()


@clocked
async def test_a_wall_clock_that_is_set_forward_is_noticed_within_the_hour(wall):
    manager = ConnectionManager()
    _, connection = await expiring(manager, wall.in_seconds(30 * 86_400))
    await asyncio.sleep(10 * LONGEST_SECONDS + 1)
    assert connection.is_open
    wall.ahead = 30.0 * 86_400
    assert await seconds_to_the_end(manager, connection) <= LONGEST_SECONDS
    await manager.stop()


# First message and old age

LIMITS = {"first_message_timeout": 20, "max_connection_seconds": 300}


@clocked
async def test_who_says_nothing_in_time_is_closed():
    manager = ConnectionManager(RoomsSettings(**LIMITS))
    peer, connection = await connected(manager, "a")
    connection.messages(str)
    assert await seconds_to_the_end(manager, connection) == pytest.approx(20, abs=0.1)
    assert peer.close_codes == [4408]
    assert connection.close_reason == "no message came in time"
    assert manager.stats().closed["silent"] == 1
    await manager.stop()


@clocked
async def test_who_has_said_something_may_be_silent_until_it_was_connected_for_long_enough():
    manager = ConnectionManager(RoomsSettings(**LIMITS))
    peer, connection = await connected(manager, "a")
    messages = connection.messages(str)
    await asyncio.sleep(19)
    peer.say("here")
    assert await anext(messages) == "here"
    assert await seconds_to_the_end(manager, connection) == pytest.approx(281, abs=0.1)
    assert peer.close_codes == [1000]
    assert connection.close_reason == "connected for long enough"
    assert manager.stats().closed["silent"] == 0
    assert is_empty(manager)
    await manager.stop()


@clocked
async def test_who_is_received_from_by_the_app_itself_is_not_taken_for_silent():
    """A plain endpoint calls `websocket.receive_text()`: what it gets is seen by nobody else."""
    manager = ConnectionManager(RoomsSettings(first_message_timeout=5, heartbeat_interval=5, heartbeat_timeout=5))
    peer, connection = await connected(manager)
    peer.say("hello")
    assert await peer.websocket.receive_text() == "hello"
    await asyncio.sleep(100)
    assert connection.is_open
    assert peer.texts == []
    await manager.stop()


# Heartbeat

HEARTBEAT = {"heartbeat_interval": 30, "heartbeat_timeout": 10}
PING = '{"type":"ping"}'


@clocked
async def test_a_silent_client_is_pinged_and_closed_when_it_does_not_answer():
    manager = ConnectionManager(RoomsSettings(**HEARTBEAT))
    peer, connection = await connected(manager, "a")
    connection.messages(str)
    await asyncio.sleep(29.9)
    assert peer.texts == []
    await asyncio.sleep(0.2)
    assert peer.texts == [PING]
    assert await seconds_to_the_end(manager, connection) == pytest.approx(9.9, abs=0.1)
    assert peer.texts == [PING]
    assert peer.close_codes == [4408]
    assert connection.close_reason == "a ping message was not answered"
    assert manager.stats().closed["silent"] == 1
    assert is_empty(manager)
    await manager.stop()


@pytest.mark.parametrize("answer", ['{"type":"pong"}', "anything", b"\x00"])
@clocked
async def test_a_client_that_answers_stays_whatever_it_says(answer):
    manager = ConnectionManager(RoomsSettings(**HEARTBEAT))
    peer, connection = await connected(manager)
    messages = sessions_of(manager).received(connection, Decoder(str | bytes))
    receiving = asyncio.create_task(_collect(messages))
    for count in range(1, 6):
        await asyncio.sleep(35 if count == 1 else 40)
        assert peer.texts.count(PING) == count
        peer.say(answer)
    assert connection.is_open
    await connection.close()
    await receiving
    await manager.stop()


@clocked
async def test_a_client_that_talks_is_not_pinged():
    manager = ConnectionManager(RoomsSettings(**HEARTBEAT))
    peer, connection = await connected(manager)
    connection.messages(str)
    for _ in range(20):
        peer.say("x")
        await asyncio.sleep(20)
    assert peer.texts == []
    assert connection.is_open
    await manager.stop()


@clocked
async def test_a_client_that_says_too_much_is_not_silent(monkeypatch):
    """Its answer to a ping may be the message that is dropped."""
    monkeypatch.setattr("fastapi_rooms.engine.inbound.reader.monotonic", lambda: 0.0)
    manager = ConnectionManager(RoomsSettings(messages_per_second=1, messages_burst=1, **HEARTBEAT))
    peer, connection = await connected(manager)
    connection.messages(str)
    peer.say("the only one")
    for _ in range(5):
        await asyncio.sleep(65)
        assert peer.texts.count(PING) > 0
        peer.say('{"type":"pong"}')
        await asyncio.sleep(5)
        peer.say('{"type":"pong"}')
    assert connection.is_open
    assert manager.stats().dropped["rate_limited"] > 0
    await manager.stop()


@clocked
async def test_a_client_that_is_held_up_by_its_handler_is_not_silent():
    """While nothing is read, its answer to a ping would lie unread, too."""
    manager = ConnectionManager(RoomsSettings(inbox_messages=2, inbox_timeout=500, **HEARTBEAT))
    peer, connection = await connected(manager)
    messages = connection.messages(str)
    for number in range(5):
        peer.say(str(number))
    assert await anext(messages) == "0"
    await asyncio.sleep(300)
    assert connection.is_open
    assert peer.texts == []
    assert [await anext(messages) for _ in range(4)] == ["1", "2", "3", "4"]
    assert await seconds_to_the_end(manager, connection) <= 2 * 30 + 10
    assert peer.texts == [PING]
    assert peer.close_codes == [4408]
    await manager.stop()


@clocked
async def test_nobody_has_to_answer_a_ping_that_found_no_place_in_his_outbox():
    manager = ConnectionManager(RoomsSettings(outbox_messages=1, overflow="drop_newest", send_timeout=500, **HEARTBEAT))
    peer, connection = await connected(manager)
    connection.messages(str)
    peer.reads.clear()
    for _ in range(5):
        await manager.send_personal(connection, "x")
        await settled()
    await asyncio.sleep(200)
    assert connection.is_open
    peer.reads.set()
    await asyncio.sleep(30)
    assert peer.texts[-1] == PING
    assert peer.texts.count(PING) == 1
    assert await seconds_to_the_end(manager, connection) <= 10
    assert peer.close_codes == [4408]
    await manager.stop()


@pytest.mark.parametrize("overflow", ["close", "drop_newest", "drop_oldest"])
@clocked
async def test_a_ping_that_finds_no_place_costs_nothing_and_one_that_does_is_sent(overflow):
    manager = ConnectionManager(RoomsSettings(outbox_messages=1, overflow=overflow, send_timeout=500, **HEARTBEAT))
    peer, connection = await connected(manager)
    connection.messages(str)
    peer.reads.clear()
    while not connection._outbox.is_over:
        await manager.send_personal(connection, "x")
        await settled()
    sent = manager.stats().sent_messages
    await asyncio.sleep(100)
    assert connection.is_open
    assert (manager.stats().dropped["lost"], manager.stats().sent_messages) == (0, sent)
    peer.reads.set()
    await asyncio.sleep(30)
    assert peer.texts == ["x"] * sent + [PING]
    assert manager.stats().sent_messages == sent + 1
    await manager.stop()


@clocked
async def test_nobody_is_silent_for_a_node_that_was_blocked_or_has_not_sent_the_ping(monkeypatch):
    manager = ConnectionManager(RoomsSettings(first_message_timeout=5, **HEARTBEAT))
    loop = asyncio.get_running_loop()
    quick, slow = [await connected(manager) for _ in range(2)]
    flusher = manager._parts.flusher
    for _, connection in (quick, slow):
        connection.messages(str)
    await asyncio.sleep(4)
    loop.now += 10  # somebody computes
    await asyncio.sleep(0.5)
    assert quick[1].is_open
    assert slow[1].is_open
    quick[0].say("hello")
    await asyncio.sleep(1)
    assert [connection.is_open for _, connection in (quick, slow)] == [True, False]
    await asyncio.sleep(50)
    assert quick[0].texts == [PING]
    monkeypatch.setattr(flusher, "behind_seconds", lambda: 2)
    await asyncio.sleep(20)
    assert quick[1].is_open
    monkeypatch.undo()
    await asyncio.sleep(2)
    assert not quick[1].is_open
    assert manager.stats().closed["silent"] == 2
    await manager.stop()


async def _collect(messages):
    return [message async for message in messages]


# Ends


@pytest.mark.parametrize("end", ["close", "disconnect", "vanish", "stop"])
@clocked
async def test_no_timer_outlives_its_connection(wall, end):
    manager = ConnectionManager(RoomsSettings(**LIMITS, **HEARTBEAT))
    peer, connection = await expiring(manager, wall.in_seconds(1000))
    connection.messages(str)
    assert len(manager._parts.lifecycle.timekeeper) == 1
    match end:
        case "close":
            await connection.close()
        case "disconnect":
            manager.disconnect(connection)
        case "vanish":
            peer.go()
            await settled()
        case "stop":
            await manager.stop()
    assert is_empty(manager)
    handles = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]
    assert not [handle for handle in handles if "Timekeeper" in repr(handle)]
    await manager.stop()


@clocked
async def test_what_fires_when_a_connection_has_ended_does_nothing():
    """A timer that is due in the tick in which its connection ends is called all the same."""
    manager = ConnectionManager(RoomsSettings(max_connection_seconds=5))
    peer, connection = await connected(manager)
    await connection.close(4000)
    manager._parts.lifecycle.timekeeper._on_old_age(connection)
    await settled()
    assert peer.close_codes == [4000]
    assert manager.stats().closed["lifetime"] == 0
    await manager.stop()
