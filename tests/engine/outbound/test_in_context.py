"""A coroutine in a context of its own: what it sees, what it waits for, and how it ends."""

import asyncio
from contextvars import ContextVar, copy_context

import pytest

from engine.fakes import ticks
from fastapi_rooms.engine.outbound.in_context import run_in_context

name = ContextVar("name", default="of the task")


@pytest.fixture
def context():
    made = copy_context()
    made.run(name.set, "of the connection")
    return made


async def test_every_step_sees_the_context_and_what_is_set_there_stays_there(context):
    seen = []

    async def steps():
        seen.append(name.get())
        await asyncio.sleep(0)
        seen.append(name.get())
        name.set("changed")

    left = run_in_context(context, steps())
    assert seen == ["of the connection"], "the first step is made at once"
    await left
    assert seen == ["of the connection"] * 2
    assert (name.get(), context[name]) == ("of the task", "changed")


async def test_what_has_one_step_has_nothing_left_to_wait_for(context):
    async def steps():
        name.set("changed")

    waiting = run_in_context(context, steps())
    assert context[name] == "changed"
    assert await waiting is None
    assert await run_in_context(context, steps()) is None, "and again"


@pytest.mark.parametrize("count", [0, 2])
async def test_what_it_raises_is_raised(context, count):
    async def steps():
        await ticks(count)
        raise LookupError(name.get())

    with pytest.raises(LookupError, match="of the connection"):
        await run_in_context(context, steps())


async def test_it_can_wait_with_a_deadline_and_for_what_others_make(context):
    async def steps():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, None)
        await future
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        assert name.get() == "of the connection"
        name.set("done")

    await run_in_context(context, steps())
    assert context[name] == "done"


async def test_a_cancellation_reaches_it_in_its_context(context):
    seen = []

    async def steps():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(name.get())
            await asyncio.sleep(0)
            seen.append(name.get())
            raise

    async def run():
        await run_in_context(context, steps())

    task = asyncio.create_task(run())
    await ticks(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["of the connection"] * 2


async def test_what_is_left_and_never_awaited_to_its_end_is_closed_in_its_context(context):
    seen = []

    async def steps():
        try:
            await asyncio.sleep(0)
        finally:
            seen.append(name.get())

    async def run():
        await run_in_context(context, steps())

    left = run()
    left.send(None)
    left.close()
    assert seen == ["of the connection"]
