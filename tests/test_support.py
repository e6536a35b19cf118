"""What other tests wait with."""

import asyncio
import sys
import threading
import time

import pytest
from support import FairClock, until


async def test_it_returns_the_first_value_that_is_true():
    values = iter([None, 0, [], "found", "late"])
    assert await until(lambda: next(values)) == "found"


async def test_a_fact_may_be_async():
    values = iter([0, 1])

    async def fact():
        await asyncio.sleep(0)
        return next(values)

    assert await until(fact) == 1


async def test_it_waits_for_facts_of_this_loop_and_of_other_threads():
    reached = []
    asyncio.get_running_loop().call_later(0.02, reached.append, "by the loop")
    await until(lambda: reached)
    another = threading.Event()
    thread = threading.Thread(target=lambda: (time.sleep(0.02), another.set()))
    thread.start()
    assert await until(another.is_set)
    thread.join()


def never():
    return False


WITHOUT_SOURCE = eval(compile("lambda: False", "<nowhere>", "eval"))  # from 3.13 on "<string>" may be a program's -c


@pytest.mark.parametrize(
    ("wait", "said"),
    [
        (lambda: until(lambda: False, "the moon is blue", 0.01), "not within 0.01 s: the moon is blue"),
        (lambda: until(lambda: [] or 0, seconds=0.01), r"not within 0.01 s: .*lambda: \[\] or 0"),
        (lambda: until(never, seconds=0.01), "not within 0.01 s: <function never"),
        (
            lambda: until(threading.Event().is_set, seconds=0.01),
            r"not within 0.01 s: <bound method Event.is_set of .*unset",
        ),
        (lambda: until(WITHOUT_SOURCE, seconds=0.01), "not within 0.01 s: <function <lambda>"),
        (lambda: until(lambda: asyncio.sleep(9), "an answer", 0.01), "not within 0.01 s: an answer"),
    ],
)
async def test_it_fails_with_what_it_waited_for(wait, said):
    with pytest.raises(TimeoutError, match=said):
        await wait()


async def test_a_fact_that_fails_is_not_taken_for_one_that_is_late():
    async def fact():
        raise TimeoutError("the fact's own")

    with pytest.raises(TimeoutError, match="the fact's own"):
        await until(fact)


def test_a_fair_clock_stands_still_for_who_is_kept_from_the_processor():
    clock = FairClock()
    fair, real, threads = clock(), time.monotonic(), sys.getswitchinterval()
    sys.setswitchinterval(0.1)  # whoever computes keeps all other threads waiting for so long
    try:
        while time.monotonic() - real < 0.5:
            pass
    finally:
        sys.setswitchinterval(threads)
    fair, real = clock() - fair, time.monotonic() - real
    assert real >= 0.5
    assert 0 < fair < 0.75 * real
