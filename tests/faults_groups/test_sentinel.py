"""A master that Sentinel watches, and replaces, with default settings."""

import asyncio
import time
from uuid import uuid4

import pytest
from brokers.groups import Sentinels
from faults_groups.nodes import LATE, nodes, speaking
from support import until

from fastapi_rooms.domain.envelope import room_target

ROOM = room_target("kitchen")


@pytest.fixture
def sentinels(broker_kind, tmp_path):
    with Sentinels(broker_kind, tmp_path).running() as made:
        yield made


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_the_new_master_is_followed(sentinels, fault):
    old, new = sentinels.master, sentinels.replica
    async with nodes(2, sentinels.url, uuid4().hex) as (speaker, listener):
        await listener.joins(ROOM)
        async with speaking(speaker, ROOM) as (said,):
            await said.is_heard_by(listener)
            getattr(old, fault)()
            begin = time.monotonic()
            await until(lambda: sentinels.master_port() == new.port, "the replica takes over", 20)
            print(fault, "taken over after", time.monotonic() - begin)
            await said.is_heard_by(listener, 20)
            print("heard after", time.monotonic() - begin, "slowest", said.slowest)
            await until(lambda: listener.connected and speaker.connected, "all is well")
            old.thaw() if fault == "freeze" else old.start()
            begin = time.monotonic()
            await until(lambda: old.client.info("replication")["role"] == "slave", "the old master gives in", 30)
            print("old gave in after", time.monotonic() - begin)
            await said.is_heard_by(listener)
            print(listener.backend.status, speaker.backend.status)
        await said.check(listener)
        print(listener.gaps)
        assert len(listener.gaps) == 1
