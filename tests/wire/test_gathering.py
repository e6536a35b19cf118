"""`flush_interval` on real servers, both ways to the socket."""

import asyncio
import contextlib
import time

import pytest
from strict_client import PLAIN, TAKEOVER
from support import live
from wire_app import Stage, labelled, numbers, ticks

from fastapi_rooms.engine.references import SCOPE_KEY

HOUR = 3_600_000


@pytest.fixture(params=["auto", "asgi"])
def wire(request):
    return request.param


@contextlib.contextmanager
def gathering(loop, wire, interval, **limits):
    stage = Stage(flush_interval=interval, wire=wire, **limits)
    with live(stage.app, loop) as server:
        yield stage, server


def outboxes(stage):
    return [websocket.scope[SCOPE_KEY]._outbox for websocket in stage.sockets]


async def test_the_first_message_leaves_at_once_and_the_next_waits_for_the_interval(loop, wire):
    with gathering(loop, wire, HOUR) as (stage, server):
        async with stage.client(server) as client, stage.client(server, TAKEOVER) as other:

            async def talk() -> list[int]:
                waiting = []
                for number in range(4):
                    await stage.manager.broadcast(labelled("ours", number))
                    await ticks(10)
                    waiting += [len(outbox) for outbox in outboxes(stage)]
                return waiting

            assert await server.call(talk) == [0, 0, 1, 1, 2, 2, 3, 3]
            for one in (client, other):
                await one.read_until(lambda one=one: numbers(one, "ours"))
                assert numbers(one, "ours") == [0]


async def test_a_close_waits_for_nothing_and_follows_what_was_gathered(loop, wire):
    with gathering(loop, wire, HOUR) as (stage, server):
        async with stage.client(server) as client:

            async def talk() -> None:
                for number in range(100):
                    await stage.manager.broadcast(labelled("ours", number, number))
                    await ticks(1)
                await stage.manager.close_room("r", 4000, "bye")

            await server.call(talk)
            assert await client.read_to_close() == (4000, "bye")
            assert numbers(client, "ours") == list(range(100))


async def test_the_end_of_the_manager_loses_nothing(loop, wire):
    with gathering(loop, wire, HOUR) as (stage, server):
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(stage.client(server, PLAIN)) for _ in range(20)]

            async def talk() -> None:
                for number in range(10):
                    await stage.manager.broadcast(labelled("ours", number, 1_000))
                    await ticks(1)

            await server.call(talk)
            stopping = asyncio.ensure_future(server.call(stage.manager.stop))
            for client in clients:
                assert (await client.read_to_close())[0] == 1012
                assert numbers(client, "ours") == list(range(10))
            await stopping
            assert stage.manager.stats().dropped["lost"] == 0


async def test_all_arrive_in_order_and_together_however_they_were_sent(loop, wire):
    interval = 0.05
    with gathering(loop, wire, 1000 * interval) as (stage, server):
        async with stage.client(server) as client, stage.client(server, TAKEOVER) as other:
            flushes = []

            async def talk() -> float:
                flusher = stage.manager._parts.flusher
                flush_all = flusher._flush_all
                flusher._flush_all = lambda dirty: flushes.append(len(dirty)) or flush_all(dirty)
                begin = time.monotonic()
                for number in range(300):
                    await stage.manager.broadcast_to_room("r", labelled("ours", number, number % 50))
                    await asyncio.sleep(0.001)
                return time.monotonic() - begin

            took = await server.call(talk)
            for one in (client, other):
                await one.read_until(lambda one=one: len(numbers(one, "ours")) == 300)
                assert numbers(one, "ours") == list(range(300))
            assert len(flushes) <= took / interval + 2, "one per interval, whatever was sent"
            assert max(flushes) == 2
