from collections.abc import Awaitable, Collection

from fastapi_rooms import Backend, BackendStatus
from fastapi_rooms.backends.contract import Receiver
from fastapi_rooms.domain.envelope import Envelope, Target


class CountedBackend:
    """Counts what a node publishes, and leaves the work to another backend."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.published_bytes = 0

    @property
    def status(self) -> BackendStatus:
        return self.inner.status

    async def start(
        self,
        node_id: str,
        receiver: Receiver,
        *,
        required: bool = False,
    ) -> None:
        await self.inner.start(node_id, receiver, required=required)

    async def stop(self) -> None:
        await self.inner.stop()

    def publish(self, envelope: Envelope) -> Awaitable[object]:
        self.published_bytes += len(envelope.encode())
        return self.inner.publish(envelope)

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        return self.inner.subscribe(targets)

    def unsubscribe(self, targets: Collection[Target]) -> None:
        self.inner.unsubscribe(targets)
