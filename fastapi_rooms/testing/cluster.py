"""Many nodes in one process."""

from collections.abc import Iterator

from fastapi_rooms.backends.memory import Hub, MemoryBackend
from fastapi_rooms.domain.errors import ConfigurationError


class LocalCluster:
    """The backends of many nodes in one process: to test an app on two nodes without Redis or Docker.

    ```python
    cluster = LocalCluster()
    here, there = (make_app(RoomsExtension(backend)) for backend in cluster)
    with TestClient(here) as one, TestClient(there) as two:
        with one.websocket_connect("/ws/kitchen") as ann, two.websocket_connect("/ws/kitchen") as bob:
            ann.send_text("hello")
            assert bob.receive_text() == "hello"
            cluster.cut(1)
    ```

    Nodes may run on event loops and threads of their own; all methods may be called from any thread.

    Args:
        nodes: How many.

    Attributes:
        backends: One for each node: give it to `RoomsExtension` or `DistributedWebSocketManager` in place of a URL.
            Iterating over the cluster gives the same.

    Raises:
        ConfigurationError: There are no nodes.
    """

    def __init__(self, nodes: int = 2) -> None:
        if nodes < 1:
            raise ConfigurationError(f"a cluster of {nodes} nodes cannot be: write LocalCluster(2)")
        self._hub = Hub()
        self.backends = tuple(MemoryBackend(self._hub) for _ in range(nodes))

    def __repr__(self) -> str:
        connected = sum(backend.status.connected for backend in self.backends)
        return f"<LocalCluster nodes={len(self.backends)} connected={connected}>"

    def __iter__(self) -> Iterator[MemoryBackend]:
        return iter(self.backends)

    def cut(self, index: int) -> None:
        """Cut a node off from the others, at once; it knows, and is degraded. Idempotent.

        What it publishes raises `BackendUnavailable`, what the others publish does not reach it. Before it is started,
        it starts degraded, or not at all with `required=True`.

        Raises:
            ConfigurationError: There is no such node.
        """
        self._hub.cut(self._backend(index))

    def restore(self, index: int) -> None:
        """Let a node reach and hear the others again, at once; it reports a gap. Idempotent.

        Raises:
            ConfigurationError: There is no such node.
        """
        self._hub.restore(self._backend(index))

    def _backend(self, index: int) -> MemoryBackend:
        if not 0 <= index < len(self.backends):
            raise ConfigurationError(f"there is no node {index}: nodes are counted from 0 to {len(self.backends) - 1}")
        return self.backends[index]
