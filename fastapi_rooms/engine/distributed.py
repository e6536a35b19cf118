"""The manager of many nodes. Not there yet: until it is, asking for it fails at once and says so."""

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager


class DistributedWebSocketManager(ConnectionManager):
    """A `ConnectionManager` that reaches all nodes over Redis: announced, not built.

    Raises:
        ConfigurationError: Always.
    """

    def __init__(self, redis_url: str, *, settings: RoomsSettings | None = None) -> None:  # noqa: ARG002
        # The text does not repeat the URL, which may hold a password.
        raise ConfigurationError(
            "this version of fastapi-rooms works on one process and knows no Redis: use ConnectionManager() or "
            "RoomsExtension() without a URL, and one worker"
        )
