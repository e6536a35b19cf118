"""Asking servers that all know the answer."""

import asyncio

import pytest

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis import asking
from fastapi_rooms.backends.redis.asking import first_answer


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Who was asked, in this order, by which task."""
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.05)
    return []


@pytest.fixture
def ask(asked):
    async def ask(name, seconds=0.0, error=None):
        asked.append((name, asyncio.current_task()))
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return name

    return ask


def names(asked):
    return [name for name, _ in asked]


async def test_who_answers_at_once_is_asked_alone(ask, asked):
    assert await first_answer([ask("one", 0.01), ask("two")]) == "one"
    assert names(asked) == ["one"]


async def test_the_next_is_asked_when_one_fails(ask, asked):
    assert await first_answer([ask("one", 0.01, BackendUnavailable("away")), ask("two"), ask("three")]) == "two"
    assert names(asked) == ["one", "two"]


async def test_the_next_is_asked_when_one_lets_wait_and_nobody_is_left_behind(ask, asked):
    assert await first_answer([ask("one", 60), ask("two", 60), ask("three")]) == "three"
    assert names(asked) == ["one", "two", "three"]
    assert all(task.done() for _, task in asked)


async def test_who_lets_wait_may_still_be_the_first_to_answer(ask, asked):
    assert await first_answer([ask("one", 0.1), ask("two", 60)]) == "one"
    assert names(asked) == ["one", "two"]


async def test_if_nobody_answers_it_says_what_each_said(ask):
    away = (ask(name, 0.01, BackendUnavailable(f"{name} is away")) for name in ("one", "two"))
    with pytest.raises(BackendUnavailable, match=r"^one is away; two is away$"):
        await first_answer(away)
    with pytest.raises(BackendUnavailable, match="there is nobody to ask"):
        await first_answer([])


async def test_a_bug_is_not_taken_for_an_answer(ask, asked):
    with pytest.raises(ZeroDivisionError):
        await first_answer([ask("one", 0.06, ZeroDivisionError()), ask("two", 60), ask("three")])
    assert all(task.done() for _, task in asked)


async def test_nobody_is_left_behind_when_the_wait_is_cancelled(ask, asked):
    waiting = asyncio.ensure_future(first_answer([ask("one", 60), ask("two", 60)]))
    await asyncio.sleep(0.07)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert names(asked) == ["one", "two"]
    assert all(task.done() for _, task in asked)
