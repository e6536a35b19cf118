"""The stage, the two wires and the two loops, and what the operator's log says."""

import contextlib
import functools

import pytest
from stage import Stage

from fastapi_rooms import RoomsExtension, RoomsSettings


@pytest.fixture(scope="session")
def stages():
    with contextlib.ExitStack() as ends:

        @functools.cache
        def stage(loop: str) -> Stage:
            made = Stage(loop)
            ends.callback(made.server.stop)
            return made

        yield stage


@pytest.fixture(params=["auto", "asgi"])
def wire(request):
    return request.param


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    return request.param


@pytest.fixture
def stage(request, stages):
    """The stage on the test's `loop`, or on asyncio's if it does not ask for one."""
    return stages(request.getfixturevalue("loop") if "loop" in request.fixturenames else "asyncio")


@pytest.fixture
def rooms(request):
    """An extension with the test's `wire`, or the default one."""
    wire = request.getfixturevalue("wire") if "wire" in request.fixturenames else "auto"
    return RoomsExtension(settings=RoomsSettings(wire=wire))


@pytest.fixture
def tracebacks(caplog):
    """What an operator would find in the log: every record that carries a traceback."""

    def find() -> list[str]:
        return [
            caplog.handler.format(record)
            for record in caplog.records
            if record.exc_info or "Traceback" in record.getMessage()
        ]

    return find
