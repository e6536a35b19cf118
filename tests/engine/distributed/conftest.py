"""Managers of many nodes, of which nothing is left at the end."""

import pytest

from engine.fakes import is_empty, only_this_task
from engine.scripted import ScriptedBackend
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.testing import LocalCluster


@pytest.fixture
def cluster():
    return LocalCluster(3)


@pytest.fixture
async def nodes(cluster):
    """Three started managers, of which nothing is left at the end."""
    managers = [DistributedWebSocketManager(backend) for backend in cluster]
    for manager in managers:
        await manager.start(required=True)
    yield managers
    for manager in managers:
        await manager.stop()
    assert only_this_task()
    assert all(is_empty(manager) for manager in managers)


@pytest.fixture
def backend():
    return ScriptedBackend()


@pytest.fixture
async def manager(backend):
    """A started manager on a scripted backend."""
    manager = DistributedWebSocketManager(backend)
    await manager.start()
    yield manager
    backend.starts.set()
    backend.stops.set()
    backend.confirm()
    backend.answer()
    await manager.stop()
    assert only_this_task()
    assert backend.faults == []
