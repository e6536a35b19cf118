"""What real servers tell, and what is said of those that do not."""

import asyncio
import time

import pytest
import redis
from brokers.ports import free_port
from brokers.server import Broker

from fastapi_rooms import RoomsSettings
from fastapi_rooms.backends.memory import Hub, MemoryBackend
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.doctor import broker_facts
from fastapi_rooms.doctor.broker_facts import ask_broker
from fastapi_rooms.doctor.situation import OutputLimit, Unreachable

MIB = 1024 * 1024


def ask(url, **settings):
    return asyncio.run(ask_broker(RedisBackend(url, RoomsSettings(**settings))))


@pytest.fixture
def configured(broker_kind, tmp_path_factory):
    """A server with a configuration of the test's own."""
    made = Broker(broker_kind, tmp_path_factory.mktemp("doctor"))

    def start(*config):
        made.configure(*config)
        made.start()
        return made

    yield start
    made.kill()


def test_a_server_as_it_comes(configured):
    broker = configured()
    told = ask(broker.url)
    assert (told.is_told, told.is_local, told.has_password, told.is_cluster) == (True, True, False, False)
    assert told.product == broker.kind.title()
    assert int(told.version.split(".")[0]) >= 7
    assert told.compatible.startswith("7.")
    assert (told.role, told.foreign_keys, told.max_memory, told.eviction) == ("master", 0, 0, "noeviction")
    assert told.output_limit == OutputLimit(hard=32 * MIB, soft=8 * MIB, seconds=60)


def test_a_server_that_was_configured(configured):
    broker = configured(
        "maxmemory 100mb",
        "maxmemory-policy allkeys-lru",
        "client-output-buffer-limit pubsub 1mb 512kb 30",
        "requirepass secret",
        "unixsocket here.sock",
    )
    with redis.Redis(port=broker.port, password="secret") as somebody:
        somebody.mset({"one": 1, "other": 2})
    told = ask(f"redis://:secret@localhost:{broker.port}/3")
    assert (told.eviction, told.max_memory, told.foreign_keys) == ("allkeys-lru", 100 * MIB, 2)
    assert told.output_limit == OutputLimit(hard=MIB, soft=MIB // 2, seconds=30)
    assert (told.has_password, told.is_local) == (True, True)
    assert "secret" not in repr(told)
    by_socket = ask(f"unix://:secret@{broker.folder}/here.sock")
    assert (by_socket.is_local, by_socket.foreign_keys) == (True, 2)


def test_what_we_keep_there_ourselves_is_nobody_elses(configured, monkeypatch):
    monkeypatch.setattr(broker_facts, "PAGE_KEYS", 10)
    broker = configured()
    for number in range(50):
        broker.call("SET", f"rooms:store:ticket%3A{number}", "kept")
    assert ask(broker.url).foreign_keys == 0
    broker.call("SET", "somebody:store:ticket", "else's")
    assert ask(broker.url).foreign_keys == 1
    assert ask(broker.url, key_prefix="shop").foreign_keys == 51
    monkeypatch.setattr(broker_facts, "MAX_PAGES", 1)
    assert 1 < ask(broker.url).foreign_keys < 51, "it does not look for ever"


@pytest.mark.parametrize(("allowed", "is_told"), [((), False), (("+info",), True)])
def test_a_user_who_may_not_ask(configured, allowed, is_told):
    broker = configured()
    words = "on >pw resetchannels &rooms:* -@all +publish +subscribe +unsubscribe"
    broker.call("ACL", "SETUSER", "rooms", *words.split(), *allowed)
    told = ask(f"redis://rooms:pw@127.0.0.1:{broker.port}")
    assert (told.is_told, told.output_limit) == (is_told, None)


def test_a_replica(configured):
    broker = configured(f"replicaof 127.0.0.1 {free_port()}")
    assert ask(broker.url).role == "slave"


def test_of_a_cluster_any_server_will_do(configured):
    broker = configured()
    told = ask(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{broker.port}")
    assert (told.is_told, told.is_cluster) == (True, True)


@pytest.mark.parametrize(
    ("host", "is_local"), [("localhost", True), ("127.0.0.1", True), ("::1", True), ("redis", False)]
)
def test_which_servers_are_on_this_machine(host, is_local):
    backend = RedisBackend(f"redis://{f'[{host}]' if ':' in host else host}:6379")
    assert broker_facts._is_local(backend._place.server) is is_local


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
def test_nobody_is_there(scheme):
    port = free_port()
    told = ask(f"{scheme}://app:secret@127.0.0.1:{port}/{'shop' if 'sentinel' in scheme else ''}")
    assert isinstance(told, Unreachable)
    assert str(port) in told.place
    assert "secret" not in repr(told)


def test_a_server_that_stands_still_is_not_waited_for(broker, monkeypatch):
    monkeypatch.setattr(broker_facts, "ASK_SECONDS", 0.3)
    broker.freeze()
    begin = time.monotonic()
    told = ask(broker.url, publish_timeout=60)
    place = f"127.0.0.1:{broker.port}"
    assert told == Unreachable(place=place, reason=f"{place} gave no answer within 0.3 s")
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("backend", [None, MemoryBackend(Hub())])
def test_who_uses_no_redis_is_not_asked(backend):
    assert asyncio.run(ask_broker(backend)) is None
