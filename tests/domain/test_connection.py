"""A connection as a value: identity, views, and what it says before it is connected."""

from datetime import UTC, timedelta

import pytest

from fastapi_rooms.domain.connection import Connection, Phase
from fastapi_rooms.domain.errors import NotConnectedError
from fastapi_rooms.domain.messages import MessageType
from fastapi_rooms.domain.registry import Registry


class Owner:
    """A manager that notes what it is asked."""

    def __init__(self):
        self.asked = []

    async def close(self, *args):
        self.asked.append(("close", *args))

    @property
    def _sessions(self):
        return self

    async def send(self, *args):
        self.asked.append(("send", *args))
        return True

    def messages(self, *args):
        self.asked.append(("messages", *args))
        return iter(())

    def start_task(self, *args):
        self.asked.append(("start_task", *args))


@pytest.fixture
def connection():
    return Connection(None)


@pytest.fixture
def owner(connection):
    connection._owner = Owner()
    return connection._owner


def test_connection_ids_are_unique():
    assert len({Connection(None).connection_id for _ in range(1000)}) == 1000


def test_a_new_connection_is_nobody_nowhere(connection):
    assert connection.user_id is None
    assert connection.rooms == set()
    assert connection.metadata == {}
    assert not connection.is_open


@pytest.mark.parametrize("name", ["connection_id", "user_id"])
def test_the_identity_can_be_read_but_not_written(connection, name):
    with pytest.raises(AttributeError):
        setattr(connection, name, "somebody else")


def test_the_time_of_connecting_has_its_zone(connection):
    assert connection.connected_at.tzinfo is UTC
    assert connection.connected_at.utcoffset() == timedelta(0)


def test_connections_are_hashable_by_identity(connection):
    other = Connection(None)
    other._connection_id = connection.connection_id
    assert connection != other
    assert len({connection, other, connection}) == 2


def test_the_rooms_can_be_read_but_not_written(connection):
    connection._outbox = object()
    registry = Registry()
    registry.add(connection)
    registry.join(connection, "a")
    rooms = connection.rooms
    assert not hasattr(rooms, "add")
    with pytest.raises(AttributeError):
        connection.rooms = {"b"}
    registry.join(connection, "b")
    assert (rooms, connection.rooms) == ({"a"}, {"a", "b"})


@pytest.mark.parametrize("phase", Phase)
def test_a_connection_is_open_in_one_phase_only(connection, phase):
    connection._phase = phase
    assert connection.is_open is (phase is Phase.OPEN)


def test_the_repr_shows_identity_and_counts_but_no_metadata(connection):
    connection._outbox = object()
    registry = Registry()
    connection.metadata["token"] = "hunter2"
    assert repr(connection) == f"<Connection {connection.connection_id} new rooms=0>"
    connection._user_id = "ann"
    registry.add(connection)
    registry.join(connection, "secret room")
    assert repr(connection) == f"<Connection {connection.connection_id} user='ann' new rooms=1>"


async def test_before_accept_it_can_neither_send_nor_close_nor_receive(connection):
    with pytest.raises(NotConnectedError, match="not accepted yet"):
        await connection.send("hi")
    with pytest.raises(NotConnectedError, match="not accepted yet"):
        await connection.close()
    with pytest.raises(NotConnectedError, match=r"call manager\.connect\(websocket\) first"):
        connection.messages(str)


async def test_what_it_is_asked_it_asks_its_manager(connection, owner):
    assert await connection.send("hi", MessageType.TEXT) is True
    await connection.close(4000, "bye")
    connection.messages(str)
    assert owner.asked == [
        ("send", connection, "hi", MessageType.TEXT),
        ("close", connection, 4000, "bye"),
        ("messages", connection, str),
    ]


async def test_the_short_forms_have_the_usual_defaults(connection, owner):
    await connection.send({"a": 1})
    await connection.close()
    assert owner.asked == [("send", connection, {"a": 1}, None), ("close", connection, 1000, "")]


def test_in_logs_a_user_is_escaped_and_cut():
    connection = Connection(None)
    connection._user_id = "ann\n" + "x" * 250
    shown = repr(connection)
    assert "\n" not in shown
    assert r"user='ann\nxx" in shown
    assert len(shown) < 160
