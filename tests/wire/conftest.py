"""A real server per loop. The wire is the one that uvicorn gets by itself."""

import pytest
from support import live, until
from wire_app import Stage


@pytest.fixture(params=["asyncio", "uvloop"], scope="module")
def loop(request):
    return request.param


@pytest.fixture(scope="module")
def shared(loop):
    """An app and its server, which sends pings all the time. One per module, since starting it takes a while."""
    stage = Stage(outbox_messages=1_000_000, outbox_bytes=1 << 30, send_timeout=30)
    with live(stage.app, loop, ws_ping_interval=0.01) as server:
        yield stage, server


@pytest.fixture
async def scene(shared):
    """The same, with nobody there."""
    stage, server = shared
    await until(lambda: not stage.manager.active_connections)
    stage.sockets.clear()
    return stage, server
