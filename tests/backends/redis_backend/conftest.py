"""Brokers that the tests of this folder share, and nodes of which nothing is there but the backend."""

import contextlib
import functools

import pytest
from brokers.server import Broker, running


@pytest.fixture(scope="session")
def _brokers(tmp_path_factory):
    with contextlib.ExitStack() as ends:

        @functools.cache
        def start(kind):
            broker = Broker(kind, tmp_path_factory.mktemp("shared"))
            ends.enter_context(running(broker))
            return broker

        yield start


@pytest.fixture
def each_broker(broker_kind, _brokers):
    """A Redis and a Valkey that tests share: to use, not to break."""
    return _brokers(broker_kind)
