"""What a client has sent and nobody has taken: in order, bounded, and never stuck."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fakes import settled, ticks
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.inbound.inbox import Inbox


def inbox(messages=3, size=100):
    return Inbox(RoomsSettings(inbox_messages=messages, inbox_bytes=size))


async def drain(box):
    taken = []
    while (payload := await box.get()) is not None:
        taken.append(payload)
    return taken


async def test_what_was_put_comes_out_in_order():
    box = inbox(100)
    payloads = ["a", b"b", "", "c"]
    for payload in payloads:
        box.put(payload, len(payload))
    box.end()
    assert await drain(box) == payloads


async def test_a_consumer_waits_for_a_payload():
    box = inbox()
    consumer = asyncio.create_task(box.get())
    await settled()
    assert not consumer.done()
    box.put("a", 1)
    assert await consumer == "a"


@pytest.mark.parametrize(("messages", "size", "fit"), [(3, 100, 3), (100, 30, 3), (100, 29, 3), (1, 1, 1)])
async def test_an_inbox_is_full_when_a_limit_is_reached(messages, size, fit):
    box = inbox(messages, size)
    for _ in range(fit):
        assert not box.is_full
        box.put("x" * 10, 10)
    assert box.is_full


async def test_one_message_is_always_let_in_however_large():
    box = inbox(3, 5)
    assert not box.is_full
    box.put("x" * 1000, 1000)
    assert box.is_full
    assert await box.get() == "x" * 1000
    assert not box.is_full


async def test_a_producer_waits_for_room_and_is_let_in_when_something_is_taken():
    box = inbox(2)
    await box.space()  # there is some
    box.put("a", 1)
    box.put("b", 1)
    producer = asyncio.create_task(box.space())
    await settled()
    assert not producer.done()
    assert await box.get() == "a"
    await asyncio.wait_for(producer, 1)


async def test_a_producer_waits_on_while_there_is_still_no_room():
    box = inbox(100, 10)
    for size in (1, 50):
        box.put("x" * size, size)
    producer = asyncio.create_task(box.space())
    await settled()
    await box.get()  # the small one: 50 bytes are left
    await settled()
    assert not producer.done()
    await box.get()
    await asyncio.wait_for(producer, 1)


async def test_what_was_put_before_the_end_can_still_be_taken():
    box = inbox()
    box.put("a", 1)
    box.end()
    assert box.has_ended
    assert await box.get() == "a"
    assert await box.get() is None
    assert await box.get() is None


async def test_giving_up_drops_and_counts_what_is_queued():
    box = inbox()
    box.put("a", 1)
    assert (box.end_and_drop(), box.end_and_drop()) == (1, 0)
    assert await box.get() is None
    assert not box.is_full


async def test_what_has_ended_may_be_given_up():
    box = inbox()
    box.put("a", 1)
    box.end()
    assert box.end_and_drop() == 1
    assert await box.get() is None


async def test_nothing_is_let_in_after_the_end():
    box = inbox()
    box.end()
    box.put("late", 4)
    assert await box.get() is None


@pytest.mark.parametrize("end", [Inbox.end, Inbox.end_and_drop])
async def test_the_end_wakes_whoever_waits(end):
    empty, full = inbox(), inbox(1)
    full.put("a", 1)
    consumer, producer = asyncio.create_task(empty.get()), asyncio.create_task(full.space())
    await settled()
    end(empty)
    end(full)
    assert await asyncio.wait_for(consumer, 1) is None
    await asyncio.wait_for(producer, 1)


async def test_a_cancelled_consumer_leaves_the_inbox_usable():
    box = inbox()
    consumer = asyncio.create_task(box.get())
    await settled()
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()
    box.put("a", 1)
    assert await box.get() == "a"


async def test_a_consumer_that_is_cancelled_in_the_tick_of_a_put_loses_nothing():
    box = inbox()
    consumer = asyncio.create_task(box.get())
    await settled()
    box.put("a", 1)
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()
    assert await asyncio.wait_for(box.get(), 1) == "a"


async def test_a_cancelled_producer_leaves_the_inbox_usable():
    box = inbox(1)
    box.put("a", 1)
    producer = asyncio.create_task(box.space())
    await settled()
    producer.cancel()
    await asyncio.wait([producer])
    again = asyncio.create_task(box.space())
    await settled()
    assert await box.get() == "a"
    await asyncio.wait_for(again, 1)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=30),
    messages=st.integers(1, 5),
    limit=st.integers(1, 60),
    consumer_ticks=st.lists(st.integers(0, 4), min_size=1, max_size=5),
)
def test_a_producer_that_asks_for_room_never_exceeds_the_limits_by_more_than_one(
    sizes, messages, limit, consumer_ticks
):
    async def main():
        box = inbox(messages, limit)
        most = []

        async def produce():
            for number, size in enumerate(sizes):
                await box.space()
                box.put(str(number), size)
                most.append((len(box._queue), box._queued_bytes))
            box.end()

        producer = asyncio.create_task(produce())
        taken = []
        while (payload := await box.get()) is not None:
            taken.append(int(payload))
            await ticks(consumer_ticks[len(taken) % len(consumer_ticks)])
        await producer
        assert taken == list(range(len(sizes)))
        assert all(count <= messages and size < limit + 40 for count, size in most)
        assert box._queued_bytes == 0

    asyncio.run(main())
