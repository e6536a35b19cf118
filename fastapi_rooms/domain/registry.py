"""Who is connected, in which rooms, as which user, on this node.

Synchronous and without I/O. The only writer of `Connection.rooms`. Costs grow with the rooms of the connection in hand,
never with the number of connections or rooms.
"""

from collections.abc import Collection
from typing import NamedTuple

from fastapi_rooms.domain.connection import Connection, Outbox
from fastapi_rooms.domain.envelope import Target, TargetKind
from fastapi_rooms.domain.tally import Tally

Members = dict[Connection, Outbox]
"""Connections, those who joined first in front, and their outboxes, so that a broadcast touches nothing else."""

_NOBODY: Members = {}


class Joined(NamedTuple):
    """What a join changed."""

    first: bool
    """The room opened on this node: nobody was in it before."""


class Left(NamedTuple):
    """What a leave or a removal changed."""

    rooms: tuple[str, ...]
    """The rooms that closed on this node: nobody is in them any more."""
    user: str | None
    """The user who has no connection left on this node, if so."""


class Registry:
    """Connections by id, room and user."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}
        self._rooms: dict[str, Members] = {}
        self._users: dict[str, Members] = {}
        self._addresses = Tally()  # from where how many sockets come, if that is limited
        self._address_of: dict[Connection, str] = {}  # those of the sockets that have not left

    def __len__(self) -> int:
        return len(self._connections)

    def __contains__(self, connection: Connection) -> bool:
        return connection.connection_id in self._connections

    def find(self, connection_id: str) -> Connection | None:
        """Return the connection with that id, if it is here."""
        return self._connections.get(connection_id)

    def all(self) -> Collection[Connection]:
        """Return everybody here: a live view, not to be kept across an await."""
        return self._connections.values()

    def rooms(self) -> Collection[str]:
        """Return the rooms with members here: a live view."""
        return self._rooms.keys()

    def members(self, room: str) -> Collection[Connection]:
        """Return the members of a room: a live view, empty if nobody is in it."""
        return self._rooms.get(room, _NOBODY).keys()

    def of_user(self, user_id: str) -> Collection[Connection]:
        """Return the connections of a user: a live view, empty if there are none."""
        return self._users.get(user_id, _NOBODY).keys()

    def outboxes(self, target: Target) -> Collection[Outbox]:
        """Return the outboxes of those whom a target means: mostly a live view."""
        match target.kind:
            case TargetKind.ROOM:
                return self._rooms.get(target.name, _NOBODY).values()
            case TargetKind.USER:
                return self._users.get(target.name, _NOBODY).values()
            case TargetKind.CONNECTION:
                connection = self._connections.get(target.name)
                return () if connection is None else (connection._outbox,)
            case TargetKind.ALL:  # pragma: no branch - there are no other kinds
                return [connection._outbox for connection in self._connections.values()]

    def users(self) -> Collection[str]:
        """Return the users with connections here: a live view."""
        return self._users.keys()

    def from_address(self, address: str) -> int:
        """Return how many connections were added with an address, less those that were released."""
        return self._addresses[address]

    def add(self, connection: Connection, address: str | None = None) -> bool:
        """Register a connection, and count it for its address; return whether its user had none here before."""
        self._connections[connection.connection_id] = connection
        if address is not None:
            self._address_of[connection] = address
            self._addresses.add(address)
        if connection.user_id is None:
            return False
        devices = self._users.setdefault(connection.user_id, {})
        devices[connection] = connection._outbox
        return len(devices) == 1

    def join(self, connection: Connection, room: str) -> Joined:
        """Make a registered connection a member. Joining twice changes nothing."""
        assert connection in self, "only registered connections join rooms"
        members = self._rooms.setdefault(room, {})
        first = not members
        members[connection] = connection._outbox
        connection._rooms.add(room)  # the registry owns this fact
        return Joined(first)

    def leave(self, connection: Connection, room: str) -> Left | None:
        """End a membership; None if there was none."""
        if connection not in self._rooms.get(room, _NOBODY):
            return None
        connection._rooms.discard(room)  # the registry owns this fact
        return Left((room,) if self._drop_member(connection, room) else (), None)

    def remove(self, connection: Connection) -> Left | None:
        """Forget a connection; None if it was not here. Its `rooms` stay as they were, so that they can be told.

        It counts for its address until `release`: who was closed and does not leave holds a socket all the same.
        """
        if self._connections.pop(connection.connection_id, None) is None:
            return None
        closed = tuple(room for room in connection.rooms if self._drop_member(connection, room))
        return Left(closed, self._drop_device(connection))

    def release(self, connection: Connection) -> None:
        """Count a connection for its address no more: its socket has left."""
        address = self._address_of.pop(connection, None)
        if address is not None:
            self._addresses.drop(address)

    def _drop_member(self, connection: Connection, room: str) -> bool:
        members = self._rooms[room]
        del members[connection]
        if members:
            return False
        del self._rooms[room]
        return True

    def _drop_device(self, connection: Connection) -> str | None:
        user_id = connection.user_id
        if user_id is None:
            return None
        devices = self._users[user_id]
        del devices[connection]
        if devices:
            return None
        del self._users[user_id]
        return user_id
