"""Numbers of a node in OpenTelemetry: the same as in its stats, for as long as it runs, and of nobody by name."""

import asyncio
import gc
import threading
import weakref
from dataclasses import fields, replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from engine.fakes import connected, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import metrics
from support import until

from fastapi_rooms import BackendStatus, ConnectionManager, DistributedWebSocketManager, RoomsSettings
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.telemetry import reporter as reporting
from fastapi_rooms.telemetry.catalogue import HISTOGRAMS, METRICS
from fastapi_rooms.testing import LocalCluster
from telemetry.conftest import meter_provider

FIRST = (("fastapi_rooms.manager", 0),)
SECOND = (("fastapi_rooms.manager", 1),)
STATUS = BackendStatus(
    connected=True, degraded_since=None, reconnects=101, gaps=102, undelivered=103, undecodable=104, probe_seconds=0.105
)
STATS = Stats(
    connections=1,
    users=2,
    rooms=3,
    closing=12,
    behind_seconds=13.5,
    queued_messages=4,
    queued_bytes=5,
    sent_messages=6,
    received_messages=7,
    dropped={"lost": 8, "invalid": 9},
    closed={"stalled": 10},
    refused=dict.fromkeys(Refusal, 0) | {"join": 11},
    is_draining=True,
    backend=STATUS,
)


def because(reason, manager=0):
    return (("fastapi_rooms.manager", manager), ("fastapi_rooms.reason", reason))


def expected(stats):
    """What the metrics of the first manager have to be."""
    every = dict(stats.refused)
    values = {
        "connections": stats.connections,
        "users": stats.users,
        "rooms": stats.rooms,
        "closing.connections": stats.closing,
        "behind.duration": stats.behind_seconds,
        "queued.messages": stats.queued_messages,
        "queued.size": stats.queued_bytes,
        "sent.messages": stats.sent_messages,
        "received.messages": stats.received_messages,
        "dropped.messages": stats.dropped,
        "closed.connections": stats.closed,
        "refusals": every,
        "draining": int(stats.is_draining),
    }
    if stats.backend is not None:
        values |= {
            "backend.connected": int(stats.backend.connected),
            "backend.probe.duration": stats.backend.probe_seconds,
            "backend.reconnects": stats.backend.reconnects,
            "backend.gaps": stats.backend.gaps,
            "backend.undelivered": stats.backend.undelivered,
            "backend.undecodable": stats.backend.undecodable,
        }
    return {
        f"fastapi_rooms.{name}": {because(reason): number for reason, number in value.items()}
        if isinstance(value, dict)
        else {FIRST: value}
        for name, value in values.items()
        if value is not None
    }


def without_histograms(points):
    return {name: of for name, of in points.items() if not name.startswith("fastapi_rooms.broadcast.")}


class Fixed:
    """A manager that is always doing the same."""

    def __init__(self, stats=STATS):
        self.answer = stats

    def stats(self):
        return self.answer


@pytest.fixture
async def manager(numbers):
    manager = ConnectionManager()
    await manager.start()
    yield manager
    await manager.stop()


def measure(manager):
    """Have a manager of a test measured, as a real one does in `start`."""
    from fastapi_rooms.telemetry.telemetry import start_telemetry

    return start_telemetry(manager.stats, None)


# What is told


def test_nothing_in_the_stats_is_forgotten():
    told = [metric.read(STATS) for metric in METRICS]
    flat = {one for value in told for one in (value.values() if isinstance(value, dict) else [value])}
    assert set(range(1, 13)) | {13.5, 101, 102, 103, 104, 0.105} <= flat
    assert len(fields(Stats)) == 14
    assert len(fields(BackendStatus)) == 7  # `degraded_since` is told by `connected`


@pytest.mark.parametrize(
    "stats",
    [
        STATS,
        replace(STATS, is_draining=False, backend=None),
        replace(STATS, backend=replace(STATUS, connected=False, degraded_since=datetime.now(UTC), probe_seconds=None)),
    ],
    ids=["all", "one node", "degraded"],
)
async def test_what_is_exported_is_what_the_stats_say(numbers, stats):
    fixed = Fixed(stats)
    telemetry = measure(fixed)
    assert numbers.points() == expected(stats)
    telemetry.stop(STATS)


