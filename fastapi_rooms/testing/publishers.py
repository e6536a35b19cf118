"""Publishers that reach nobody and remember what they were asked for."""

import asyncio
from collections.abc import Collection

from fastapi_rooms.backends.contract import Receiver
from fastapi_rooms.backends.publications import Keep, Step
from fastapi_rooms.backends.redis.publisher import Publisher
from fastapi_rooms.backends.redis.sync_publisher import SyncPublisher
from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.envelope import Envelope, Target
from fastapi_rooms.domain.settings import RoomsSettings


class _Keeping:
    """A backend that keeps what is published."""

    status = BackendStatus(connected=True, degraded_since=None)

    def __init__(self, envelopes: list[Envelope]) -> None:
        self._envelopes = envelopes

    def __repr__(self) -> str:
        return f"{len(self._envelopes)} envelopes"

    async def start(self, node_id: str, receiver: Receiver, *, required: bool = False) -> None:
        """Do nothing: there is nothing to connect to."""

    async def stop(self) -> None:
        """Do nothing: nothing is under way."""

    async def publish(self, envelope: Envelope) -> None:
        self._envelopes.append(envelope)

    def subscribe(self, targets: Collection[Target]) -> asyncio.Future[None]:
        raise NotImplementedError("a publisher hears nothing")

    def unsubscribe(self, targets: Collection[Target]) -> None:
        raise NotImplementedError("a publisher hears nothing")


class RecordingPublisher(Publisher):
    """A `Publisher` that needs no broker: it checks and encodes as the real one does, and keeps the envelopes.

    ```python
    publisher = RecordingPublisher()
    await notify(publisher, "ann")
    [envelope] = publisher.envelopes
    assert (envelope.target.name, envelope.content.payload) == ("ann", b'{"text":"hello"}')
    ```

    To reach the connections of an app in a test, give a real `Publisher` a backend of a `LocalCluster`.

    Args:
        settings: As for `Publisher`.

    Attributes:
        envelopes: What was published, in its order.
    """

    def __init__(self, *, settings: RoomsSettings | None = None) -> None:
        self.envelopes: list[Envelope] = []
        super().__init__(_Keeping(self.envelopes), settings=settings)


class RecordingSyncPublisher(SyncPublisher):
    """The same for code without an event loop: a `SyncPublisher` that needs no broker. Thread-safe.

    Args:
        settings: As for `SyncPublisher`.

    Attributes:
        envelopes: What was published, in its order.
    """

    def __init__(self, *, settings: RoomsSettings | None = None) -> None:
        super().__init__("redis://nowhere.invalid", settings=settings)
        self.envelopes: list[Envelope] = []

    def __repr__(self) -> str:
        return f"<RecordingSyncPublisher {len(self.envelopes)} envelopes>"

    def _do(self, step: Step) -> None:
        if not isinstance(step, Keep):
            self.envelopes.append(step)
