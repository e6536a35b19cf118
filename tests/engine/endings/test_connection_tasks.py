"""Tasks that end with their connection."""

import asyncio

import pytest
from support import until

from engine.fakes import connected, is_empty, run_clocked
from fastapi_rooms import ConnectionEnded, ConnectionManager, RoomsSettings


async def forever():
    await asyncio.Event().wait()


def test_a_task_has_its_grace_when_its_connection_has_ended():
    async def main():
        manager = ConnectionManager(RoomsSettings(disconnect_grace=5))
        _, connection = await connected(manager)
        first, second = connection.start_task(forever()), connection.start_task(asyncio.sleep(3, "done"))
        await connection.close()
        assert await second == "done"
        await asyncio.sleep(1.9)
        assert not first.done()
        await asyncio.sleep(0.2)
        assert first.cancelled()
        assert len(manager._parts.tasks) == 0
        await manager.stop()

    run_clocked(main)


async def test_a_task_that_is_done_in_its_grace_leaves_no_timer(manager):
    _, connection = await connected(manager)
    go = asyncio.Event()
    task = connection.start_task(go.wait())
    manager.disconnect(connection)
    go.set()
    assert await task is True
    await asyncio.sleep(0)
    assert manager._parts.tasks._timers == {}
    assert len(manager._parts.tasks) == 0


async def test_a_connection_that_has_ended_starts_no_task(manager):
    _, connection = await connected(manager)
    manager.disconnect(connection)
    with pytest.raises(ConnectionEnded) as error:
        connection.start_task(forever())
    assert error.value.connection is connection


async def test_all_tasks_end_with_the_manager(manager):
    _, connection = await connected(manager)
    task = connection.start_task(forever())
    await manager.stop()
    assert task.cancelled()
    assert is_empty(manager)


async def test_a_task_that_fails_after_its_connection_has_ended_is_logged(manager, caplog):
    _, connection = await connected(manager)
    go = asyncio.Event()

    async def fail():
        await go.wait()
        raise ValueError("a bug")

    task = connection.start_task(fail())
    await connection.close(4000)
    go.set()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    [record] = caplog.records
    assert record.exc_info[0] is ValueError
    assert record.getMessage().endswith("failed when it had ended"), "nobody is closed"
    assert connection.close_code == 4000


async def push(connection, go):
    while True:
        await connection.send("news")
        await go.wait()


async def push_twice(connection, go):
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(push(connection, go))


async def push_more(connection, go):
    async with asyncio.TaskGroup() as group:
        group.create_task(push_twice(connection, go))
        group.create_task(push(connection, go))


@pytest.mark.parametrize("pushes", [push, push_twice, push_more])
async def test_a_task_that_finds_its_client_gone_ends_quietly_also_in_groups(manager, caplog, pushes):
    peer, connection = await connected(manager)
    go = asyncio.Event()
    task = connection.start_task(pushes(connection, go))
    await until(lambda: peer.texts)
    manager.disconnect(connection)
    go.set()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert task.exception() is not None
    assert caplog.records == []


async def wait_for_one(connection):
    return await anext(connection.messages(str))


async def wait_within(connection):
    async def wait():
        yield await wait_for_one(connection)

    async for _ in wait():
        raise AssertionError("nothing was sent")


async def wait_in_a_group(connection):
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_for_one(connection))


@pytest.mark.parametrize("waits", [wait_for_one, wait_within, wait_in_a_group])
async def test_a_task_that_waits_for_a_message_and_whose_client_goes_ends_quietly(manager, caplog, waits):
    _, connection = await connected(manager)
    task = connection.start_task(waits(connection))
    await asyncio.sleep(0)
    await connection.close()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert task.exception() is not None
    assert caplog.records == []


async def test_the_end_of_something_else_is_a_failure_while_the_client_is_here(manager, caplog):
    _, connection = await connected(manager)

    async def nothing():
        for one in ():
            yield one

    async def first():
        return await anext(nothing())

    await asyncio.wait([connection.start_task(first())])
    await asyncio.sleep(0)
    [record] = caplog.records
    assert record.exc_info[0] is StopAsyncIteration
    assert connection.close_code == 1011


async def test_a_group_with_another_error_in_it_is_a_failure(manager, caplog):
    _, connection = await connected(manager)

    async def fail():
        raise ExceptionGroup("a task group", [ConnectionEnded("somebody"), ValueError("a bug")])

    await asyncio.wait([connection.start_task(fail())])
    await asyncio.sleep(0)
    [record] = caplog.records
    assert record.getMessage().endswith("failed: the client is closed with 1011")
    assert connection.close_code == 1011


async def test_a_task_may_stop_the_manager(manager):
    _, connection = await connected(manager)
    other = connection.start_task(forever())
    await connection.start_task(manager.stop())
    assert other.cancelled()
    assert is_empty(manager)