async def test_a_manager_with_traffic(numbers, manager):
    settings = RoomsSettings(max_rooms_per_connection=1)
    await manager.stop()
    manager = ConnectionManager(settings)
    await manager.start()
    peers = [(await connected(manager, "kitchen", user))[0] for user in ("ann", "bob", "bob")]
    stuck, _ = await connected(manager, "hall")
    stuck.reads.clear()
    await manager.broadcast("hello")
    assert await texts(*peers) == [["hello"]] * 3
    await manager.send_to_user("bob", "bob alone")
    with pytest.raises(Exception, match="1 rooms"):
        await manager.join_room(peers[0].websocket, "hall")
    manager.disconnect(peers[0].websocket)
    stats = manager.stats()
    assert (stats.connections, stats.users, stats.rooms, stats.sent_messages) == (3, 1, 2, 6)
    assert stats.queued_messages
    assert without_histograms(numbers.points()) == expected(stats)
    stuck.reads.set()
    await manager.stop()


async def test_numbers_are_read_when_somebody_collects(numbers, manager):
    for count in (1, 2, 3):
        await connected(manager)
        assert numbers.points()["fastapi_rooms.connections"] == {FIRST: count}
        assert numbers.points()["fastapi_rooms.connections"] == {FIRST: count}


async def test_one_collection_takes_one_snapshot(numbers):
    class Counting(Fixed):
        taken = 0

        def stats(self):
            self.taken += 1
            return self.answer

    counting = Counting()
    telemetry = measure(counting)
    for number in (1, 2, 3):
        numbers.points()
        assert counting.taken == number
    telemetry.stop(STATS)


async def test_kinds_and_units_are_those_of_the_catalogue(numbers, manager):
    await manager.broadcast("to nobody")
    measured = numbers.metrics()
    for metric in METRICS:
        if metric.name in measured:  # not those of a backend
            assert (measured[metric.name].unit, measured[metric.name].description) == (metric.unit, metric.description)
            data = measured[metric.name].data
            kind = {True: "counter", False: "up-down counter", None: "gauge"}[getattr(data, "is_monotonic", None)]
            assert kind == metric.kind
    for histogram in HISTOGRAMS:
        assert (measured[histogram.name].unit, measured[histogram.name].description) == (
            histogram.unit,
            histogram.description,
        )
        (point,) = measured[histogram.name].data.data_points
        assert tuple(point.explicit_bounds) == histogram.boundaries
    known = {metric.name: metric.attributes for metric in (*METRICS, *HISTOGRAMS)}
    for name, metric in measured.items():
        assert {key for point in metric.data.data_points for key in point.attributes} == set(known[name])


# Broadcasts


def target(name, source="here", manager=0):
    return (("fastapi_rooms.manager", manager), ("fastapi_rooms.source", source), ("fastapi_rooms.target", name))


async def test_a_broadcast_is_recorded_with_its_size(numbers, manager):
    peers = [(await connected(manager, "kitchen", "ann"))[0] for _ in range(3)]
    await manager.broadcast_to_room("kitchen", "one", exclude=peers[0].websocket)
    await manager.broadcast_to_room("kitchen", "two")
    await manager.broadcast("three")
    await manager.send_to_user("ann", "four")
    await manager.send_to_user("nobody", "five")
    points = numbers.points()
    assert points["fastapi_rooms.broadcast.recipients"] == {
        target("room"): (2, 5),
        target("all"): (1, 3),
        target("user"): (2, 3),
    }
    durations = points["fastapi_rooms.broadcast.duration"]
    assert {key: count for key, (count, _) in durations.items()} == {
        target("room"): 2,
        target("all"): 1,
        target("user"): 2,
    }
    assert all(0 < seconds < 1 for _, seconds in durations.values())
    assert await texts(peers[0]) == [["two", "three", "four"]]


async def test_what_reaches_one_connection_or_closes_is_no_broadcast(numbers, manager):
    _, connection = await connected(manager, "kitchen", "ann")
    await connection.send("hello")
    await manager.send_personal(connection.connection_id, "hello")
    await manager.close_room("kitchen")
    assert "fastapi_rooms.broadcast.recipients" not in numbers.points()


async def test_it_is_recorded_on_each_node_that_hears_it(numbers):
    here, there = managers = [DistributedWebSocketManager(backend) for backend in LocalCluster()]
    for manager in managers:
        await manager.start()
    peer, _ = await connected(there, "kitchen")
    await here.broadcast_to_room("kitchen", "hello")
    await until(lambda: peer.texts)
    points = numbers.points()
    assert points["fastapi_rooms.broadcast.recipients"] == {
        target("room"): (1, 0),
        target("room", "other_node", manager=1): (1, 1),
    }
    assert points["fastapi_rooms.backend.connected"] == {FIRST: 1, SECOND: 1}
    for manager in managers:
        await manager.stop()


# Whose they are, and for how long


