"""What clients send, from the socket to the handler."""

import asyncio
import sys

import pytest
from starlette.websockets import WebSocketDisconnect
from support import until

from engine.fakes import connected, is_empty, run_clocked, settled
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.incoming import Decoder
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of


async def collect(connection, message_type):
    return [message async for message in connection.messages(message_type)]


async def test_messages_come_in_order_and_end_with_the_client(manager):
    peer, connection = await connected(manager, "a")
    for number in range(5):
        peer.say(str(number))
    peer.go()
    assert await collect(connection, int) == [0, 1, 2, 3, 4]
    assert is_empty(manager)
    assert not connection.is_open


async def test_bytes_and_texts_come_as_they_are(manager):
    peer, connection = await connected(manager)
    peer.say("ü")
    peer.say(b"\xff")
    peer.say("")
    peer.go()
    assert await collect(connection, str | bytes) == ["ü", b"\xff", ""]


async def test_what_does_not_fit_is_answered_and_skipped(manager):
    peer, connection = await connected(manager)
    peer.say("one")
    peer.say("2")
    messages = connection.messages(int)
    assert await anext(messages) == 2
    await settled()
    [answer] = peer.texts
    assert answer.startswith('{"type":"error","code":"invalid_message","errors":[{"type":"json_invalid"')
    assert manager.stats().dropped["invalid"] == 1


async def test_too_many_invalid_messages_in_a_row_end_the_connection():
    manager = ConnectionManager(RoomsSettings(max_invalid_messages=3))
    peer, connection = await connected(manager)
    for message in ("x", "x", "1", '{"type":"pong"}', "x", "x", '{"type":"ping"}', "x", "x", "x", "2"):
        peer.say(message)
    assert await collect(connection, int) == [1]
    await connection.wait_until_closed()
    assert peer.close_codes == [1007]
    assert peer.texts.count('{"type":"pong"}') == 1
    assert manager.stats().dropped["invalid"] == 7
    assert manager.stats().closed["invalid_data"] == 1
    await manager.stop()


async def test_a_ping_that_the_type_claims_is_not_answered(manager):
    peer, connection = await connected(manager)
    peer.say('{"type":"ping"}')
    peer.go()
    assert await collect(connection, dict) == [{"type": "ping"}]
    assert peer.texts == []


async def test_two_iterators_at_a_time_are_refused(manager):
    peer, connection = await connected(manager)
    first = asyncio.create_task(anext(connection.messages(str)))
    await settled()
    with pytest.raises(ConfigurationError, match="iterate once"):
        await anext(connection.messages(str))
    peer.say("a")
    peer.say("b")
    assert await first == "a"
    assert await anext(connection.messages(str)) == "b", "one after the other is fine"


async def test_a_message_that_is_too_large_closes_the_client():
    manager = ConnectionManager(RoomsSettings(max_message_bytes=10))
    peer, connection = await connected(manager)
    messages = connection.messages(str)
    peer.say("x" * 10)
    assert await anext(messages) == "x" * 10
    peer.say("ü" * 6)
    with pytest.raises(StopAsyncIteration):
        await anext(messages)
    await connection.wait_until_closed()
    assert peer.close_codes == [1009]
    assert manager.stats().dropped["oversized"] == 1
    await manager.stop()


@pytest.mark.parametrize(
    ("text", "is_let_in"),
    [
        ("x" * 12, True),
        ("x" * 13, False),
        ("é" * 6, True),
        ("é" * 6 + "x", False),
        ("😀" * 3, True),
        ("😀" * 3 + "x", False),
        ("x" * 12 + "é", False),
        (b"\xff" * 12, True),
        (b"\xff" * 13, False),
    ],
)
@pytest.mark.parametrize("is_inline", [True, False])
async def test_a_message_may_have_so_many_bytes_of_utf8(text, is_let_in, is_inline):
    manager = ConnectionManager(RoomsSettings(max_message_bytes=12))
    peer, connection = await connected(manager)
    reader = sessions_of(manager).reader(connection)
    if not is_inline:
        reader.start()
    messages = sessions_of(manager).received(connection, Decoder(str | bytes))
    peer.say(text)
    peer.go()
    assert [message async for message in messages] == [text] * is_let_in
    assert manager.stats().dropped["oversized"] == (not is_let_in)
    await manager.stop()


