"""The contract of a backend, over a cluster of three. A node is cut off by taking its credentials away."""

from uuid import uuid4

import pytest

from fastapi_rooms import RoomsSettings
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.testing import BackendConformance


class TestContract(BackendConformance):
    @pytest.fixture(autouse=True)
    def _cluster(self, each_cluster):
        self.cluster = each_cluster
        self.settings = RoomsSettings(key_prefix=uuid4().hex)
        self.users = {}
        yield
        self.cluster.everywhere("FLUSHALL")  # others move slots, which must hold no keys
        for user in self.users.values():
            self.cluster.everywhere("ACL", "DELUSER", user)

    async def make_backend(self):
        user = uuid4().hex
        self.cluster.everywhere("ACL", "SETUSER", user, "on", ">secret", "+@all", "allchannels", "allkeys")
        backend = RedisBackend(self.cluster.url.replace("://", f"://{user}:secret@"), self.settings)
        self.users[backend] = user
        return backend

    async def cut(self, backend):
        self.cluster.everywhere("ACL", "SETUSER", self.users[backend], "off")
        self.cluster.everywhere("CLIENT", "KILL", "USER", self.users[backend])

    async def restore(self, backend):
        self.cluster.everywhere("ACL", "SETUSER", self.users[backend], "on")
