"""A manager of which nothing is left at the end."""

import asyncio

import pytest

from fastapi_rooms.engine.manager import ConnectionManager


@pytest.fixture
async def manager():
    manager = ConnectionManager()
    yield manager
    await manager.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