async def test_several_managers_of_a_process_have_numbers(numbers):
    one, other, third = (ConnectionManager() for _ in range(3))
    await one.start()
    await other.start()
    await connected(other)
    assert numbers.points()["fastapi_rooms.connections"] == {FIRST: 0, SECOND: 1}
    await one.stop()
    await third.start()
    await connected(third)
    await connected(third)
    assert numbers.points()["fastapi_rooms.connections"] == {FIRST: 2, SECOND: 1}
    await other.stop()
    await third.stop()


async def test_nothing_is_told_twice(numbers, caplog):
    for _ in range(3):
        manager = ConnectionManager()
        await manager.start()
        await manager.start()
        assert numbers.points()["fastapi_rooms.connections"] == {FIRST: 0}
        await manager.stop()
    assert not caplog.records  # the SDK complains about instruments that are made again


async def test_it_ends_with_the_manager_and_the_last_counts_are_told(numbers, manager):
    await connected(manager, "kitchen")
    await manager.broadcast("hello")
    await manager.stop()
    last = without_histograms(numbers.points())
    assert last == expected(manager.stats())
    assert (last["fastapi_rooms.connections"], last["fastapi_rooms.sent.messages"]) == ({FIRST: 0}, {FIRST: 1})
    for _ in range(2):
        assert without_histograms(numbers.points()) == {}
    await manager.start()
    assert numbers.points()["fastapi_rooms.sent.messages"] == {FIRST: 1}


async def test_a_stopped_manager_is_not_kept_alive(numbers):
    manager = ConnectionManager()
    await manager.start()
    await manager.stop()
    alive = weakref.ref(manager)
    del manager
    gc.collect()
    assert alive() is None
    assert numbers.points()["fastapi_rooms.connections"] == {FIRST: 0}


async def test_one_that_was_forgotten_running_is_not_kept_alive_either(numbers):
    manager = ConnectionManager()
    await manager.start()
    alive = weakref.ref(manager)
    del manager
    gc.collect()
    assert alive() is None
    assert numbers.points() == {}
    await (successor := ConnectionManager()).start()
    assert numbers.points()["fastapi_rooms.connections"] == {FIRST: 0}
    await successor.stop()


async def test_who_has_taken_over_a_number_keeps_it(numbers):
    """A collection on another thread may be about to forget the last one."""
    from fastapi_rooms.telemetry.instruments import current_instruments

    last, successor = Fixed(), Fixed()
    telemetry = measure(last)
    telemetry.stop(STATS)
    running = measure(successor)
    current_instruments()._forget(0, telemetry.reporter)
    assert numbers.points() == expected(STATS)
    running.stop(STATS)


async def test_each_provider_has_instruments_of_its_own(monkeypatch):
    one, other = meter_provider(), meter_provider()
    for numbers in (one, other, one):
        monkeypatch.setattr(metrics, "get_meter_provider", lambda numbers=numbers: numbers.provider)
        fixed = Fixed()
        telemetry = measure(fixed)
        assert numbers.points() == expected(STATS)
        telemetry.stop(STATS)
        numbers.points()
        assert one.points() == other.points() == {}
    for numbers in (one, other):
        numbers.provider.shutdown()


async def test_a_provider_that_is_gone_takes_its_instruments_along(monkeypatch):
    from fastapi_rooms.telemetry.instruments import _known

    def use_and_forget():
        numbers = meter_provider()
        monkeypatch.setattr(metrics, "get_meter_provider", lambda: numbers.provider)
        fixed = Fixed()
        measure(fixed).stop(STATS)
        gc.collect()  # those of other tests
        known = len(_known)
        numbers.provider.shutdown()
        monkeypatch.undo()
        return known

    known = use_and_forget()
    gc.collect()
    assert len(_known) == known - 1


# On whatever thread somebody collects


async def test_a_collection_on_another_thread_looks_on_the_loop(numbers):
    class Thread(Fixed):
        def stats(self):
            self.thread = threading.get_ident()
            return self.answer

    asked = Thread()
    telemetry = measure(asked)
    assert await asyncio.to_thread(numbers.points) == expected(STATS)
    assert asked.thread == threading.get_ident()
    telemetry.stop(STATS)
    assert await asyncio.to_thread(numbers.points) == expected(STATS)
    assert await asyncio.to_thread(numbers.points) == {}


async def test_connections_may_come_and_go_meanwhile(numbers, manager):
    async def collect():
        return await asyncio.to_thread(numbers.points)

    collecting = [asyncio.create_task(collect()) for _ in range(20)]
    while not all(task.done() for task in collecting):
        peer, _ = await connected(manager, uuid4().hex, uuid4().hex)
        await asyncio.sleep(0)
        manager.disconnect(peer.websocket)
    assert all("fastapi_rooms.connections" in task.result() for task in collecting)