@pytest.mark.parametrize("text", ["x" * 4_000, "x" * 3_999 + "😀", "x" * 3_999 + "я", "é" * 2_000, "😀" * 1_000])
async def test_an_inbox_holds_no_more_than_it_may_in_memory_whatever_is_in_a_text(text):
    limit = 50_000
    manager = ConnectionManager(RoomsSettings(inbox_bytes=limit))
    peer, connection = await connected(manager)
    reader = sessions_of(manager).reader(connection)
    reader.start()
    for number in range(100):
        peer.say(text + str(number))  # each is a text of its own
    await until(lambda: reader.is_held_up)
    held = [payload for payload, _ in reader.inbox._queue]
    assert sum(map(sys.getsizeof, held)) <= limit + sys.getsizeof(text + "99") + 100 * len(held)
    await manager.stop()


@pytest.mark.parametrize("limits", [{"max_message_bytes": 3}, {"inbox_bytes": 3, "inbox_timeout": 1}])
def test_a_client_that_is_closed_for_what_it_sent_is_forgotten_though_it_takes_no_close_frame(limits):
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8, **limits))
        peer, connection = await connected(manager, "a")
        peer.reads.clear()
        connection.messages(str)
        peer.say("large")
        await until(lambda: not manager._parts.readers.tasks)
        assert is_empty(manager)
        assert manager.disconnect(connection) is None, "the reader was the last to know"
        assert not peer.transport.aborted
        await connection.wait_until_closed()
        assert peer.transport.aborted

    run_clocked(main)


async def test_a_text_that_no_utf8_can_carry_is_measured_and_refused(manager):
    peer, connection = await connected(manager)
    peer.say("\ud800")
    peer.say("1")
    assert await anext(connection.messages(int)) == 1
    assert manager.stats().dropped["invalid"] == 1


def test_a_client_that_sends_faster_than_its_handler_works_is_closed_when_its_time_is_up():
    async def main():
        manager = ConnectionManager(RoomsSettings(inbox_messages=2, inbox_timeout=5))
        peer, connection = await connected(manager)
        messages = connection.messages(str)
        for number in range(5):
            peer.say(str(number))
        assert await anext(messages) == "0"
        await asyncio.sleep(4)
        assert connection.is_open
        assert await anext(messages) == "1"  # which gives it more time
        await asyncio.sleep(4.5)
        assert connection.is_open
        await connection.wait_until_closed()
        assert peer.close_codes == [1013]
        assert manager.stats().closed["full_inbox"] == 1
        assert await anext(messages, "the end") == "the end"
        await manager.stop()

    run_clocked(main)


@pytest.mark.parametrize("is_written_to", [True, False])
def test_who_went_while_its_inbox_was_full_is_not_closed_for_that(caplog, is_written_to):
    async def main():
        ends = []
        hooks = Hooks(disconnected=lambda end: ends.append(end.code))
        manager = ConnectionManager(RoomsSettings(inbox_messages=2, inbox_timeout=5), hooks=hooks)
        peer, connection = await connected(manager)
        messages = connection.messages(str)
        for number in range(5):
            peer.say(str(number))
        assert await anext(messages) == "0"
        peer.transport.closing = True
        if is_written_to:
            await manager.broadcast("x")
        await asyncio.sleep(6)
        assert not connection.is_open
        assert sum(manager.stats().closed.values()) == 0
        assert (connection.close_code, ends) == (1006, [1006])
        assert not [record for record in caplog.records if "closed with 1013" in record.getMessage()]
        await manager.stop()

    run_clocked(main)


