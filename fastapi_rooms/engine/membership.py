"""Who joins and leaves rooms, when the connection is there already."""

import logging
from collections.abc import Awaitable

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.envelope import room_target
from fastapi_rooms.domain.errors import TooManyRooms
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.engine.admission.admission import Admission
from fastapi_rooms.engine.hooks import Announcer, Hooks
from fastapi_rooms.engine.many_nodes import ManyNodes

logger = logging.getLogger("fastapi_rooms")


class Membership:
    """Asks whether somebody may, lets the registry do it, and tells the app and the other nodes.

    Args:
        registry: Who is in which room.
        admission: Who may.
        hooks: What the app wants to be told.
        announcer: Who tells it.
        nodes: How this node stands to the others.
    """

    def __init__(
        self, registry: Registry, admission: Admission, hooks: Hooks, announcer: Announcer, nodes: ManyNodes
    ) -> None:
        self._registry = registry
        self._admission = admission
        self._hooks = hooks
        self._announcer = announcer
        self._nodes = nodes

    async def join(self, connection: Connection | None, room: str, *, authorize: bool) -> bool:
        """Make a connection a member; False if it is unknown, or has ended while the app was asked.

        Raises:
            JoinRefused: The app said no.
            TooManyRooms: It is in as many rooms as it may be.
            InvalidName: A room cannot be called that.
        """
        self._admission.check_room_name(connection, room)
        target = room_target(room)
        if connection is not None and authorize:
            await self._admission.check_join(connection, room)
        if connection is None or connection not in self._registry:
            return False
        self._admission.check_room_limit(connection, room)
        self._add(connection, room)
        await self._nodes.follow((target,))
        return True

    def move(self, user_id: str, move: Move) -> tuple[int, Awaitable[object] | None]:
        """Have all connections of a user here join or leave a room.

        Nobody is asked, since the app has decided. Who is in as many rooms as it may be stays out, and that is counted.

        Returns:
            How many did, and what may be waited for until they hear the other nodes.
        """
        user = list(self._registry.of_user(user_id))
        if not move.joins:
            return sum(self.leave(connection, move.room) for connection in user), None
        joined = sum(self._enter(connection, move.room) for connection in user)
        are_in = any(move.room in connection._rooms for connection in user)  # who was before may not hear yet
        return joined, self._nodes.want(room_target(move.room)) if are_in else None

    def leave(self, connection: Connection | None, room: str) -> bool:
        """End a membership; False if there was none."""
        left = None if connection is None else self._registry.leave(connection, room)
        if connection is None or left is None:
            return False
        if connection._is_announced:
            self._announcer.tell(self._hooks.left, connection, room)
        self._nodes.unfollow(left)
        return True

    def _enter(self, connection: Connection, room: str) -> bool:
        """Make a connection a member if it is none; return whether it became one."""
        if room in connection._rooms:
            return False
        try:
            self._admission.check_room_limit(connection, room)
        except TooManyRooms as error:
            logger.info("%r does not join: %s", connection, error)
            return False
        self._add(connection, room)
        return True

    def _add(self, connection: Connection, room: str) -> None:
        is_new = room not in connection._rooms
        self._registry.join(connection, room)
        if is_new and connection._is_announced:
            self._announcer.tell(self._hooks.joined, connection, room)
