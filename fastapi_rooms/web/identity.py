"""Who a client is, and until when."""

from typing import NamedTuple

from fastapi_rooms.engine.endings.timekeeper import Expiry


class Identity(NamedTuple):
    """What a `user_id` dependency may return in place of a str: the user, and when the credentials expire."""

    user_id: str | None
    """The identity, which may have many connections."""
    expires_at: Expiry | None = None
    """When the connection is closed with 4401, unless it is refreshed: a `datetime` with its zone, or seconds since the
    epoch, as `exp` of a JWT."""
