"""One connection that is made again whenever it is lost, by a task that nothing ends but its owner."""

import asyncio
import contextvars
import logging

import pytest
from scripted_redis import ScriptedRedis
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis.dialing import pack, send
from fastapi_rooms.backends.redis.supervised import (
    FIRST_PAUSE_SECONDS,
    MAX_BUSY_SECONDS,
    MAX_PAUSE_SECONDS,
    SupervisedConnection,
    pause_before,
)


class Line(SupervisedConnection):
    """Keeps what is said, and writes what it is told to."""

    def __init__(self, dial):
        super().__init__("line", dial, self.change)
        self.changes = []  # (is_up, last_error)
        self.taken = []
        self.begun = []
        self.ended = []
        self.to_write = []

    def change(self):
        self.changes.append((self.is_up, self.last_error and str(self.last_error)))

    def write(self, *words):
        self.to_write.append(words)
        self._wake.set()

    def _begin(self):
        self.begun.append(self.connections_made)

    def _end(self, error):
        self.ended.append(str(error))

    def _take(self, reply):
        self.taken.append(reply)
        if reply == b"raise":
            raise LookupError("a bug")

    async def _write(self, connection):
        words, self.to_write = self.to_write, []
        await send(connection, [pack(connection, *one) for one in words])


@pytest.fixture
async def scripted():
    async with ScriptedRedis() as made:
        yield made


@pytest.fixture
async def line(scripted):
    made = Line(scripted.dial)
    yield made
    await made.stop()


async def up(line, count=1):
    await until(lambda: line.is_up and line.connections_made >= count, f"connection {count}")


def test_the_first_attempt_comes_at_once_and_later_ones_back_off_with_full_jitter():
    assert pause_before(0) == 0
    for attempt, most in [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (9, 1.0), (10_000, 1.0)]:
        pauses = [pause_before(attempt) for _ in range(500)]
        assert 0 <= min(pauses) < most * 0.2
        assert most * 0.8 < max(pauses) <= most
    assert FIRST_PAUSE_SECONDS * 2 == 0.1
    assert MAX_PAUSE_SECONDS == 1.0


async def test_it_connects_reads_and_writes(line, scripted):
    assert (line.is_up, line.connections_made, line.last_error) == (False, 0, None)
    line.start()
    await up(line)
    visit = await scripted.visit()
    line.write("ECHO", "hello")
    assert await visit.command() == [b"ECHO", b"hello"]
    visit.say(b"+hello\r\n-ERR no\r\n")
    await until(lambda: len(line.taken) == 2)
    assert line.taken[0] == b"hello"
    assert str(line.taken[1]) == "no", "an error that answers is a reply"
    assert (line.changes, line.begun, line.ended) == ([(True, None)], [1], [])


async def test_what_is_written_within_a_tick_leaves_in_one_piece(line, scripted):
    line.start()
    await up(line)
    writes = []
    line._connection.send_packed_command = _spying(line._connection.send_packed_command, writes)
    for number in range(100):
        line.write("ECHO", str(number))
    visit = await scripted.visit()
    await until(lambda: len(visit.commands) == 100)
    assert [len(pieces) for pieces in writes] == [1]


def _spying(send_packed_command, seen):
    async def spy(pieces, **options):
        seen.append(pieces)
        await send_packed_command(pieces, **options)

    return spy


async def test_a_connection_that_is_lost_is_made_again_and_said_to_be_lost(line, scripted):
    line.start()
    await up(line)
    (await scripted.visit()).hang_up()
    await up(line, 2)
    lost = "the connection to Redis was lost: "
    assert [change[0] for change in line.changes] == [True, False, True]
    assert line.changes[1][1].startswith(lost)
    assert line.ended[0].startswith(lost)
    assert line.begun == [1, 2]
    assert line.last_error is not None, "nothing has been proved yet"
    line.prove()
    assert line.last_error is None


async def test_a_connection_that_was_proved_good_is_made_again_at_once(line, scripted, monkeypatch):
    attempts = []
    monkeypatch.setattr("fastapi_rooms.backends.redis.supervised.pause_before", lambda n: attempts.append(n) or 0)
    line.start()
    for count in range(1, 4):
        await up(line, count)
        (await scripted.visit(count - 1)).hang_up()
        await until(lambda count=count: len(line.ended) == count)
    await up(line, 4)
    assert attempts == [0, 1, 2, 3]
    line.prove()
    (await scripted.visit(3)).hang_up()
    await up(line, 5)
    assert attempts == [0, 1, 2, 3, 0]


async def test_it_goes_on_trying_while_nobody_is_there(line, scripted):
    scripted.greeting = b"-LOADING not now\r\n"
    line.start()
    await until(lambda: len(line.changes) >= 2)
    assert {change[0] for change in line.changes} == {False}
    scripted.greeting = b"+OK\r\n"
    await up(line)


@pytest.mark.parametrize("bug", [ValueError("a bug"), AssertionError("a bug"), KeyError("a bug")])
async def test_a_bug_while_connecting_does_not_end_it(scripted, caplog, bug):
    async def dial():
        if not raised:
            raised.append(bug)
            raise bug
        return await scripted.dial()

    raised = []
    line = Line(dial)
    line.start()
    await up(line)
    assert line.changes[0] == (False, f"connecting failed: {bug!r}")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "line failed; connecting anew"
    assert record.exc_info[1] is bug
    await line.stop()


