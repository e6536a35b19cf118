"""What the id of a connection is, for those who have nothing of it but a str."""

import re
from collections.abc import Iterable
from typing import NewType

from fastapi_rooms.domain.errors import ConfigurationError

ConnectionId = NewType("ConnectionId", str)
"""The id of a connection, unique among all nodes: 32 hexadecimal digits. A type of its own, so that a type checker sees
where the id of a user is passed in its place; what came back from a client becomes one by `ConnectionId(text)`."""

_SHAPE = re.compile(r"[0-9a-f]{32}")

IN_ITS_PLACE = (
    "is no connection_id, which has 32 hexadecimal digits: take `connection.connection_id`. All connections of a user "
    "are reached by send_to_user and close_user, and left out by exclude_user"
)
"""What is said of something else."""


def could_be_id(text: str) -> bool:
    """Return whether a text has the shape of a `connection_id`."""
    return _SHAPE.fullmatch(text) is not None


def check_connection_id(text: str) -> ConnectionId:
    """Return a `connection_id` that can be one.

    Raises:
        ConfigurationError: It cannot, as that of a user.
    """
    is_text: bool = isinstance(text, str)  # asked at run time, too: other ids are easily passed
    if is_text and could_be_id(text):
        return ConnectionId(text)
    raise ConfigurationError(f"{text!r:.60} {IN_ITS_PLACE}")


def check_connection_ids(excluded: str | Iterable[str]) -> frozenset[ConnectionId]:
    """Return the `connection_id`s of one or many who are left out.

    Raises:
        ConfigurationError: One of them cannot be one.
    """
    some = (excluded,) if isinstance(excluded, str) else excluded
    return frozenset(map(check_connection_id, some))
