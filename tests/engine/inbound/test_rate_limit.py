"""How much a client may send: measured when it is received, dropped, told once, and ended when it goes on."""

import asyncio

import pytest
from support import until

from engine.fakes import connected, is_empty, settled
from fastapi_rooms.domain.incoming import Decoder
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.inbound import reader as reader_module
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of

TOLD = '{"type":"error","code":"rate_limited"}'


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch):
    """The clock that readers look at."""
    clock = Clock()
    monkeypatch.setattr(reader_module, "monotonic", lambda: clock.now)
    return clock


class Client:
    """A client and what its handler got: read by a task, or inline."""

    def __init__(self, manager, peer, connection, reading):
        self.manager, self.peer, self.connection = manager, peer, connection
        self.got: list[str] = []
        self.go_on = asyncio.Event()  # cleared: the handler is busy
        self.go_on.set()
        messages = (
            connection.messages(str) if reading == "task" else sessions_of(manager).received(connection, Decoder(str))
        )
        self.handler = asyncio.create_task(self._handle(messages))

    async def _handle(self, messages):
        async for message in messages:
            self.got.append(message)
            await self.go_on.wait()

    async def say(self, *messages):
        for message in messages:
            self.peer.say(message)
        await until(self.peer._incoming.empty)
        await settled()

    async def end(self):
        self.go_on.set()
        await self.connection.close()
        self.peer.go()  # who reads inline sees the end by that
        await asyncio.wait_for(self.handler, 5)
        await self.manager.stop()
        assert is_empty(self.manager)


@pytest.fixture(params=["inline", "task"])
def client_with(request):
    async def make(limiter=None, **settings):
        manager = ConnectionManager(RoomsSettings(**settings), limiter=limiter)
        return Client(manager, *await connected(manager, "a"), request.param)

    return make


async def test_what_is_over_is_dropped_and_told_once(client_with, clock):
    client = await client_with(messages_per_second=10, messages_burst=3)
    await client.say(*"abcdefgh")
    assert client.got == list("abc")
    assert client.peer.texts == [TOLD]
    counters = client.manager._parts.counters.copy()
    assert (counters.received_messages, counters.rate_limited_messages) == (3, 5)
    clock.now += 0.15
    await client.say(*"ij")
    assert client.got == list("abci"), "a tenth of a second is worth one message"
    assert client.peer.texts == [TOLD], "it was told a moment ago"
    clock.now += 5
    await client.say(*"klmnop")
    assert client.got == list("abciklm")
    assert client.peer.texts == [TOLD, TOLD], "it has paused since: this is another row"
    assert client.connection.is_open
    await client.end()


@pytest.mark.parametrize("limits", ["rate", "limiter"])
async def test_what_is_told_says_which_message_was_dropped_first(client_with, clock, limits):
    if limits == "rate":
        client = await client_with(messages_per_second=1, messages_burst=1)
    else:
        client = await client_with(lambda connection, action: action == "connect" or not client.got)
    await client.say('{"id": 1}', '{"id": 2}', '{"id": 3}')
    assert client.got == ['{"id": 1}']
    assert client.peer.texts == ['{"type":"error","code":"rate_limited","id":2}']
    await client.end()


async def test_who_goes_on_is_closed_at_the_hundredth(client_with, clock):
    client = await client_with(messages_per_second=1, messages_burst=1)
    await client.say("first", *["more"] * 99)
    assert client.connection.is_open
    clock.now += 0.9
    await client.say("still more")
    await asyncio.wait_for(client.handler, 1)
    assert client.got == ["first"]
    assert client.peer.texts == [TOLD]
    assert client.peer.close_codes == [1008]
    assert client.connection.close_reason == "too many messages"
    counters = client.manager._parts.counters.copy()
    assert (counters.flooders, counters.rate_limited_messages) == (1, 100)
    assert is_empty(client.manager)
    await client.end()


async def test_a_row_ends_with_a_pause(client_with, clock):
    client = await client_with(messages_per_second=1, messages_burst=1)
    for _ in range(5):
        await client.say(*["x"] * 90)
        clock.now += 1.01
    assert client.connection.is_open
    assert client.peer.texts == [TOLD] * 5
    await client.end()


async def test_messages_in_between_that_are_taken_do_not_make_a_flood_harmless(client_with, clock):
    """Twice the rate: one is dropped, one is taken, for ever. That is no slowing down."""
    client = await client_with(messages_per_second=10, messages_burst=1)
    while not client.handler.done():
        await client.say("x")
        clock.now += 0.05
        assert clock.now < 120
    assert client.peer.close_codes == [1008]
    assert len(client.got) == pytest.approx(100, abs=5)
    await client.end()


