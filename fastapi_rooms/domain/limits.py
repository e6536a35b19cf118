"""What a route may have in place of the limits of its node."""

from collections.abc import Mapping
from typing import Any, TypedDict

from pydantic import ValidationError

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.settings import Overflow, RoomsSettings


class Limits(TypedDict, total=False):
    """Limits of one route, for `ws_route(limits=...)`. What is there counts in place of the same in `RoomsSettings`."""

    outbox_messages: int
    """How many messages may wait for a connection that does not take them."""
    outbox_bytes: int
    """How many bytes may wait for a connection that does not take them."""
    overflow: Overflow
    """What is lost when an outbox is full."""
    messages_per_second: float | None
    """How many messages a second a client may send in the long run."""
    messages_burst: int
    """How many messages a client may send at once."""
    max_message_bytes: int | None
    """The largest message a client may send."""


class RouteLimits:
    """The limits of a route, checked.

    Args:
        limits: What the app wrote.

    Raises:
        ConfigurationError: There is no such limit, or it cannot have that value.
    """

    def __init__(self, limits: Limits) -> None:
        if not isinstance(limits, Mapping):
            raise ConfigurationError(
                f"limits takes a dict, not {type(limits).__name__}: write limits=Limits(overflow=Overflow.DROP_OLDEST)"
            )
        for name in limits:
            if name not in Limits.__annotations__:
                raise ConfigurationError(
                    f"a route has no limit {name!r} of its own, but {', '.join(sorted(Limits.__annotations__))}: give "
                    "the others to RoomsSettings"
                )
        try:
            checked = RoomsSettings(**limits)
        except ValidationError as error:
            wrong = ", ".join(f"{fault['loc'][0]}={fault['input']!r}: {fault['msg']}" for fault in error.errors())
            raise ConfigurationError(f"limits of a route: {wrong}") from error
        self._limits: dict[str, Any] = {name: getattr(checked, name) for name in limits}

    def over(self, settings: RoomsSettings) -> RoomsSettings:
        """Return the settings of a node as they are for this route."""
        return settings.model_copy(update=self._limits)
