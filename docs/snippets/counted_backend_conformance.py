import pytest
from counted_backend import CountedBackend

from fastapi_rooms import Backend
from fastapi_rooms.testing import BackendConformance, LocalCluster


class TestCountedBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def start_broker(self) -> None:
        self.cluster = LocalCluster(9)  # a fresh broker for each test
        self.unused = iter(self.cluster)

    async def make_backend(self) -> Backend:
        return CountedBackend(next(self.unused))

    async def cut(self, backend: Backend) -> None:
        self.cluster.cut(self.index(backend))

    async def restore(self, backend: Backend) -> None:
        self.cluster.restore(self.index(backend))

    def index(self, backend: Backend) -> int:
        assert isinstance(backend, CountedBackend)
        return [*self.cluster].index(backend.inner)
