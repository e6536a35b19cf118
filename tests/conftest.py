"""Brokers for everybody: started once per session where nothing is broken, one of one's own where something is."""

import os

import pytest
from brokers.proxy import Proxy
from brokers.server import KINDS, Broker, binary, running


def _folder(tmp_path_factory):
    return tmp_path_factory.mktemp("broker")


def _need(kind):
    if binary(kind) is None:
        if os.environ.get("ROOMS_TEST_NEEDS_REDIS"):
            pytest.fail(f"{kind}-server is not installed")
        pytest.skip(f"{kind}-server is not installed")


@pytest.fixture(params=KINDS)
def broker_kind(request):
    """Redis and Valkey."""
    _need(request.param)
    return request.param


@pytest.fixture
def broker(broker_kind, tmp_path_factory):
    """A running server of the test's own, to break."""
    made = Broker(broker_kind, _folder(tmp_path_factory))
    with running(made):
        yield made


@pytest.fixture
def proxy(broker):
    """A proxy of the test's own in front of `broker`."""
    made = Proxy(broker.port)
    with made.running():
        yield made


@pytest.fixture(scope="session")
def _shared_broker(tmp_path_factory):
    made = Broker("valkey", _folder(tmp_path_factory))
    with running(made):
        yield made


@pytest.fixture
def shared_broker(_shared_broker):
    """A running Valkey that tests share: to use, not to break. Use a `key_prefix` of your own."""
    return _shared_broker