async def test_who_keeps_to_the_rate_is_never_touched(client_with, clock):
    client = await client_with(messages_per_second=100, messages_burst=1)
    for _ in range(500):
        await client.say("x")
        clock.now += 0.01
    assert len(client.got) == 500
    assert client.peer.texts == []
    assert client.manager.stats().dropped["rate_limited"] == 0
    await client.end()


async def test_a_burst_that_waits_for_a_slow_handler_is_not_held_against_its_client(client_with, clock):
    """Measured when it is received: at the handler's pace, or all at once in the end, it would be something else."""
    client = await client_with(messages_per_second=1, messages_burst=5, inbox_messages=50)
    client.go_on.clear()
    await client.say(*"abcde")
    assert client.got == ["a"]
    clock.now += 0.5
    client.go_on.set()
    await until(lambda: len(client.got) == 5)
    assert client.manager.stats().dropped["rate_limited"] == 0
    await client.say("f")
    assert client.got == list("abcde"), "the time that the handler took earns nothing"
    assert client.peer.texts == [TOLD]
    await client.end()


@pytest.mark.parametrize(("inbox_timeout", "owed"), [(10, 8), (1.5, 6)])
async def test_what_a_client_could_not_send_while_its_handler_was_slow_is_not_held_against_it(
    client_with, clock, inbox_timeout, owed
):
    """It comes all at once when there is space again; but never more than the rate allows on the whole."""
    client = await client_with(messages_per_second=4, messages_burst=4, inbox_messages=2, inbox_timeout=inbox_timeout)
    client.go_on.clear()
    await client.say(*"abc")
    for number in range(20):
        client.peer.say(str(number))
    await settled()
    assert sessions_of(client.manager).reader(client.connection).is_held_up
    clock.now += 2.75  # after 0.75 s its bucket was full again
    client.go_on.set()
    await client.say()
    await until(lambda: len(client.got) == 3 + 4 + owed)
    assert client.manager.stats().dropped["rate_limited"] == 20 - 4 - owed
    clock.now += 0.25
    await client.say("the", "usual")
    assert client.got[-1] == "the", "it is owed nothing any more"
    await client.end()


async def test_who_waits_for_space_without_a_rate_is_owed_nothing(client_with, clock):
    client = await client_with(messages_per_second=None, inbox_messages=1)
    await client.say(*["x"] * 200)
    await until(lambda: len(client.got) == 200)
    assert client.peer.texts == []
    await client.end()


async def test_what_floods_a_busy_handler_is_dropped_while_it_works(client_with, clock):
    client = await client_with(messages_per_second=1, messages_burst=2)
    client.go_on.clear()
    await client.say("a", *["flood"] * 50)
    assert client.peer.texts == [TOLD]
    assert client.manager.stats().dropped["rate_limited"] == 49
    assert client.connection._reader.received == 51
    client.go_on.set()
    await until(lambda: client.got == ["a", "flood"])
    await client.end()


async def test_what_is_too_large_is_no_matter_of_rate(client_with, clock):
    client = await client_with(messages_per_second=1, messages_burst=1, max_message_bytes=4)
    await client.say("a", "large")
    await asyncio.wait_for(client.handler, 1)
    assert client.peer.close_codes == [1009]
    assert client.manager.stats().dropped["rate_limited"] == 0
    await client.end()


async def test_none_is_no_limit(client_with, clock):
    client = await client_with(messages_per_second=None, max_message_bytes=None, inbox_messages=10_000)
    await client.say(*["x"] * 3000, "x" * 1_000_000)
    await until(lambda: len(client.got) == 3001)
    assert client.peer.texts == []
    await client.end()


async def test_bytes_are_counted_as_they_travel(client_with):
    client = await client_with(max_message_bytes=6)
    await client.say("üüü", "€€", "123456")
    assert client.got == ["üüü", "€€", "123456"]
    await client.say("üüüü")
    assert client.peer.close_codes == [1009]
    assert client.connection.close_reason == "a message may have 6 bytes"
    await client.end()


# The app's own limiter


