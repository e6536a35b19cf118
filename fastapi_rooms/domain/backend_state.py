"""What a node knows of its way to the other nodes."""

from dataclasses import dataclass, field
from datetime import datetime

from fastapi_rooms.domain.envelope import EVERYBODY, Target, TargetKind


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether a node hears the others and is heard; counts since the backend was made."""

    connected: bool
    """What this node publishes was heard by itself, all the way through the broker, and nothing has failed since."""
    degraded_since: datetime | None
    """Since when it is not connected, in UTC; None while it is."""
    reconnects: int = 0
    """How often a lost connection to the broker was made again."""
    gaps: int = 0
    """How often this node may have missed something."""
    undelivered: int = 0
    """Publishes that failed, or of which nobody knows whether they arrived."""
    undecodable: int = 0
    """What arrived and was no envelope: dropped."""
    probe_seconds: float | None = field(default=None, compare=False)
    """How long the last probe took from this node through the broker and back, in seconds; None before the first."""


@dataclass(frozen=True, slots=True, repr=False)
class Gap:
    """A time in which a node may have missed what other nodes published. Reported when it hears again."""

    since: datetime
    """When the node last knew that it heard, in UTC."""
    until: datetime
    """When it heard again, in UTC."""
    targets: frozenset[Target]
    """What may have missed something, of all that this node is subscribed to."""

    def __repr__(self) -> str:
        span = f"{self.since:%H:%M:%S.%f}-{self.until:%H:%M:%S.%f}"
        return f"<Gap {span} rooms={len(self.rooms)} users={len(self.users)}>"

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms among the targets."""
        return frozenset(target.name for target in self.targets if target.kind is TargetKind.ROOM)

    @property
    def users(self) -> frozenset[str]:
        """The users among the targets."""
        return frozenset(target.name for target in self.targets if target.kind is TargetKind.USER)

    @property
    def everybody(self) -> bool:
        """Whether a broadcast to everybody may have been missed."""
        return EVERYBODY in self.targets
