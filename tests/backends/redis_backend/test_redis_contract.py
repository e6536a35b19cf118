"""The contract of a backend, on a real Redis and a real Valkey, each node behind a network of its own."""

import contextlib
from typing import ClassVar
from uuid import uuid4

import pytest
from brokers.proxy import Proxy

from fastapi_rooms import Backend, RoomsSettings
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.testing import BackendConformance


class OverRedis(BackendConformance):
    options: ClassVar = {}

    @pytest.fixture(autouse=True)
    def _network(self, each_broker):
        self.broker = each_broker
        self.settings = RoomsSettings(key_prefix=uuid4().hex, **self.options)
        self.proxies = {}
        with contextlib.ExitStack() as self.ends:
            yield

    async def make_backend(self):
        proxy = self.ends.enter_context(Proxy(self.broker.port).running())
        backend = RedisBackend(proxy.url, self.settings)
        self.proxies[backend] = proxy
        return backend

    async def cut(self, backend):
        self.proxies[backend].cut()

    async def restore(self, backend):
        self.proxies[backend].restore()


class TestContract(OverRedis):
    """With the settings that everybody has."""


class TestContractOfTheHurried(OverRedis):
    """With deadlines that are reached at once."""

    options: ClassVar = {"publish_timeout": 1.0, "probe_interval": 0.05}


def test_it_is_a_backend():
    assert isinstance(RedisBackend("redis://localhost"), Backend)
