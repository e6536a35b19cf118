"""What an app does with a user, whatever connections that user has: `manager.users`."""

from fastapi_rooms.domain.envelope import room_target, user_target
from fastapi_rooms.domain.move import Move
from fastapi_rooms.engine.many_nodes import ManyNodes
from fastapi_rooms.engine.membership import Membership
from fastapi_rooms.tasks import HomeLoop


class Users:
    """Has all connections of a user join and leave rooms, on all nodes.

    For decisions of the app: `authorize_join` is not asked. They hold for the connections that there are; who connects
    later comes as its route lets it in. A node that is cut off from the others meanwhile does not hear of it, and
    reports a gap when it is back: who must not stay is closed by `close_user`, which is kept for such nodes.

    **Order**: a move takes its place at the call among what this node sends to that user. What is sent to the room has
    an order of its own on other nodes.

    Args:
        membership: Who moves the connections of this node.
        nodes: How this node stands to the others.
        home: The event loop on which all of it happens.
    """

    def __init__(self, membership: Membership, nodes: ManyNodes, home: HomeLoop) -> None:
        self._membership = membership
        self._nodes = nodes
        self._home = home

    async def join_room(self, user_id: str, room: str) -> int:
        """Make all connections of a user members of a room; return how many of this node became one.

        On this node they hear the room when this returns; on others shortly after. A connection that is in
        `max_rooms_per_connection` rooms stays out, which is counted as a refusal and logged.

        Raises:
            InvalidName: A user or a room cannot be called that.
            BackendUnavailable: Other nodes were not told, or not for certain.
        """
        return await self._move(user_id, Move(room, joins=True))

    async def leave_room(self, user_id: str, room: str) -> int:
        """End all memberships of a user in a room; return how many of this node.

        A join, or a handshake, about which `authorize_join` is being asked meanwhile is none yet: let it know first.

        Raises:
            InvalidName: A user or a room cannot be called that.
            BackendUnavailable: Other nodes were not told, or not for certain.
        """
        return await self._move(user_id, Move(room, joins=False))

    async def _move(self, user_id: str, move: Move) -> int:
        self._home.check()
        target = user_target(user_id)
        room_target(move.room)  # which checks the name
        told = self._nodes.tell(target, move)  # which may raise, so that nobody has moved yet
        moved, heard = self._membership.move(user_id, move)
        await told
        if heard is not None:
            await heard
        return moved
