"""A handler that waits for the next message keeps nothing of the last one alive: thousands of them wait."""

import asyncio
import sys
import weakref
from typing import Any

import pytest
from engine.fakes import connected, settled, ticks
from pydantic import BaseModel
from support import DEADLINE, until

from fastapi_rooms import BackendUnavailable, Connection, ConnectionManager, RoomsSettings
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.handlers import Handler


class Say(BaseModel):
    text: str


@pytest.fixture
async def manager():
    made = ConnectionManager()
    yield made
    await made.stop()


class Waiting:
    """A handler that has been called and waits again."""

    def __init__(self, manager, peer, connection, task):
        self.manager = manager
        self.peer = peer
        self.connection = connection
        self.task = task

    @property
    def is_inline(self):
        return sessions_of(self.manager).reader(self.connection).is_inline

    async def rest(self):
        """Let it come back, and wait."""
        await until(lambda: sessions_of(self.manager).reader(self.connection).is_awaited)
        await settled()
        assert sessions_of(self.manager).reader(self.connection).is_awaited
        assert not self.task.done()

    async def end(self):
        self.peer.go()
        self.task.cancel()  # as an attendance does
        await asyncio.wait([self.task])


async def begin(manager, function, message_type):
    peer, connection = await connected(manager)
    task = asyncio.create_task(Handler(function, "message", message_type).run(connection, manager, {}))
    await settled()
    return Waiting(manager, peer, connection, task)


async def _plain(message):
    pass


async def _answer(message):
    return 1


async def _stream(message):
    yield 1
    yield 2


def _in_a_thread(message):
    return 1


async def _busy(message):
    await ticks(3)


async def _fail(message):
    raise BackendUnavailable("the other nodes are out of reach")


FUNCTIONS = [_plain, _answer, _stream, _in_a_thread, _busy, _fail]


def noting(function, note):
    """The same function, which notes each message before anything else."""
    if function is _stream:

        async def noted(message):
            note(message)
            async for value in function(message):
                yield value

    elif function is _in_a_thread:

        def noted(message):
            note(message)
            return function(message)

    else:

        async def noted(message):
            note(message)
            return await function(message)

    return noted


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_decoded_message_is_freed_as_soon_as_its_handler_has_come_back(manager, function):
    messages = []
    waiting = await begin(manager, noting(function, lambda message: messages.append(weakref.ref(message))), Say)
    for number in range(3):
        waiting.peer.say('{"text": "hello"}')
        await until(lambda number=number: len(messages) > number)
        await waiting.rest()
        # A worker thread lets go of its arguments a moment after its result has come back.
        await until(lambda: messages[-1]() is None)
    await waiting.end()


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_payload_is_freed_as_soon_as_its_handler_has_come_back(manager, function):
    sizes = []
    waiting = await begin(manager, noting(function, lambda message: sizes.append(len(message))), str)
    for number in range(3):
        payload = "x" * (50_000 + number)
        before = sys.getrefcount(payload)
        waiting.peer.say(payload)
        await until(lambda number=number: len(sizes) > number)
        await waiting.rest()
        async with asyncio.timeout(DEADLINE):  # not `until`: its function would be a reference, too
            while sys.getrefcount(payload) != before:
                await asyncio.sleep(0)
    assert sizes == [50_000, 50_001, 50_002]
    await waiting.end()


@pytest.mark.parametrize("is_read_by_a_task", [False, True])
@pytest.mark.parametrize("kind", ["invalid", "ping", "pong"])
async def test_a_payload_that_is_answered_in_place_of_the_handler_is_freed_too(manager, kind, is_read_by_a_task):
    waiting = await begin(manager, _busy, Say)
    if is_read_by_a_task:
        waiting.peer.say('{"text": "hello"}')
        await waiting.rest()
        assert not waiting.is_inline
    payload = " " * 10_000 + ('["nonsense"]' if kind == "invalid" else f'{{"type": "{kind}"}}')
    before = sys.getrefcount(payload)
    waiting.peer.say(payload)
    await waiting.rest()
    assert waiting.is_inline is not is_read_by_a_task
    assert len(waiting.peer.texts) == (kind != "pong")
    assert sys.getrefcount(payload) == before
    await waiting.end()


@pytest.mark.parametrize("message_type", [str, Any])
async def test_a_session_that_waits_for_messages_keeps_none_either(manager, message_type):
    peer, connection = await connected(manager)
    seen = []

    async def session(connection: Connection) -> None:
        async for message in connection.messages(message_type):
            seen.append(len(message))
            del message  # its own business

    task = asyncio.create_task(session(connection))
    payload = '"' + "x" * 50_000 + '"'
    before = sys.getrefcount(payload)
    for count in range(1, 4):
        peer.say(payload)
        await until(lambda count=count: len(seen) == count)
        await settled()
        assert sys.getrefcount(payload) == before
    peer.go()
    await task


async def test_a_reader_whose_inbox_was_full_keeps_nothing_once_it_is_empty():
    manager = ConnectionManager(RoomsSettings(inbox_messages=2))
    peer, connection = await connected(manager)
    payloads = ["x" * (50_000 + number) for number in range(6)]
    messages = connection.messages(str)
    for number in range(6):
        peer.say(payloads[number])
    await settled()
    assert sessions_of(manager).reader(connection).inbox.is_full
    for _ in range(6):
        await anext(messages)
    await settled()
    assert {sys.getrefcount(payloads[number]) for number in range(6)} == {2}, "the list, and this question"
    peer.go()
    await manager.stop()