async def test_closing_ends_the_messages_and_gives_up_what_waits(manager):
    peer, connection = await connected(manager)
    messages = connection.messages(str)
    waiting = asyncio.create_task(anext(messages, "the end"))
    await settled()
    peer.say("a")
    await until(waiting.done)
    for message in ("b", "c"):
        peer.say(message)
    await settled()
    await connection.close()
    assert [message async for message in messages] == []


class Guard:
    """A limiter that takes its time over messages."""

    def __init__(self, *, answer=True):
        self.asked = 0
        self.answer = answer
        self.answers = asyncio.Event()  # cleared: it waits

    async def __call__(self, connection, action):
        if action == "message":
            self.asked += 1
            await self.answers.wait()
            return self.answer
        return True


READINGS = pytest.mark.parametrize("reading", ["inline", "task"])


def received(manager, connection, reading):
    return connection.messages(str) if reading == "task" else sessions_of(manager).received(connection, Decoder(str))


@READINGS
@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("is_answered_first", [True, False])
async def test_who_is_closed_while_the_limiter_is_asked_has_no_message_handled(reading, answer, is_answered_first):
    guard = Guard(answer=answer)
    manager = ConnectionManager(limiter=guard)
    peer, connection = await connected(manager, "a", "ann")
    messages = received(manager, connection, reading)
    peer.say("delete everything")
    waiting = asyncio.create_task(anext(messages, "the end"))
    await until(lambda: guard.asked)
    if is_answered_first:
        guard.answers.set()
    await manager.close_user("ann", 4501)
    guard.answers.set()
    assert await asyncio.wait_for(waiting, 1) == "the end"
    assert (manager.stats().received_messages, manager.stats().dropped["rate_limited"]) == (0, 0)
    await manager.stop()


@READINGS
@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_message_about_which_the_limiter_is_asked_survives_a_cancelled_wait(reading, is_gone):
    guard = Guard()
    manager = ConnectionManager(limiter=guard)
    peer, connection = await connected(manager)
    messages = received(manager, connection, reading)
    for message in ("one", "two"):
        peer.say(message)
    waiting = asyncio.create_task(anext(messages))
    await until(lambda: guard.asked)
    if is_gone:
        peer.go()
        await until(lambda: sessions_of(manager).reader(connection).has_ended)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    guard.answers.set()
    async with asyncio.timeout(1):
        assert [await anext(messages), await anext(messages)] == ["one", "two"]
    assert manager.stats().received_messages == 2
    await manager.stop()


@READINGS
async def test_a_wait_that_is_cancelled_when_this_node_has_closed_the_client_keeps_nothing(reading):
    guard = Guard()
    manager = ConnectionManager(limiter=guard)
    peer, connection = await connected(manager)
    messages = received(manager, connection, reading)
    peer.say("one")
    waiting = asyncio.create_task(anext(messages))
    await until(lambda: guard.asked)
    await connection.close()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await asyncio.wait_for(anext(messages, "the end"), 1) == "the end"
    await manager.stop()


async def test_a_limiter_that_is_cancelled_at_once_changes_no_order():
    """Before the end of the tick in which a message was read inline, no task reads on yet."""
    asked = []

    async def cancelled_once(connection, action):
        asked.append(action)
        if asked == ["connect", "message"]:
            raise asyncio.CancelledError
        return True

    manager = ConnectionManager(limiter=cancelled_once)
    peer, connection = await connected(manager)
    messages = received(manager, connection, "inline")
    for message in ("one", "two"):
        peer.say(message)
    with pytest.raises(asyncio.CancelledError):
        await anext(messages)
    async with asyncio.timeout(1):
        assert [await anext(messages), await anext(messages)] == ["one", "two"]
    await manager.stop()


