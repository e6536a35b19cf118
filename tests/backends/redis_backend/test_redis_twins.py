"""Processes that were copied: nodes that share an id, and publishers that are used on both sides of a fork."""

import asyncio
import logging
import subprocess
import sys

import pytest
from redis_nodes import ROOM, Node, running_nodes, some_settings
from support import until

from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.backends.redis.marks import is_probe, new_mark
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.domain.settings import RoomsSettings

FORKING = """
import os
import sys

from fastapi_rooms import RoomsSettings, SyncPublisher

publisher = SyncPublisher(sys.argv[1], settings=RoomsSettings(key_prefix=sys.argv[2]))
if sys.argv[3] == "used before":
    publisher.broadcast("before")
child = os.fork()
for _ in range(20):
    publisher.broadcast("child" if child == 0 else "parent")
publisher.close()
if child == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def said(caplog):
    return [record for record in caplog.records if "has the id of this node" in record.getMessage()]


async def test_two_nodes_with_one_id_notice_it_and_say_so_once_a_minute(each_broker, caplog):
    settings = some_settings(probe_interval=0.05)
    one, two = (Node(each_broker.url, ROOM, settings=settings) for _ in range(2))
    two.node_id = one.node_id
    for node in (one, two):
        await node.start(required=True)
        await node.settled()
    await one.say("nobody hears that")
    await until(lambda: len(said(caplog)) == 2, "each says it")
    heard = one.backend._topology._link.heard_since  # private: nobody else knows of single probes
    await until(lambda: one.backend._topology._link.heard_since > heard)
    await asyncio.sleep(0.2)
    assert len(said(caplog)) == 2
    assert all(record.levelno == logging.ERROR for record in said(caplog))
    text = said(caplog)[0].getMessage()
    assert one.node_id in text
    assert "start the manager in each process for itself" in text
    assert two.envelopes == []
    for node in (one, two):
        assert node.backend.status.connected
        assert node.backend.status.undecodable == 0
        await node.backend.stop()


async def test_a_node_that_is_started_again_or_reads_its_own_old_probes_is_no_twin(each_broker, caplog):
    async with running_nodes(each_broker.url, 1, ROOM, probe_interval=0.05) as (node,):
        own = node.backend._channels.of_node(node.node_id, 0)
        for _ in range(2):
            each_broker.call("PUBLISH", own, node.backend._mark + b"1")
            await asyncio.sleep(0.15)
            await node.backend.stop()
            await node.start(required=True)
        assert node.backend.status.undecodable == 0
    assert said(caplog) == []


def test_marks_differ_and_probes_are_known_by_their_looks():
    marks = {new_mark() for _ in range(100)}
    assert len(marks) == 100
    for mark in marks:
        assert is_probe(mark + b"1")
    for payload in (b"", b"1", mark, mark + b"x", b"x" + mark + b"1", mark + b"1" * 21, mark.upper() + b"x"):
        assert not is_probe(payload)


@pytest.mark.parametrize("when", ["used before", "never used before"])
async def test_a_publisher_works_on_both_sides_of_a_fork(each_broker, when):
    async with running_nodes(each_broker.url, 1, EVERYBODY) as (node,):
        command = [sys.executable, "-c", FORKING, each_broker.url, node.settings.key_prefix, when]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=30)
        await until(lambda: len(node.envelopes) >= 40)
        origins = {
            word: {one.origin for one in node.envelopes if one.content.payload == word.encode()}
            for word in ("parent", "child")
        }
        assert [len(found) for found in origins.values()] == [1, 1]
        assert origins["parent"] != origins["child"]
        assert node.heard.count("parent") == node.heard.count("child") == 20


async def test_what_comes_on_a_channel_that_nobody_wants_any_more_is_left_alone():
    backend = RedisBackend("redis://127.0.0.1:1", RoomsSettings())
    backend._own_channels = b"rooms:n:me:"  # as from the start on
    backend.on_message(b"rooms:r:left", b"no envelope")
    assert backend.status.undecodable == 0
