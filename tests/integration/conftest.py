"""The two wires and the two loops that everything is tried on."""

import pytest


@pytest.fixture(params=["auto", "asgi"])
def wire(request):
    return request.param


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    return request.param
