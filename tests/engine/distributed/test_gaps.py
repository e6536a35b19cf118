"""What a node does when it may have missed something."""

import asyncio
import logging

import pytest
from support import until

from engine.fakes import connected, only_this_task, run_clocked, settled
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.testing import LocalCluster


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
    assert record.getMessage().endswith(" for 1 rooms, 1 users and everybody")
    assert "kitchen" not in record.getMessage()
    await manager.stop()


class Failing:
    """An app's function that fails the first few times that it is told of a gap."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.told = []

    def hear(self, gap):
        self.told.append(gap)
        self.left -= 1
        if self.left >= 0:
            raise RuntimeError("Redis is not all there yet")

    async def hear_later(self, gap):
        await asyncio.sleep(0)
        self.hear(gap)


@pytest.mark.parametrize("name", ["hear", "hear_later"])
@pytest.mark.parametrize("role", ["on_gap", "hook"])
@pytest.mark.parametrize(("times", "called"), [(0, 1), (1, 2), (6, 7), (99, 7)])
def test_who_fails_when_he_is_told_of_a_gap_is_told_again_for_a_while(name, role, times, called, caplog):
    app = Failing(times)
    hear = getattr(app, name)

    async def main():
        manager, _ = await told_of_a_gap(LocalCluster(1), *((hear, None) if role == "on_gap" else (None, hear)))
        await asyncio.sleep(60)
        assert manager.status.connected
        await manager.stop()

    run_clocked(main)
    assert len(app.told) == called
    assert len(set(map(id, app.told))) == 1, "of the same gap"
    failures = [record for record in caplog.records if record.exc_info]
    assert [record.levelname for record in failures] == ["WARNING"] * min(times, 6) + ["ERROR"] * (times > 6)
    assert all("Failing.hear" in record.getMessage() for record in failures)


async def test_a_manager_that_stops_waits_for_nobody_who_is_to_be_told_again(cluster):
    app = Failing(99)
    manager, _ = await told_of_a_gap(cluster, app.hear)
    await manager.stop()
    assert len(app.told) == 1
