"""The publishing side: in order, at most once, answered or failed in time."""

import asyncio

import pytest
from redis.exceptions import ResponseError
from scripted_redis import ScriptedRedis
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis.places import locate
from fastapi_rooms.backends.redis.publishing import MIN_REST_SECONDS, PublishLine

TIMEOUT = 0.3


@pytest.fixture
async def scripted():
    async with ScriptedRedis() as made:
        yield made


@pytest.fixture
async def make_line(scripted):
    """Make lines to the scripted server; they are stopped at the end."""
    lines = []

    async def make(timeout=TIMEOUT, on_error=None, dial=scripted.dial):
        line = PublishLine("line", dial, lambda: None, timeout, on_error)
        lines.append(line)
        line.start()
        await until(lambda: line.is_up)
        return line

    yield make
    for line in lines:
        await line.stop()


async def publishes(visit, count):
    await until(lambda: len(visit.commands) >= count)
    return [visit.commands.popleft()[2] for _ in range(count)]


async def fails(future):
    with pytest.raises(BackendUnavailable) as failed:
        await asyncio.wait_for(future, 5)
    return str(failed.value)


async def test_commands_leave_in_the_order_of_the_calls_and_answers_find_them(scripted, make_line):
    line = await make_line()
    visit = await scripted.visit()
    told = [line.send(b"PUBLISH", b"c", b"%d" % number) for number in range(1000)]
    assert await publishes(visit, 1000) == [b"%d" % number for number in range(1000)]
    assert not any(one.done() for one in told)
    assert [command.future for command in line.unanswered()] == told
    visit.say(b"".join(b":%d\r\n" % number for number in range(1000)))
    assert await asyncio.gather(*told) == list(range(1000))
    assert line.is_idle()


async def test_words_may_be_any_bytes(scripted, make_line):
    line = await make_line()
    line.send(b"PUBLISH", b"", b"\r\n$3\r\n\0\xff")
    assert await (await scripted.visit()).command() == [b"PUBLISH", b"", b"\r\n$3\r\n\0\xff"]


async def test_a_command_that_is_refused_fails_alone(scripted, make_line):
    line = await make_line()
    told = [line.send(b"PUBLISH", b"c", b"x") for _ in range(3)]
    (await scripted.visit()).say(b":0\r\n-NOPERM no permissions to access a channel\r\n:0\r\n")
    assert await told[0] == 0
    assert await fails(told[1]) == "Redis refused PUBLISH: no permissions to access a channel"
    assert await told[2] == 0
    assert line.is_up


@pytest.mark.parametrize("is_taken_care_of", [True, False])
async def test_somebody_else_may_take_care_of_what_is_refused(scripted, make_line, is_taken_care_of):
    refused = []

    def on_error(command, error):
        refused.append((command, error))
        return is_taken_care_of

    line = await make_line(on_error=on_error)
    told = line.send(b"SPUBLISH", b"c", b"x")
    (await scripted.visit()).say(b"-ERR moved\r\n")
    await until(lambda: refused)
    ((command, error),) = refused
    assert (command.words, type(error)) == ((b"SPUBLISH", b"c", b"x"), ResponseError)
    assert (command.future is told, told.done()) == (True, not is_taken_care_of)
    command.fail(BackendUnavailable("at last"))
    assert await fails(told) == ("at last" if is_taken_care_of else "Redis refused SPUBLISH: moved")


async def test_what_is_not_answered_fails_by_its_deadline_and_is_never_sent_again(scripted, make_line):
    line = await make_line()
    loop = asyncio.get_running_loop()
    begin = loop.time()
    told = [line.send(b"PUBLISH", b"c", b"%d" % number) for number in range(10)]
    reasons = [await fails(one) for one in told]
    assert TIMEOUT <= loop.time() - begin < TIMEOUT + 0.5
    assert set(reasons) == {"Redis did not answer within 0.3 s"}
    second = await scripted.visit(1)
    await until(lambda: line.is_up)
    line.send(b"PUBLISH", b"c", b"after")
    assert await publishes(second, 1) == [b"after"]
    assert len(scripted.visits[0].commands) == 10