async def test_a_blocked_loop_has_nothing_to_say(numbers, monkeypatch):
    monkeypatch.setattr(reporting, "SNAPSHOT_SECONDS", 0.05)
    fixed = Fixed()
    telemetry = measure(fixed)
    collected = []
    thread = threading.Thread(target=lambda: collected.append(numbers.points()))
    thread.start()
    thread.join()  # which blocks the loop
    assert collected == [{}]
    await asyncio.sleep(0)
    assert numbers.points() == expected(STATS)
    telemetry.stop(STATS)


def test_a_loop_that_was_closed_without_a_stop_has_nothing_to_say(numbers):
    kept = []

    async def die():
        manager = ConnectionManager()
        await manager.start()
        kept.append(manager)

    thread = threading.Thread(target=lambda: asyncio.run(die()))
    thread.start()
    thread.join()
    assert numbers.points() == {}

    async def live_again():
        await kept[0].start()
        assert numbers.points()["fastapi_rooms.connections"] == {FIRST: 0}
        await kept[0].stop()

    asyncio.run(live_again())


async def test_a_backend_that_fails_to_tell_fails_nobody_else(numbers, caplog):
    class Failing(Fixed):
        asked = 0

        def stats(self):
            self.asked += 1
            raise RuntimeError("no status today")

    failing, fixed = Failing(), Fixed()
    assert measure(failing)
    assert measure(fixed)
    points = await asyncio.to_thread(numbers.points)
    assert points["fastapi_rooms.connections"] == {SECOND: STATS.connections}
    assert await asyncio.to_thread(numbers.points) == points
    assert caplog.text.count("RuntimeError: no status today") == 1, "not for each metric, and not in each collection"
    assert failing.asked == 2, "once in each collection"


async def test_what_cannot_be_recorded_is_delivered(numbers, manager, monkeypatch, caplog):
    def fail(*_args):
        raise RuntimeError("no numbers today")

    monkeypatch.setattr(manager._parts.delivery.telemetry._instruments, "record", fail)
    peer, _ = await connected(manager, "kitchen")
    for _ in range(3):
        assert await manager.broadcast_to_room("kitchen", "hello") == 1
    assert await texts(peer) == [["hello"] * 3]
    assert caplog.text.count("RuntimeError: no numbers today") == 1


async def test_who_comes_while_somebody_collects_waits(numbers, manager):
    instruments = manager._parts.delivery.telemetry._instruments
    with instruments._lock:
        collecting = asyncio.create_task(asyncio.to_thread(numbers.points))
        done, _ = await asyncio.wait({collecting}, timeout=0.05)
        assert not done, "a reporter may be coming"
    assert "fastapi_rooms.connections" in await collecting


# Nobody by name

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=20)


@settings(max_examples=20, deadline=None)
@given(room=names, user=names, payload=names)
def test_no_room_and_no_user_is_ever_named(room, user, payload):
    names = [f"{uuid4().hex}{name}" for name in (room, user, payload)]
    with pytest.MonkeyPatch.context() as patch:
        numbers = meter_provider()
        patch.setattr(metrics, "get_meter_provider", lambda: numbers.provider)
        asyncio.run(_talk(*names))
        told = numbers.json()
        numbers.provider.shutdown()
    assert "fastapi_rooms.broadcast.recipients" in told
    assert not [name for name in names if name[:32] in told]


async def _talk(room, user, payload):
    here, there = managers = [DistributedWebSocketManager(backend) for backend in LocalCluster()]
    for manager in managers:
        await manager.start()
    peer, _ = await connected(there, room, user)
    await here.broadcast_to_room(room, payload)
    await here.send_to_user(user, payload)
    await here.broadcast(payload)
    await until(lambda: len(peer.texts) == 3)
    await here.close_user(user, reason=payload)
    for manager in managers:
        await manager.stop()


async def test_the_last_counts_are_not_lost_to_a_collection_that_gives_up_meanwhile(monkeypatch):
    class Manager:
        def stats(self):
            raise AssertionError("nobody comes to it")

    manager = Manager()
    reporter = reporting.Reporter(manager.stats)
    taking, gives_up = threading.Event(), threading.Event()

    def take(_stats):
        taking.set()
        assert gives_up.wait(10)

    monkeypatch.setattr(reporter, "_take", take)
    found = []
    collecting = threading.Thread(target=lambda: found.append(reporter.read("connections")))
    collecting.start()
    assert taking.wait(10)
    reporter.end("the last counts")
    gives_up.set()
    collecting.join()
    assert found == ["the last counts"]
    assert reporter.read("rooms") == "the last counts"
    assert reporter.read("connections") is None
