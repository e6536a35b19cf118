"""One snapshot of a node: what its numbers say, and what asking for them costs."""

import dataclasses
import gc
import sys
from collections import Counter

import pytest

from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.stats import Stats


class Waiting:
    """An outbox in which something waits, or nothing."""

    def __init__(self, connection, queued):
        self.connection = connection
        self._queued = queued

    def queued(self):
        return self._queued


def add(registry, *rooms, user_id=None, queued=None):
    connection = Connection(None)
    connection._user_id = user_id
    connection._outbox = Waiting(connection, queued)
    registry.add(connection)
    for room in rooms:
        registry.join(connection, room)
    return connection


def test_an_empty_node():
    stats = Stats.of(Registry(), Counters(), is_draining=False, backend=None)
    assert (stats.connections, stats.users, stats.rooms) == (0, 0, 0)
    assert (stats.queued_messages, stats.queued_bytes) == (0, 0)
    assert set(stats.dropped.values()) == set(stats.closed.values()) == {0}
    assert stats.refused == dict.fromkeys(Refusal, 0)
    assert stats.backend is None
    assert not stats.is_draining


def test_who_is_here_and_what_waits():
    registry = Registry()
    add(registry, "a", "b", user_id="ann", queued=(2, 30))
    add(registry, "a", user_id="ann")
    gone = add(registry, "c", user_id="bob", queued=(100, 1000))
    add(registry, queued=(1, 5))
    registry.remove(gone)
    backend = BackendStatus(connected=True, degraded_since=None)
    stats = Stats.of(registry, Counters(), is_draining=True, backend=backend)
    assert (stats.connections, stats.users, stats.rooms) == (3, 1, 2)
    assert (stats.queued_messages, stats.queued_bytes) == (3, 35)
    assert stats.is_draining
    assert stats.closing == 0
    closing = Stats.of(registry, Counters(), is_draining=True, backend=backend, closing=7)
    assert (closing.connections, closing.closing) == (3, 7)
    assert stats.backend is backend


COUNTED = {
    "sent_messages": lambda stats: stats.sent_messages,
    "received_messages": lambda stats: stats.received_messages,
    "lost_messages": lambda stats: stats.dropped["lost"],
    "rate_limited_messages": lambda stats: stats.dropped["rate_limited"],
    "invalid_messages": lambda stats: stats.dropped["invalid"],
    "oversized_messages": lambda stats: stats.dropped["oversized"],
    "unhandled_messages": lambda stats: stats.dropped["unhandled"],
    "slow_consumers": lambda stats: stats.closed["slow_consumer"],
    "aborted": lambda stats: stats.closed["stalled"],
    "full_inboxes": lambda stats: stats.closed["full_inbox"],
    "flooders": lambda stats: stats.closed["flooding"],
    "silent": lambda stats: stats.closed["silent"],
    "expired": lambda stats: stats.closed["expired"],
    "unreadable": lambda stats: stats.closed["invalid_data"],
    "outlived": lambda stats: stats.closed["lifetime"],
    "replaced": lambda stats: stats.closed["replaced"],
    "restarted": lambda stats: stats.closed["restart"],
    "closed_by_server": lambda stats: stats.closed["by_server"],
}


def test_everything_that_is_counted_is_shown_in_its_place():
    fields = [field.name for field in dataclasses.fields(Counters) if field.name != "refused"]
    counters = Counters(**{name: number for number, name in enumerate(fields, 1)})
    counters.refused.update({Refusal.JOIN: 3, Refusal.HTTP_ORIGIN: 1})
    stats = Stats.of(Registry(), counters, is_draining=False, backend=None)
    assert {name: COUNTED[name](stats) for name in fields} == {name: number for number, name in enumerate(fields, 1)}
    assert len(stats.dropped) + len(stats.closed) + 2 == len(fields)
    assert stats.refused == dict.fromkeys(Refusal, 0) | {"join": 3, "http_origin": 1}


def test_a_snapshot_stays_as_it_was():
    counters = Counters()
    stats = Stats.of(Registry(), counters, is_draining=False, backend=None)
    copy = counters.copy()
    counters.lost_messages += 1
    counters.refused[Refusal.JOIN] += 1
    assert stats.dropped["lost"] == copy.lost_messages == 0
    assert not any(stats.refused.values())
    assert copy.refused == Counter()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.connections = 7


def calls_of_a_snapshot(registry) -> int:
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    counters = Counters()
    gc.disable()  # a collection in between has callbacks of its own
    sys.setprofile(count)
    try:
        Stats.of(registry, counters, is_draining=False, backend=None)
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def test_it_asks_each_connection_once_however_many_rooms_there_are():
    few, many, crowded = Registry(), Registry(), Registry()
    for number in range(100):
        add(few, "lobby", user_id=str(number), queued=(1, 1))
        add(crowded, *map(str, range(number, number + 20)), user_id=str(number), queued=(1, 1))
    for number in range(1000):
        add(many, "lobby", user_id=str(number), queued=(1, 1))
    calls_of_a_snapshot(few)  # what is done once only is done by now
    base = calls_of_a_snapshot(few) - 100
    assert calls_of_a_snapshot(crowded) == base + 100
    assert calls_of_a_snapshot(many) == base + 1000
