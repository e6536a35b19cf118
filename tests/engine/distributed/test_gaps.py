"""What a node does when it may have missed something."""

import asyncio
import logging

import pytest
from support import until

from engine.fakes import connected, only_this_task, settled, texts
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.hooks import Hooks


async def told_of_a_gap(cluster, on_gap, hook=None, **settings):
    """Start a manager that misses something; return it and its connection."""
    manager = DistributedWebSocketManager(
        cluster.backends[0], settings=RoomsSettings(**settings), on_gap=on_gap, hooks=Hooks(gap=hook)
    )
    await manager.start()
    _, connection = await connected(manager, "kitchen", "ann")
    cluster.cut(0)
    cluster.restore(0)
    return manager, connection


@pytest.mark.parametrize("kind", ["function", "coroutine function", "callable object", "method"])
async def test_an_app_is_told_what_may_have_missed_something(cluster, kind):
    gaps = []

    async def later(gap):
        await asyncio.sleep(0)
        gaps.append(gap)

    class Called:
        def __call__(self, gap):
            gaps.append(gap)

        async def tell(self, gap):
            gaps.append(gap)

    on_gap = {
        "function": gaps.append,
        "coroutine function": later,
        "callable object": Called(),
        "method": Called().tell,
    }[kind]
    manager, _ = await told_of_a_gap(cluster, on_gap)
    await until(lambda: gaps)
    (gap,) = gaps
    assert (gap.rooms, gap.users, gap.everybody) == ({"kitchen"}, {"ann"}, True)
    assert gap.since <= gap.until
    assert manager.status.gaps == 1
    await manager.stop()
    assert only_this_task()


class Listener:
    def __init__(self):
        self.heard = []

    def hear(self, gap):
        self.heard.append(("hear", gap))

    async def hear_later(self, gap):
        await asyncio.sleep(0)
        self.heard.append(("hear_later", gap))


@pytest.mark.parametrize(
    ("on_gap", "hook", "heard"),
    [
        ("hear", None, ["hear"]),
        (None, "hear", ["hear"]),
        (None, "hear_later", ["hear_later"]),
        ("hear", "hear_later", ["hear", "hear_later"]),
        ("hear", "hear", ["hear"]),
        ("hear_later", "hear_later", ["hear_later"]),
        (None, None, []),
    ],
)
async def test_each_function_is_told_of_a_gap_once_whether_it_is_a_hook_or_on_gap_or_both(cluster, on_gap, hook, heard):
    listener = Listener()
    functions = [None if name is None else getattr(listener, name) for name in (on_gap, hook)]
    manager, _ = await told_of_a_gap(cluster, *functions)
    await manager.stop()  # calls what is due, and lets it finish
    assert [name for name, _ in listener.heard] == heard
    assert all(gap.rooms == {"kitchen"} for _, gap in listener.heard)


async def test_the_same_method_of_two_objects_is_two_functions(cluster):
    one, two = Listener(), Listener()
    manager, _ = await told_of_a_gap(cluster, one.hear, two.hear)
    await manager.stop()
    assert one.heard == two.heard
    assert len(one.heard) == 1


async def test_a_gap_is_logged_without_the_names_of_rooms(cluster, caplog):
    manager, _ = await told_of_a_gap(cluster, None)
    await settled()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("may have missed messages between ")
    assert record.getMessage().endswith(" for 1 rooms")
    assert "kitchen" not in record.getMessage()
    await manager.stop()


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_app_that_fails_when_it_is_told_is_logged_and_told_again(cluster, caplog, is_async):
    told = []

    def fail(gap):
        told.append(gap)
        raise RuntimeError("the app failed")

    async def fail_later(gap):
        await asyncio.sleep(0)
        fail(gap)

    manager, _ = await told_of_a_gap(cluster, fail_later if is_async else fail)
    await settled()
    cluster.cut(0)
    cluster.restore(0)
    await settled()
    assert len(told) == 2
    failures = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage()[:9] for record in failures] == ["the hook "], "once a minute"
    assert manager.status.connected
    await manager.stop()


async def test_an_app_may_send_when_it_is_told(cluster, nodes):
    holder = []

    async def repair(gap):
        for room in gap.rooms:
            await holder[0].broadcast_to_room(room, "reload, please")

    await nodes[0].stop()
    manager, connection = await told_of_a_gap(cluster, repair)
    holder.append(manager)
    there, _ = await connected(nodes[1], "kitchen")
    await settled()
    assert connection.is_open
    assert await texts(there) == [["reload, please"]]
    await manager.stop()


async def test_a_stop_ends_an_app_that_is_being_told(cluster):
    ends = []

    async def linger(gap):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append(gap)
            raise

    manager, _ = await told_of_a_gap(cluster, linger, disconnect_grace=0.05)
    await settled()
    cluster.cut(0)
    cluster.restore(0)
    await settled()
    await manager.stop()
    assert len(ends) == 2
    assert only_this_task()


async def test_an_app_may_stop_the_manager_when_it_is_told(cluster):
    stopped = []

    async def give_up(gap):
        try:
            await stopped[0].stop()
        finally:
            stopped.append("over")

    manager, connection = await told_of_a_gap(cluster, give_up)
    stopped.append(manager)
    await until(lambda: stopped[1:])
    assert not connection.is_open
    assert not manager.status.connected
    await manager.stop()
    assert only_this_task()


async def test_what_an_app_is_told_of_knows_nothing_of_who_published(cluster):
    import contextvars

    secret = contextvars.ContextVar("secret", default="none")
    seen = []
    secret.set("of the one who cuts")
    manager, _ = await told_of_a_gap(cluster, lambda gap: seen.append(secret.get()))
    await until(lambda: seen)
    assert seen == ["none"]
    await manager.stop()
