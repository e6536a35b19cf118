"""Clusters that tests share: formed once per session and kind. What breaks one mends it."""

import contextlib
import functools

import pytest
from brokers.groups import Cluster, Sentinels


@pytest.fixture(scope="session")
def _clusters(tmp_path_factory):
    with contextlib.ExitStack() as ends:

        @functools.cache
        def form(kind, **options):
            return ends.enter_context(Cluster(kind, tmp_path_factory.mktemp("cluster"), **options).running())

        yield form


@pytest.fixture
def cluster(_clusters):
    """A Valkey cluster of three."""
    return _clusters("valkey")


@pytest.fixture
def each_cluster(broker_kind, _clusters):
    """A Redis cluster and a Valkey cluster of three."""
    return _clusters(broker_kind)


@pytest.fixture
def replicated_cluster(broker_kind, _clusters):
    """A Redis cluster and a Valkey cluster of three with a replica each."""
    return _clusters(broker_kind, replicas=True)


@pytest.fixture(scope="session")
def shared_sentinels(tmp_path_factory):
    """A Valkey master that Sentinel watches: to use, not to break."""
    with Sentinels("valkey", tmp_path_factory.mktemp("sentinels")).running() as made:
        yield made