async def test_errors_are_not_shared_between_those_who_fail_together(scripted, make_line):
    line = await make_line()
    told = [line.send(b"PUBLISH", b"c", b"x") for _ in range(2)]
    (await scripted.visit()).hang_up()
    errors = [(await asyncio.gather(one, return_exceptions=True))[0] for one in told]
    assert errors[0] is not errors[1]
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]).startswith("the connection to Redis was lost: ")


async def test_the_deadline_is_that_of_the_oldest(scripted, make_line):
    line = await make_line()
    visit = await scripted.visit()
    first, second = line.send(b"PUBLISH", b"c", b"1"), line.send(b"PUBLISH", b"c", b"2")
    for _ in range(4):
        await asyncio.sleep(TIMEOUT / 3)
        visit.say(b":0\r\n")
        await first
        first, second = second, line.send(b"PUBLISH", b"c", b"x")
    assert await fails(first) == "Redis did not answer within 0.3 s"
    assert len(scripted.visits) == 1


async def test_without_a_connection_a_command_fails_at_once(scripted):
    line = PublishLine("line", scripted.dial, lambda: None, TIMEOUT)
    told = line.send(b"PUBLISH", b"c", b"x")
    assert told.done()
    assert await fails(told) == "there is no connection to Redis yet"


async def test_while_redis_is_away_a_command_fails_at_once_and_says_why(scripted, make_line):
    line = await make_line()
    scripted.greeting = b"-LOADING closed today\r\n"
    (await scripted.visit()).hang_up()
    await until(lambda: not line.is_up)
    told = line.send(b"PUBLISH", b"c", b"x")
    assert told.done()
    reason = await fails(told)
    assert "lost" in reason or "closed today" in reason, "it may have been tried again by now"
    assert line.is_idle()


async def test_what_nobody_waits_for_is_sent_all_the_same_and_its_answer_is_nobodys(scripted, make_line):
    line = await make_line()
    told = [line.send(b"PUBLISH", b"c", b"%d" % number) for number in range(3)]
    told[1].cancel()
    visit = await scripted.visit()
    assert await publishes(visit, 3) == [b"0", b"1", b"2"]
    visit.say(b":0\r\n:1\r\n:2\r\n")
    assert await told[2] == 2
    told = [line.send(b"PUBLISH", b"c", b"x") for _ in range(3)]
    told[1].cancel()
    visit.hang_up()
    for one in (told[0], told[2]):
        await fails(one)


async def test_an_answer_that_was_not_asked_for_ends_the_connection(scripted, make_line):
    line = await make_line()
    (await scripted.visit()).say(b":1\r\n")
    await until(lambda: line.last_error)
    assert str(line.last_error) == "Redis answered what was not asked"
    await scripted.visit(1)


@pytest.mark.parametrize("garbage", [b"nonsense\r\n", b"$abc\r\n", b"-MOVED nowhere\r\n", b"-LOADING\r\n"])
async def test_garbage_ends_the_connection_and_fails_what_was_under_way(scripted, make_line, garbage, caplog):
    line = await make_line()
    told = line.send(b"PUBLISH", b"c", b"x")
    (await scripted.visit()).say(garbage)
    await fails(told)
    await until(lambda: line.is_up)
    again = line.send(b"PUBLISH", b"c", b"again")
    second = await scripted.visit(1)
    assert await publishes(second, 1) == [b"again"]
    second.say(b":7\r\n")
    assert await again == 7


async def test_flush_waits_for_what_is_under_way_and_for_no_more(scripted, make_line):
    line = await make_line(5.0)
    visit = await scripted.visit()
    await line.flush()
    told = line.send(b"PUBLISH", b"c", b"x")
    flushing = asyncio.create_task(line.flush())
    await visit.command()
    assert not flushing.done()
    visit.say(b":0\r\n")
    await told
    line.send(b"PUBLISH", b"c", b"later")
    await asyncio.wait_for(_answer_until(visit, flushing), 2)
    assert not line.is_idle()