async def test_a_bug_in_what_is_done_with_a_reply_does_not_end_it(line, scripted, caplog):
    line.start()
    await up(line)
    (await scripted.visit()).say(b"+raise\r\n+ignored\r\n")
    await up(line, 2)
    assert line.ended == ["what Redis said could not be handled: LookupError('a bug')"]
    assert [record.getMessage() for record in caplog.records] == ["line failed; connecting anew"]
    await scripted.visit(1)
    scripted.visits[-1].say(b"+fine\r\n")  # on a busy machine an attempt that took too long came before it
    await until(lambda: line.taken == [b"raise", b"fine"])
    await until(lambda: scripted.visits[0].is_over, "the first connection was hung up")


async def test_who_is_dropped_is_hung_up_at_once_and_connected_anew(line, scripted):
    line.drop("there is nothing to drop")
    line.start()
    await up(line)
    line.drop("too slow")
    assert not line.is_up
    assert (line.ended, line.changes[-1]) == (["too slow"], (False, "too slow"))
    line.drop("there is nothing to drop")
    await up(line, 2)
    assert line.ended == ["too slow"]
    await until(lambda: scripted.visits[0].is_over, "the first connection was hung up")


async def test_nothing_is_read_from_a_connection_that_was_dropped(line, scripted):
    line.start()
    await up(line)
    taken = line._take

    def drop(reply):
        taken(reply)
        line.drop("enough")

    line._take = drop
    (await scripted.visit()).say(b"+1\r\n+2\r\n+3\r\n")
    await up(line, 2)
    assert line.taken == [b"1"]


async def test_what_had_arrived_when_a_connection_was_dropped_is_not_taken(line, scripted):
    line.start()
    await up(line)
    await asyncio.sleep(0)
    line._connection._reader.feed_data(b"+late\r\n")
    line.drop("just before it was its reader's turn")
    await up(line, 2)
    (await scripted.visit(1)).say(b"+new\r\n")
    await until(lambda: b"new" in line.taken)
    assert line.taken == [b"new"]


async def test_a_write_that_fails_ends_the_connection(line, scripted):
    line.start()
    await up(line)
    visit = await scripted.visit()
    line.write("ECHO", "x" * (1 << 22))
    visit.hang_up()
    await up(line, 2)
    line.write("ECHO", "again")
    second = await scripted.visit(1)
    assert await second.command() == [b"ECHO", b"again"]


async def test_nothing_is_written_to_a_connection_that_is_not_the_one_any_more(line, scripted):
    line.start()
    await up(line)
    line.write("ECHO", "late")
    line.drop("meanwhile")
    await up(line, 2)
    assert line.to_write == [("ECHO", "late")], "it was not written; what becomes of it is not decided here"
    assert not (await scripted.visit()).commands


async def test_others_have_their_turn_while_much_is_read(line, scripted):
    loop = asyncio.get_running_loop()
    line.start()
    await up(line)
    turns = []
    taken = line._take

    def take_long(reply):
        taken(reply)
        end = loop.time() + MAX_BUSY_SECONDS / 2
        while loop.time() < end:
            pass

    async def take_turns():
        while len(line.taken) < 100:
            turns.append(len(line.taken))
            await asyncio.sleep(0)

    line._take = take_long
    (await scripted.visit()).say(b"+x\r\n" * 100)
    await take_turns()
    assert len(set(turns)) > 20


async def test_stopping_hangs_up_and_leaves_no_task(line, scripted):
    before = asyncio.all_tasks()
    line.start()
    await up(line)
    visit = await scripted.visit()
    await line.stop()
    await line.stop()
    assert line.ended == ["the backend was stopped"]
    await until(lambda: visit.is_over, "it hung up")
    await until(lambda: asyncio.all_tasks() <= before)
    line.start()
    await up(line, 2)


async def test_it_can_be_stopped_while_it_connects_or_waits(line, scripted):
    scripted.greeting = None
    line.start()
    visit = await scripted.visit()
    await asyncio.wait_for(line.stop(), 1)
    await until(lambda: visit.is_over, "it hung up")
    scripted.greeting = b"-LOADING not now\r\n"
    line.start()
    await until(lambda: line.last_error)
    await asyncio.wait_for(line.stop(), 1)
    await line.stop()


async def test_it_can_be_stopped_while_a_write_is_stuck(line, scripted):
    line.start()
    await up(line)
    (await scripted.visit())._reader._transport.pause_reading()
    line.write("ECHO", "x" * (1 << 26))
    await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await line.stop()
    assert loop.time() - begin < 1


async def test_what_was_in_the_context_of_its_start_is_not_in_its_own(scripted):
    secret = contextvars.ContextVar("secret", default="none")
    seen = []

    async def dial():
        seen.append(secret.get())
        raise BackendUnavailable("closed")

    line = Line(dial)
    secret.set("mine")
    line.start()
    await until(lambda: seen)
    await line.stop()
    assert set(seen) == {"none"}
