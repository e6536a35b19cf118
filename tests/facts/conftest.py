"""Facts about the libraries below: each test says what our code relies on, so that an upgrade fails with a sentence."""

import pytest


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    return request.param