@pytest.mark.parametrize("how", ["close", "disconnect"])
async def test_who_waits_for_a_message_is_released_by_the_end(manager, how):
    _, connection = await connected(manager)
    waiting = asyncio.create_task(anext(connection.messages(str), "the end"))
    await settled()
    if how == "close":
        await connection.close()
    else:
        manager.disconnect(connection)
    assert await asyncio.wait_for(waiting, 1) == "the end"


async def test_a_client_is_read_from_until_its_close_frame_is_out_so_that_its_end_is_seen(manager):
    peer, connection = await connected(manager)
    connection.messages(str)
    reader = sessions_of(manager).reader(connection)
    peer.reads.clear()
    await connection.close(4000)
    await settled()
    assert not reader.task.done()
    peer.go()
    await until(reader.task.done)
    assert manager.disconnect(connection) is None, "the reader has told that it is gone"
    peer.reads.set()


async def test_a_connection_that_is_forgotten_is_not_read_from_though_it_still_has_something_to_take(manager):
    peer, connection = await connected(manager)
    connection.messages(str)
    reader = sessions_of(manager).reader(connection)
    peer.reads.clear()
    await manager.send_personal(connection, "last words")
    await settled()
    manager.disconnect(connection)
    await until(reader.task.done)
    assert peer.texts == []
    peer.reads.set()
    await until(lambda: peer.texts == ["last words"])


async def test_the_messages_of_a_connection_that_has_ended_are_none(manager):
    peer, connection = await connected(manager)
    manager.disconnect(connection)
    peer.say("a")
    assert await collect(connection, str) == []


async def test_a_reader_that_fails_closes_the_client_and_is_logged(manager, caplog):
    peer, connection = await connected(manager)

    async def fail():
        raise RuntimeError("a bug of the server")

    peer.websocket._receive = fail
    assert await collect(connection, str) == []
    await connection.wait_until_closed()
    assert peer.close_codes == [1011]
    [record] = caplog.records
    assert record.exc_info[0] is RuntimeError


async def test_the_end_calls_back_once(manager):
    peer, connection = await connected(manager)
    calls = []
    reader = sessions_of(manager).reader(connection)
    assert sessions_of(manager).reader(connection) is reader
    reader.start()
    reader.call_at_end(lambda: calls.append("replaced"))
    reader.call_at_end(lambda: calls.append("in time"))
    peer.go()
    await until(lambda: calls)
    await settled()
    manager.disconnect(connection)
    assert calls == ["in time"]
    reader.call_at_end(lambda: calls.append("late"))
    reader.call_at_end(None)
    assert calls == ["in time", "late"]


async def test_who_has_learned_of_the_end_by_reading_is_not_read_for_again(manager):
    peer, connection = await connected(manager)
    peer.go()
    with pytest.raises(WebSocketDisconnect):
        await peer.websocket.receive_text()
    assert await asyncio.wait_for(collect(connection, str), 1) == []
    await manager.stop()


@pytest.mark.parametrize("wire", ["asgi", "auto"])
async def test_an_endpoint_that_attends_to_nothing_goes_on_until_the_close_frame_is_out(wire):
    """The server hangs up when it returns: the client would never learn why."""
    manager = ConnectionManager(RoomsSettings(wire=wire))
    peer, connection = await connected(manager)
    peer.reads.clear()
    endpoint = asyncio.create_task(collect(connection, str))
    await settled()
    await connection.close(4000)
    await settled()
    assert not endpoint.done()
    peer.reads.set()
    assert await endpoint == []
    assert peer.close_codes == [4000]
    await manager.stop()


async def test_an_endpoint_whose_connection_was_forgotten_ends_at_once(manager):
    peer, connection = await connected(manager)
    peer.reads.clear()
    await manager.send_personal(connection, "not taken")
    endpoint = asyncio.create_task(collect(connection, str))
    await settled()
    manager.disconnect(connection)
    await settled()
    assert endpoint.done()
    peer.reads.set()
