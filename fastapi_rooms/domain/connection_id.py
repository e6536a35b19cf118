"""What the id of a connection looks like, for those who have nothing of it but a str."""

import re
from collections.abc import Iterable

from fastapi_rooms.domain.errors import ConfigurationError

_SHAPE = re.compile(r"[0-9a-f]{32}")


def check_connection_id(text: str) -> str:
    """Return a `connection_id` that can be one.

    Raises:
        ConfigurationError: It cannot, as that of a user.
    """
    is_text: bool = isinstance(text, str)  # asked at run time, too: other ids are easily passed
    if is_text and _SHAPE.fullmatch(text):
        return text
    raise ConfigurationError(
        f"{text!r:.60} is no connection_id, which has 32 hexadecimal digits: take `connection.connection_id`. All "
        "connections of a user are reached by send_to_user and close_user"
    )


def check_connection_ids(excluded: str | Iterable[str]) -> frozenset[str]:
    """Return the `connection_id`s of one or many who are left out.

    Raises:
        ConfigurationError: One of them cannot be one.
    """
    some = (excluded,) if isinstance(excluded, str) else excluded
    return frozenset(map(check_connection_id, some))
