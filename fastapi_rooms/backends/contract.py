"""What a backend is. Small on purpose: `fastapi_rooms.testing.BackendConformance` says the rest in tests."""

from collections.abc import Awaitable, Collection, Sequence
from typing import Protocol, runtime_checkable

from fastapi_rooms.domain.backend_state import BackendStatus, Gap
from fastapi_rooms.domain.envelope import Envelope, Target


class Receiver(Protocol):
    """What a backend calls at its node, on the loop on which it was started. Neither call blocks or raises."""

    def receive(self, envelope: Envelope) -> None:
        """Take an envelope that another node published."""
        ...

    def missed(self, gap: Gap) -> None:
        """Take notice of a gap that is over."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Carries envelopes between nodes, each at most once. Those of one node to one target arrive in order.

    **Publish reaches every node that is subscribed except the one that published; the manager delivers locally.**

    While the broker is away the backend is *degraded*: `publish` fails, and the awaitable of `subscribe` is ready at
    once. When the broker is back, everything that is still wanted is subscribed again, and a `Gap` is reported. Neither
    a dead broker nor anything that arrives ever ends a backend.
    """

    @property
    def status(self) -> BackendStatus:
        """The state as far as this node knows. Never asks the broker."""
        ...

    async def start(self, node_id: str, receiver: Receiver, *, required: bool = False) -> None:
        """Connect, or begin degraded. Returns within a deadline of the backend's own. Idempotent.

        Raises:
            BackendUnavailable: The broker is `required`, and was not there by the deadline. Nothing is left running.
        """
        ...

    async def stop(self) -> None:
        """Wait for publishes under way, then end everything. May be started again. Idempotent."""
        ...

    def publish(self, envelope: Envelope) -> Awaitable[object]:
        """Send an envelope to the nodes subscribed to its target. It takes its place in the order at the call.

        A target of kind CONNECTION reaches those subscribed to everybody. The awaitable raises `BackendUnavailable` if
        it failed or was not confirmed in time. No envelope is sent twice. Cancelling does not take it back.
        """
        ...

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        """Want these from now on: from the call, also if nobody awaits what it returns. Idempotent.

        The awaitable is ready when the broker has confirmed them all, or when the backend is degraded. Cancelling it
        does not change what is wanted.
        """
        ...

    def unsubscribe(self, targets: Collection[Target]) -> None:
        """Stop wanting these from now on; the broker is told soon. Idempotent."""
        ...


@runtime_checkable
class SupportsStore(Protocol):
    """What a backend may have beside that: small values that all nodes share for a time.

    Whoever needs it checks once whether the backend has it. It is no database: a broker that fails over or is emptied
    may lose what was put, and bring back what was taken.

    Nothing is tried a second time here. A caller may repeat `put` and `peek`, but not `take`: the lost answer may have
    been the value. Cancelling a call takes nothing back.

    All raise `BackendUnavailable` while the broker is away, and when it does not answer within the time that a publish
    has. Then nobody knows whether `put` or `take` has happened.
    """

    def put(self, key: str, value: bytes, seconds: float) -> Awaitable[object]:
        """Keep a value for a time, in seconds and more than 0, in place of the one that the key had.

        May be `async`. Better is a function that sends the value at the call and returns an awaitable, as `publish`
        does: nothing that is published afterwards overtakes the value then. What it returns may fail, the call never.
        """
        ...

    async def take(self, key: str) -> bytes | None:
        """Return a value and forget it; None if there is none.

        Of all who ask at once, on whatever node, one gets it.
        """
        ...

    async def peek(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of any number of keys, in their order, and leave them where they are.

        Asks in batches. Each batch has the time that a publish has. The values are no snapshot.
        """
        ...
