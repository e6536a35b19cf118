"""What a backend is. Small on purpose: `fastapi_rooms.testing.BackendConformance` says the rest in tests."""

from collections.abc import Awaitable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, Target, TargetKind


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


class Receiver(Protocol):
    """What a backend calls at its node, on the loop in which it was started. Neither call blocks or raises."""

    def receive(self, envelope: Envelope) -> None:
        """Take an envelope that another node published."""
        ...

    def missed(self, gap: Gap) -> None:
        """Take notice of a gap that is over."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Carries envelopes between nodes, each at most once, those of one node to one target in order.

    **Publish reaches every node that is subscribed except the one that published; the manager delivers locally.**

    While the broker is away it is *degraded*: `publish` fails, the awaitable of `subscribe` is ready at once, and when
    the broker is back everything that is still wanted is subscribed again, and a `Gap` reported. Neither a dead broker
    nor anything that arrives ever ends a backend.
    """

    @property
    def status(self) -> BackendStatus:
        """The state as far as this node knows; never asks."""
        ...

    async def start(self, node_id: str, receiver: Receiver, *, required: bool = False) -> None:
        """Connect, or begin degraded; returns within a deadline of the backend's own. Idempotent.

        Raises:
            BackendUnavailable: It is `required`, and not connected by then. Nothing is left running.
        """
        ...

    async def stop(self) -> None:
        """Wait for publishes under way, then end everything. May be started again. Idempotent."""
        ...

    def publish(self, envelope: Envelope) -> Awaitable[object]:
        """Send an envelope to the nodes subscribed to its target; it takes its place in the order at the call.

        A target of kind CONNECTION reaches those subscribed to everybody. The awaitable raises `BackendUnavailable` if
        it failed or was not confirmed in time; it is never sent again. Cancelling it does not take the envelope back.
        """
        ...

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        """Want these from now on. Idempotent.

        The awaitable is ready when the broker has confirmed them all, or when the backend is degraded. Cancelling it
        changes nothing of what is wanted.
        """
        ...

    def unsubscribe(self, targets: Collection[Target]) -> None:
        """Stop wanting these from now on; the broker is told soon. Idempotent."""
        ...