@pytest.mark.parametrize("is_async", [True, False])
async def test_what_the_app_does_not_allow_is_dropped_in_the_same_way(client_with, clock, is_async):
    asked = []

    def limit(connection, action):
        asked.append((connection, action))
        return action == "connect" or len(asked) <= 3

    async def limit_async(connection, action):
        await asyncio.sleep(0)
        return limit(connection, action)

    client = await client_with(limit_async if is_async else limit)
    await client.say(*"abcd")
    await until(lambda: len(asked) == 5)
    await settled()
    assert client.got == list("ab")
    assert client.peer.texts == [TOLD]
    counters = client.manager._parts.counters.copy()
    assert (counters.received_messages, counters.rate_limited_messages) == (2, 2)
    assert client.connection._reader.received == 4, "each is one sign of life"
    assert asked[1:] == [(client.connection, "message")] * 4
    await client.say(*["x"] * 97)
    assert client.connection.is_open
    await client.say("x")
    await asyncio.wait_for(client.handler, 1)
    assert client.peer.close_codes == [1008]
    await client.end()


async def test_what_is_dropped_for_its_rate_is_not_asked_about(client_with, clock):
    asked = []
    client = await client_with(
        lambda connection, action: asked.append(action) or True, messages_per_second=1, messages_burst=2
    )
    await client.say(*"abcd")
    assert asked == ["connect", "message", "message"]
    await client.end()


async def test_a_client_that_is_closed_while_it_is_told_gets_nothing_more(client_with, clock):
    client = await client_with(messages_per_second=1, messages_burst=1)
    client.peer.say("a")
    client.peer.say("b")
    while not client.manager.stats().dropped["rate_limited"]:
        await asyncio.sleep(0)
    await client.connection.close(4000)
    await asyncio.wait_for(client.handler, 1)
    assert client.peer.texts == []
    assert client.peer.close_codes == [4000]
    await client.end()


async def test_a_client_that_floods_and_does_not_read_is_not_read_from_any_more():
    manager = ConnectionManager(RoomsSettings(messages_per_second=1, messages_burst=1, send_timeout=0.2))
    peer, connection = await connected(manager)
    peer.reads.clear()  # so that the close frame waits behind the first answer
    connection.messages(str)
    task = sessions_of(manager).reader(connection).task
    for number in range(200):
        peer.say(str(number))
    await asyncio.wait([task])
    assert not task.cancelled()
    assert manager.stats().closed["flooding"] == 1
    assert not connection.is_open
    assert peer._incoming.qsize() > 50, "the rest is left to the server"
    await manager.stop()
    assert is_empty(manager)


@pytest.mark.parametrize("ended_by", ["overflow", "the app"])
async def test_who_is_closed_for_something_else_and_floods_on_is_counted_once(ended_by):
    settings = RoomsSettings(messages_per_second=1, messages_burst=1, outbox_messages=2, wire="asgi")
    manager = ConnectionManager(settings)
    peer, connection = await connected(manager, "room")
    sessions_of(manager).reader(connection).start()
    peer.reads.clear()  # so that the close frame does not get out
    if ended_by == "overflow":
        while connection.is_open:
            await manager.broadcast_to_room("room", "x")
            await settled()
    else:
        await manager.send_personal(connection, "x")
        await settled()
        await connection.close(4000)
    for _ in range(300):
        peer.say("hi")
    await until(peer._incoming.empty)
    await settled()
    closed = {reason: count for reason, count in manager.stats().closed.items() if count}
    assert closed == ({"slow_consumer": 1} if ended_by == "overflow" else {})
    assert manager.stats().received_messages == manager.stats().dropped["rate_limited"] == 0
    peer.go()
    await until(lambda: not manager._parts.readers.tasks)
    peer.reads.set()
    await manager.stop()


async def test_a_client_above_its_rate_and_above_that_of_the_app_is_one_flooder(clock):
    gate = asyncio.Event()

    async def limiter(connection, action):
        if action == "message":
            await gate.wait()
        return action == "connect"

    settings = RoomsSettings(messages_per_second=1, messages_burst=1, wire="asgi")
    manager = ConnectionManager(settings, limiter=limiter)
    peer, connection = await connected(manager)

    async def handle():
        async for _ in connection.messages(str):
            raise AssertionError("the limiter lets nothing through")

    handling = asyncio.create_task(handle())
    for _ in range(reader_module.MAX_DROPPED):
        peer.say("x")
    await until(lambda: manager.stats().dropped["rate_limited"] == reader_module.MAX_DROPPED - 1)
    peer.say("x")
    gate.set()
    await handling
    assert manager.stats().closed["flooding"] == 1
    await manager.stop()
