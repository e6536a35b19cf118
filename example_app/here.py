"""This node: the tabs that it serves, who they are, and what it tells them alone.

A manager knows the members on its own node; who is in a room on all nodes nobody knows yet. So what the page shows of
people and rooms is about one node, it says so where there are several, and it goes to the tabs of this node only.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from example_app.identity import User
from example_app.messages import Missed, Node, ToPage
from fastapi_rooms import Connection, ConnectionManager, DistributedWebSocketManager, Gap

LOOK_SECONDS = 0.25
"""How often the node looks whether it reaches the others; looking asks nobody."""


@dataclass
class Here:
    """What the demo knows of its own node."""

    manager: ConnectionManager
    tabs: set[Connection] = field(default_factory=set)

    @property
    def node(self) -> Node | None:
        """Which of many nodes this is, and whether it reaches the others; None where one process is all."""
        if not isinstance(self.manager, DistributedWebSocketManager):
            return None
        return Node(name=self.manager.node_id[:4], reaches_others=self.manager.status.connected)

    @property
    def rooms(self) -> dict[str, int]:
        """The rooms with members on this node, and how many users there are in each."""
        return {room: len(self.users_in(room)) for room in self.manager.active_rooms}

    def users_in(self, room: str) -> list[User]:
        """Return who is in a room: each user once, however many tabs they have open."""
        users = {member.user_id: user_of(member) for member in self.manager.get_room_members(room)}
        return list(users.values())

    def is_taken(self, name: str) -> bool:
        """Return whether somebody in a room of this node has that name. Others may have it: it proves nothing."""
        users = (user for room in self.manager.active_rooms for user in self.users_in(room))
        return any(user.name.casefold() == name.casefold() for user in users)

    async def tell(self, message: ToPage, tabs: Collection[Connection] | None = None) -> None:
        """Send to tabs of this node, all if none are named. Neither waits for other nodes nor tells them."""
        for tab in list(self.tabs if tabs is None else tabs):
            await self.manager.send_personal(tab, message)

    async def tell_missed(self, gap: Gap) -> None:
        """Tell each tab what it may have missed, so that nobody takes silence for an answer."""
        for tab in list(self.tabs):
            missed = Missed(
                rooms=sorted(tab.rooms & gap.rooms),
                direct=tab.user_id in gap.users,
                since=gap.since,
                until=gap.until,
            )
            await self.tell(missed, [tab])

    async def watch(self) -> None:
        """Tell the tabs when this node stops reaching the others, and when it reaches them again."""
        told = self.node
        while told is not None:
            await asyncio.sleep(LOOK_SECONDS)
            if (now := self.node) is not None and now != told:
                told = now
                await self.tell(now)


def user_of(connection: Connection) -> User:
    user: User = connection.metadata["user"]
    return user


async def get_here(connection: HTTPConnection) -> Here:
    here: Here = connection.app.state.here
    return here


HereDep = Annotated[Here, Depends(get_here)]
