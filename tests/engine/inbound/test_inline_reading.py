"""A handler that waits for its next message reads by itself; one that is busy is read for."""

import asyncio

import pytest
from support import until

from engine.fakes import connected, is_empty, settled
from fastapi_rooms.domain.incoming import Decoder
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of

NUMBERS = Decoder(int)


async def test_a_handler_that_waits_reads_without_a_task(manager):
    peer, connection = await connected(manager)
    messages = sessions_of(manager).received(connection, NUMBERS)
    waiting = asyncio.create_task(anext(messages))
    await settled()
    reader = sessions_of(manager).reader(connection)
    assert (reader.is_inline, reader.task) == (True, None)
    peer.say("1")
    assert await waiting == 1
    assert not reader.is_inline


async def test_a_handler_that_comes_back_at_once_goes_on_reading_by_itself(manager):
    peer, connection = await connected(manager)
    seen = []

    async def handle():
        async for number in sessions_of(manager).received(connection, NUMBERS):
            seen.append(number)  # noqa: PERF401 - the test looks at what is there so far

    handler = asyncio.create_task(handle())
    for number in range(3):
        peer.say(str(number))
        await until(lambda count=number + 1: len(seen) == count)
        await settled()
        assert sessions_of(manager).reader(connection).task is None
    peer.go()
    await asyncio.wait_for(handler, 1)
    assert seen == [0, 1, 2]


async def test_messages_that_have_come_together_are_read_in_one_tick(manager):
    peer, connection = await connected(manager)
    messages = sessions_of(manager).received(connection, NUMBERS)
    for number in range(3):
        peer.say(str(number))
    assert [await anext(messages), await anext(messages)] == [0, 1]
    assert sessions_of(manager).reader(connection).task is None, "the tick is not over"
    await settled()
    assert sessions_of(manager).reader(connection).task is not None
    assert await anext(messages) == 2


async def test_for_a_busy_handler_a_task_reads_on_and_the_order_is_kept(manager):
    peer, connection = await connected(manager)
    messages = sessions_of(manager).received(connection, NUMBERS)
    for number in range(5):
        peer.say(str(number))
    seen = [await anext(messages)]
    await settled()  # the handler is busy
    reader = sessions_of(manager).reader(connection)
    assert reader.task is not None
    peer.go()
    await until(lambda: reader.has_ended)
    assert not connection.is_open, "the end is seen while the handler is busy"
    seen += [number async for number in messages]
    assert seen == [0, 1, 2, 3, 4]


async def test_the_end_calls_back_while_the_handler_is_busy(manager):
    peer, connection = await connected(manager)
    calls = []
    messages = sessions_of(manager).received(connection, NUMBERS)
    sessions_of(manager).reader(connection).call_at_end(lambda: calls.append("the end"))
    peer.say("1")
    assert await anext(messages) == 1
    peer.go()
    await until(lambda: calls)
    assert calls == ["the end"]


async def test_the_end_is_seen_by_who_reads(manager):
    peer, connection = await connected(manager, "a", "ann")
    peer.go()
    assert [number async for number in sessions_of(manager).received(connection, NUMBERS)] == []
    assert is_empty(manager)


async def test_a_message_that_is_too_large_closes_the_client_also_when_it_is_read_inline():
    manager = ConnectionManager(RoomsSettings(max_message_bytes=3))
    peer, connection = await connected(manager)
    peer.say("1234")
    assert [number async for number in sessions_of(manager).received(connection, NUMBERS)] == []
    assert peer.close_codes == [1009]
    assert manager.stats().dropped["oversized"] == 1
    await manager.stop()


async def test_a_server_that_fails_while_a_handler_reads_closes_the_client_and_is_logged(manager, caplog):
    peer, connection = await connected(manager)

    async def fail():
        raise RuntimeError("a bug of the server")

    peer.websocket._receive = fail
    assert [number async for number in sessions_of(manager).received(connection, NUMBERS)] == []
    assert peer.close_codes == [1011]
    [record] = caplog.records
    assert record.exc_info[0] is RuntimeError
    assert is_empty(manager)


async def test_what_arrives_after_the_end_is_not_handled(manager):
    peer, connection = await connected(manager)
    waiting = asyncio.create_task(anext(sessions_of(manager).received(connection, NUMBERS), "the end"))
    await settled()
    await connection.close(4000)
    peer.say("1")
    assert await asyncio.wait_for(waiting, 1) == "the end"


async def test_a_handler_that_is_cancelled_while_it_reads_leaves_nothing_running(manager):
    peer, connection = await connected(manager)
    waiting = asyncio.create_task(anext(sessions_of(manager).received(connection, NUMBERS)))
    await settled()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    reader = sessions_of(manager).reader(connection)
    assert (reader.is_inline, reader.is_awaited, reader.task) == (False, False, None)
    peer.say("1")
    assert await anext(sessions_of(manager).received(connection, NUMBERS)) == 1


async def test_an_iterator_of_a_type_takes_over_from_one_of_a_decoder(manager):
    peer, connection = await connected(manager)
    peer.say("1")
    assert await anext(sessions_of(manager).received(connection, NUMBERS)) == 1
    by_type = connection.messages(int)
    assert sessions_of(manager).reader(connection).task is not None
    peer.say("2")
    assert await anext(by_type) == 2
