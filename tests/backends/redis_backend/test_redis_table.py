"""Whoever keeps the table of a cluster's slots asks again, whatever he was told."""

import asyncio
import logging

import pytest
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis import table as module
from fastapi_rooms.backends.redis.slots import SLOTS
from fastapi_rooms.backends.redis.table import TableKeeper

ANSWER = [[0, SLOTS - 1, [b"127.0.0.1", 7001]]]


class Server:
    """Answers with what it is given, or raises it."""

    address = ("127.0.0.1", 7001)

    def __init__(self):
        self.answer = ANSWER
        self.asked = 0

    def __str__(self):
        return "fake"

    async def ask(self, *command):
        assert command == ("CLUSTER", "SLOTS")
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Owner:
    """Takes tables as long as it can."""

    def __init__(self):
        self.is_healthy = False
        self.tables = []
        self.told = 0
        self.table_error = None
        self.told_error = None

    def on_table(self, table):
        if self.table_error is not None:
            raise self.table_error
        self.tables.append(table)

    def on_asked(self):
        self.told += 1
        if self.told_error is not None:
            raise self.told_error


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def owner():
    return Owner()


@pytest.fixture
async def keeper(server, owner, monkeypatch):
    monkeypatch.setattr(module, "MIN_REFRESH_SECONDS", 0.001)
    monkeypatch.setattr(module, "UNHEALTHY_REFRESH_SECONDS", 0.002)
    made = TableKeeper(lambda: [server], lambda: owner.is_healthy, owner.on_table, owner.on_asked)
    yield made
    await made.stop()


def errors(caplog):
    return [record for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize("answer", [ValueError("no number"), ZeroDivisionError(), BackendUnavailable("away"), b"abc"])
async def test_it_asks_again_whatever_comes_in_place_of_a_table(server, owner, keeper, caplog, answer):
    server.answer = answer
    keeper.start()
    await asyncio.wait_for(keeper.asked(), 5)
    await until(lambda: server.asked >= 3 and owner.told >= 2)
    assert owner.tables == []
    assert isinstance(keeper.last_error, BackendUnavailable)
    is_unexpected = isinstance(answer, ValueError | ZeroDivisionError)
    assert len(errors(caplog)) == is_unexpected, "said once a minute, with its traceback"
    assert all(record.exc_info for record in errors(caplog))
    server.answer = ANSWER
    await until(lambda: owner.tables)
    assert owner.tables[0].is_complete()
    assert keeper.last_error is None


@pytest.mark.parametrize("failing", ["table_error", "told_error"])
async def test_it_asks_again_when_a_table_cannot_be_taken(server, owner, keeper, caplog, failing):
    setattr(owner, failing, ZeroDivisionError("a bug"))
    owner.is_healthy = True
    keeper.start()
    await asyncio.wait_for(keeper.asked(), 5)
    await until(lambda: server.asked >= 3)
    assert "ZeroDivisionError('a bug')" in str(keeper.last_error)
    assert owner.told >= 2, "who waits for a channel is told all the same"
    assert len(errors(caplog)) == 1
    setattr(owner, failing, None)
    await until(lambda: keeper.last_error is None and owner.tables)


async def test_a_question_without_an_answer_is_asked_again_though_every_link_works(server, owner, keeper):
    owner.is_healthy = True
    keeper.start()
    await until(lambda: owner.told == 1)
    server.answer = BackendUnavailable("busy")
    keeper.expire()
    await until(lambda: owner.told >= 3)
    server.answer = ANSWER
    await until(lambda: len(owner.tables) == 2)
    told = owner.told
    keeper.expire()
    await until(lambda: owner.told == told + 1)
    assert len(owner.tables) == 3, "once for each time that it expired"
