"""What tests of the engine wait with."""

import asyncio

import pytest

from engine.fakes import only_this_task, run_clocked, settled


async def test_settled_follows_what_begins_something_else_and_waits_for_no_timer():
    happened = []

    def go_on(count):
        happened.append(count)
        if count:
            loop.call_soon(go_on, count - 1)

    async def a_task():
        for _ in range(30):
            await asyncio.sleep(0)
        happened.append("task")

    loop = asyncio.get_running_loop()
    later = loop.call_later(60, happened.append, "too early")
    loop.call_soon(go_on, 40)
    task = asyncio.create_task(a_task())
    assert not only_this_task()
    await settled()
    assert sorted(map(str, happened)) == sorted(map(str, [*range(41), "task"]))
    assert task.done()
    assert only_this_task()
    later.cancel()


async def test_settled_fails_where_nothing_comes_to_rest():
    def again():
        nonlocal due
        due = asyncio.get_running_loop().call_soon(again)

    due = asyncio.get_running_loop().call_soon(again)
    with pytest.raises(AssertionError, match="never comes to rest"):
        await settled()
    due.cancel()


def test_the_clock_jumps_to_the_next_timer_and_settled_does_not_move_it():
    async def main():
        loop = asyncio.get_running_loop()
        await settled()
        assert loop.time() == 0
        await asyncio.sleep(3600)
        assert loop.time() == pytest.approx(3600)

    run_clocked(main)
