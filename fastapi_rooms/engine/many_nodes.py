"""What a manager of many nodes does in the middle of a connection's life, and knows of the others."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.envelope import Target
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.registry import Left


@dataclass(frozen=True, slots=True)
class ManyNodes:
    """How this node stands to the others."""

    follow: Callable[[Collection[Target]], Awaitable[None]]
    """Waits until this node hears what others send to rooms and users that have connections here."""
    want: Callable[[Target], Awaitable[object] | None]
    """Does the same from the call on; what it returns may be waited for."""
    unfollow: Callable[[Left | None], None]
    """Stops hearing about what has no connections here any more."""
    tell: Callable[[Target, Move], Awaitable[None]]
    """Has the others move the connections of a user, from the call on; what it returns waits until they were told."""
    recheck: Callable[[Connection], Awaitable[None]]
    """Looks again, when nothing is missed any more, whether a user may come in. Raises `HandshakeRefused` if not."""
    status: Callable[[], BackendStatus | None]
    """Whether this node hears the others and is heard; None: there are no others."""


async def _follow_nobody(targets: Collection[Target]) -> None:
    pass


def _want_nobody(target: Target) -> None:
    pass


def _unfollow_nobody(left: Left | None) -> None:
    pass


async def _tell_nobody(target: Target, move: Move) -> None:
    pass


async def _know_all(connection: Connection) -> None:
    pass


def _have_no_status() -> None:
    pass


ONE_NODE = ManyNodes(_follow_nobody, _want_nobody, _unfollow_nobody, _tell_nobody, _know_all, _have_no_status)
"""There are no others: nothing is missed."""