async def _answer_until(visit, flushing):
    """Answer what the flush itself may ask, but not what was published after it."""
    while not flushing.done():
        while visit.commands and visit.commands[0][0] != b"PUBLISH":
            visit.commands.popleft()
            visit.say(b"+PONG\r\n")
        await asyncio.sleep(0.002)


async def test_flush_waits_for_what_nobody_waits_for(scripted, make_line):
    line = await make_line(5.0)
    visit = await scripted.visit()
    told = line.send(b"PUBLISH", b"c", b"x")
    told.cancel()
    flushing = asyncio.create_task(line.flush())
    await visit.command()
    for _ in range(10):
        await asyncio.sleep(0.005)
        assert not flushing.done(), "Redis has not taken it yet"
    visit.say(b":0\r\n")
    await asyncio.wait_for(_answer_until(visit, flushing), 2)


async def test_flush_ends_when_the_connection_does(scripted, make_line):
    line = await make_line(5.0)
    told = line.send(b"PUBLISH", b"c", b"x")
    flushing = asyncio.create_task(line.flush())
    await (await scripted.visit()).command()
    (await scripted.visit()).hang_up()
    await asyncio.wait_for(flushing, 2)
    await fails(told)


async def test_a_command_that_was_sent_on_fails_when_there_is_no_time_left(scripted, make_line):
    line = await make_line()
    command = line.make(b"SPUBLISH", b"c", b"x")
    command.redirects = 1
    await asyncio.sleep(max(0.0, TIMEOUT - MIN_REST_SECONDS) + 0.01)
    line.put(command)
    assert await fails(command.future) == "it was sent from server to server until its time was over"
    assert line.is_idle()
    timely = line.make(b"SPUBLISH", b"c", b"y")
    timely.redirects = 1
    line.put(timely)
    assert await (await scripted.visit()).command() == [b"SPUBLISH", b"c", b"y"]


async def test_stopping_fails_what_is_under_way(scripted, make_line):
    line = await make_line(5.0)
    told = line.send(b"PUBLISH", b"c", b"x")
    await (await scripted.visit()).command()
    await line.stop()
    assert await fails(told) == "the backend was stopped"
    assert line.send(b"PUBLISH", b"c", b"x").exception() is not None


async def test_a_server_that_does_not_read_delays_nobody_beyond_the_deadline(make_line):
    def be_silent(_, writer):
        writer.write(b"+OK\r\n+OK\r\n")
        writer.transport.pause_reading()
        writers.append(writer)

    writers = []
    server = await asyncio.start_server(be_silent, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    line = await make_line(dial=locate(url, 1.0).dial)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    told = [line.send(b"PUBLISH", b"c", bytes(1 << 20)) for _ in range(20)]
    await asyncio.sleep(TIMEOUT / 2)
    told.append(line.send(b"PUBLISH", b"c", b"behind what is stuck"))
    for one in told:
        await fails(one)
    assert loop.time() - begin < TIMEOUT + 0.5
    await until(lambda: line.connections_made == 2)
    await asyncio.sleep(0)
    begin = loop.time()
    await line.stop()
    assert loop.time() - begin < 0.5
    server.close()
    for writer in writers:
        writer.transport.abort()


async def test_what_was_not_written_when_the_connection_was_lost_is_not_written_to_the_next(scripted, make_line):
    line = await make_line()
    told = line.send(b"PUBLISH", b"c", b"lost")
    line.drop("just now")
    assert await fails(told) == "just now"
    await until(lambda: line.is_up)
    line.send(b"PUBLISH", b"c", b"after")
    assert await publishes(await scripted.visit(1), 1) == [b"after"]
    assert not scripted.visits[0].commands


async def test_a_connection_that_breaks_while_it_is_written_to_is_made_again(scripted, make_line):
    line = await make_line(5.0)
    told = [line.send(b"PUBLISH", b"c", bytes(1 << 20)) for _ in range(20)]
    visit = await scripted.visit()
    await visit.command()
    visit.hang_up()
    for one in told:
        assert "lost" in await fails(one)
    await until(lambda: line.is_up)
    line.send(b"PUBLISH", b"c", b"after")
    assert await publishes(await scripted.visit(1), 1) == [b"after"]
