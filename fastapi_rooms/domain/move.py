"""What all connections of a user are told to do, wherever they are."""

from typing import NamedTuple


class Move(NamedTuple):
    """The connections of a user join a room, or leave it."""

    room: str
    joins: bool
    """False: they leave."""
