"""Who is where, against a model that is too simple to be wrong."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.envelope import EVERYBODY, connection_target, room_target, user_target
from fastapi_rooms.domain.registry import Joined, Left, Registry

ROOMS = st.sampled_from(["a", "b", "c"])
USERS = st.none() | st.sampled_from(["ann", "bob"])


class RegistryMachine(RuleBasedStateMachine):
    connections = Bundle("connections")

    def __init__(self):
        super().__init__()
        self.registry = Registry()
        self.here = []  # connections, first come first
        self.memberships = []  # (room, connection), first come first
        self.ended = {}  # connection → the rooms it was in at the end

    def members(self, room):
        return [connection for name, connection in self.memberships if name == room]

    def devices(self, user):
        return [connection for connection in self.here if connection.user_id == user]

    @rule(target=connections, user=USERS)
    def add(self, user):
        connection = Connection(None)
        connection._user_id = user
        connection._outbox = object()
        assert self.registry.add(connection) is (user is not None and not self.devices(user))
        self.here.append(connection)
        return connection

    @rule(connection=connections, room=ROOMS)
    def join(self, connection, room):
        if connection not in self.here:
            return
        assert self.registry.join(connection, room) == Joined(first=not self.members(room))
        if (room, connection) not in self.memberships:
            self.memberships.append((room, connection))

    @rule(connection=connections, room=ROOMS)
    def leave(self, connection, room):
        left = self.registry.leave(connection, room)
        if (room, connection) not in self.memberships:
            assert left is None
            return
        self.memberships.remove((room, connection))
        assert left == Left(rooms=() if self.members(room) else (room,), user=None)

    @rule(target=connections, connection=consumes(connections), again=st.booleans())
    def remove(self, connection, again):
        left = self.registry.remove(connection)
        if connection not in self.here:
            assert left is None
            return multiple()
        rooms = {name for name, member in self.memberships if member is connection}
        self.here.remove(connection)
        self.memberships = [(name, member) for name, member in self.memberships if member is not connection]
        self.ended[connection] = rooms
        assert sorted(left.rooms) == sorted(room for room in rooms if not self.members(room))
        user = connection.user_id
        assert left.user == (user if user is not None and not self.devices(user) else None)
        return connection if again else multiple()  # some are removed twice, joined and left afterwards

    @invariant()
    def the_registry_says_what_the_model_says(self):
        registry = self.registry
        assert list(registry.all()) == self.here
        assert len(registry) == len(self.here)
        assert set(registry.rooms()) == {name for name, _ in self.memberships}
        for room in ("a", "b", "c"):
            assert list(registry.members(room)) == self.members(room)
            assert list(registry.outboxes(room_target(room))) == [one._outbox for one in self.members(room)]
        for user in ("ann", "bob"):
            assert list(registry.of_user(user)) == self.devices(user)
            assert list(registry.outboxes(user_target(user))) == [one._outbox for one in self.devices(user)]
        assert list(registry.outboxes(EVERYBODY)) == [one._outbox for one in self.here]
        for connection in (*self.here, *self.ended):
            outboxes = [connection._outbox] if connection in self.here else []
            assert list(registry.outboxes(connection_target(connection.connection_id))) == outboxes

    @invariant()
    def every_connection_knows_its_rooms(self):
        for connection in self.here:
            assert connection in self.registry
            assert self.registry.find(connection.connection_id) is connection
            assert connection.rooms == {name for name, member in self.memberships if member is connection}

    @invariant()
    def the_ended_are_unknown_but_keep_their_rooms(self):
        for connection, rooms in self.ended.items():
            assert connection not in self.registry
            assert self.registry.find(connection.connection_id) is None
            assert connection.rooms == rooms

    def teardown(self):
        for connection in self.here:
            self.registry.remove(connection)
        assert not any(vars(self.registry).values())


RegistryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRegistryMachine = RegistryMachine.TestCase


def connected(registry, user=None, *rooms):
    connection = Connection(None)
    connection._user_id = user
    connection._outbox = object()
    registry.add(connection)
    for room in rooms:
        registry.join(connection, room)
    return connection


def test_a_thousand_rooms_that_were_left_leave_nothing_behind():
    registry = Registry()
    connection = connected(registry)
    for number in range(1000):
        registry.join(connection, f"room {number}")
        registry.leave(connection, f"room {number}")
    assert list(registry.rooms()) == []


def test_views_are_live():
    registry = Registry()
    rooms, everybody = registry.rooms(), registry.all()
    connection = connected(registry, "ann", "a")
    assert list(rooms) == ["a"]
    assert list(everybody) == [connection]


def test_asking_for_an_unknown_room_or_user_does_not_make_it():
    registry = Registry()
    assert not registry.members("nowhere")
    assert not registry.of_user("nobody")
    assert registry.find("nothing") is None
    assert list(registry.rooms()) == []


def test_joining_unregistered_is_a_mistake_of_ours_and_not_of_the_app():
    with pytest.raises(AssertionError, match="only registered connections join rooms"):
        Registry().join(Connection(None), "a")


def test_two_connections_with_one_user_are_told_apart():
    registry = Registry()
    first, second = connected(registry, "ann", "a"), connected(registry, "ann", "a")
    assert registry.remove(first) == Left((), None)
    assert registry.remove(second) == Left(("a",), "ann")
