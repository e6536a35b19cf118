"""What a server is told when it starts."""

from dataclasses import dataclass, field
from typing import Any

UNLIMITED: dict[str, Any] = {"messages_per_second": None}
"""Fields of `RoomsSettings` that every run has: whoever publishes here does so as fast as it can."""


@dataclass(frozen=True)
class Options:
    """How one run of a server differs from another."""

    deflate: bool = False
    """Whether it agrees to permessage-deflate."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of `RoomsSettings`; the other servers have none."""
    redis_url: str | None = None
    """Where the broker is; None: this node is all."""
