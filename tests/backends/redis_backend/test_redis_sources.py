"""Clients of an app's own as a source, of either kind, and backends of other kinds for publishers."""

from uuid import uuid4

import pytest
import redis
import redis.sentinel
from brokers.groups import Sentinels
from scripted_redis import ScriptedRedis, bulk

from fastapi_rooms import BackendUnavailable, ConfigurationError, Publisher, SyncPublisher
from fastapi_rooms.backends.redis.places import locate
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.testing import LocalCluster, Recorder

UNREACHABLE = 1


@pytest.mark.parametrize(
    ("client", "place", "connection"),
    [
        (redis.Redis(port=7), "localhost:7", "Connection"),
        (redis.Redis(host="cache", port=7, password="s3cret", db=3), "cache:7", "Connection"),
        (redis.Redis(port=7, ssl=True), "localhost:7", "SSLConnection"),
        (redis.Redis(unix_socket_path="/run/redis"), "unix:/run/redis", "UnixDomainSocketConnection"),
    ],
)
def test_a_client_without_an_event_loop_lends_its_address(client, place, connection):
    found = locate(client, 1.0)
    assert (str(found), found.server.connection_class.__name__) == (place, connection)
    assert found.server.connection_class.__module__ == "redis.asyncio.connection"
    assert "s3cret" not in f"{found} {found!r}"


def test_a_check_that_cannot_be_made_is_not_left_out_in_silence():
    with pytest.raises(ConfigurationError, match="ssl_validate_ocsp"):
        locate(redis.Redis(port=7, ssl=True, ssl_validate_ocsp=True), 1.0)


def test_a_client_without_an_event_loop_serves_a_publisher_without_one(shared_broker):
    with redis.Redis(port=shared_broker.port) as client:
        listening = client.pubsub()
        listening.subscribe("rooms:all")
        assert listening.get_message(timeout=5)["type"] == "subscribe"
        with SyncPublisher(client) as publisher:
            publisher.broadcast("hello")
        assert listening.get_message(timeout=5)["data"].endswith(b"hello")
        listening.close()


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_client_of_a_sentinel_lends_its_addresses(is_tls):
    sentinel = redis.sentinel.Sentinel([("one", 7), ("two", 8)])
    place = locate(sentinel.master_for("kitchen", ssl=is_tls), 1.0)
    assert str(place) == "master 'kitchen' of the Sentinels at one:7, two:8"
    assert place.server.connection_class.__name__ == ("SSLConnection" if is_tls else "Connection")


def test_a_master_that_no_sentinel_knows_is_said_without_what_redis_py_shows_of_clients():
    url = f"redis+sentinel://ann:s3cret@127.0.0.1:{UNREACHABLE}/{Sentinels.name}?sentinel_password=hidden"
    with SyncPublisher(url) as publisher, pytest.raises(BackendUnavailable, match="knows this master") as caught:
        publisher.broadcast("hello")
    assert caught.value.__cause__ is None
    assert "redis.client" not in str(caught.value)


async def test_why_redis_is_not_there_is_said():
    with pytest.raises(BackendUnavailable, match=r"cannot be reached: .*onnect.* Start it, and send again$"):
        await Publisher(f"redis://127.0.0.1:{UNREACHABLE}").broadcast("hello")


async def test_a_publisher_takes_any_backend():
    cluster = LocalCluster(2)
    node = Recorder()
    await cluster.backends[0].start(uuid4().hex, node)
    cluster.backends[0].subscribe((EVERYBODY,))
    async with Publisher(cluster.backends[1]) as publisher:
        await publisher.broadcast("hello")
    (heard,) = await node.received(1)
    assert heard.content.payload == b"hello"
    await cluster.backends[0].stop()


@pytest.mark.parametrize("call", ["broadcast_to_room", "send_to_user"])
async def test_a_number_is_no_name(call):
    publisher = Publisher(f"redis://127.0.0.1:{UNREACHABLE}")
    with pytest.raises(ConfigurationError, match=r"takes a str, not int: write str\(...\)"):
        await getattr(publisher, call)(5, "hello")


@pytest.mark.parametrize("index", [-1, 2])
def test_a_node_that_is_not_there_is_no_node(index):
    with pytest.raises(ConfigurationError, match="counted from 0 to 1"):
        LocalCluster(2).cut(index)
    with pytest.raises(ConfigurationError, match="counted from 0 to 1"):
        LocalCluster(2).restore(index)


@pytest.mark.parametrize("named", [bulk(b"one"), bulk(b"127.0.0.1", b"seven"), bulk(b"\xff", b"7"), b":7\r\n"])
async def test_a_sentinel_that_names_no_address_is_not_followed(named):
    class Sentinel(ScriptedRedis):
        def on_command(self, visit, command):
            visit.say(named)

    async with Sentinel() as sentinel:
        place = locate(f"redis+sentinel://127.0.0.1:{sentinel.port}/kitchen", 5.0)
        with pytest.raises(BackendUnavailable, match=f"the Sentinel at 127.0.0.1:{sentinel.port} named no address"):
            await place.dial()
        assert not await place.is_replaced(("127.0.0.1", 7)), "nobody else is known"
