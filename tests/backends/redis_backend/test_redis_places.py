"""Where Redis is: every way to say it, and what is refused."""

import asyncio

import pytest
import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis_nodes import ROOM, Node, running_nodes, some_settings

from fastapi_rooms import ConfigurationError
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.backends.redis.places import locate
from fastapi_rooms.backends.redis.publisher import Publisher
from fastapi_rooms.backends.redis.sync_publisher import SyncPublisher


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://", "localhost:6379"),
        ("redis://redis.internal", "redis.internal:6379"),
        ("REDIS://Redis.Internal:7000/3", "redis.internal:7000"),
        ("redis://[::1]:7000", "::1:7000"),
        ("redis://ann:secret@redis.internal:7000/0?client_name=web", "redis.internal:7000"),
        ("redis://:secret@redis.internal", "redis.internal:6379"),
        ("redis://redis.internal:0", "redis.internal:6379"),
        ("redis://?host=redis.internal&port=7000", "redis.internal:7000"),
        ("rediss://redis.internal:7000?ssl_ca_certs=/etc/ca.pem", "redis.internal:7000"),
        ("unix:///run/redis.sock", "unix:/run/redis.sock"),
        ("unix:///run/a%20b%23c.sock?db=1", "unix:/run/a b#c.sock"),
        ("unix://ann:secret@/run/redis@home.sock", "unix:/run/redis@home.sock"),
        ("unix://?path=/run/redis.sock", "unix:/run/redis.sock"),
    ],
)
def test_a_url_says_where_it_is(url, place):
    assert str(locate(url, 1)) == place
    assert repr(RedisBackend(url)) == f"<RedisBackend {place} (degraded)>"
    assert repr(SyncPublisher(url)) == f"<SyncPublisher {place}>"
    assert repr(Publisher(url)) == f"<Publisher <RedisBackend {place} (degraded)>>"


@pytest.mark.parametrize(
    ("client", "place"),
    [
        (Redis, "localhost:6379"),
        (lambda: Redis(host="redis.internal", port=7000, username="ann", password="secret"), "redis.internal:7000"),
        (lambda: Redis.from_url("rediss://:secret@redis.internal"), "redis.internal:6379"),
        (lambda: Redis(host="redis.internal", ssl=True, ssl_ca_certs="/etc/ca.pem"), "redis.internal:6379"),
        (lambda: Redis(unix_socket_path="/run/redis.sock"), "unix:/run/redis.sock"),
    ],
)
def test_a_client_says_where_it_is(client, place):
    assert str(locate(client(), 1)) == place


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:6379",
        "/run/redis.sock",
        "http://localhost",
        "amqp://localhost",
        "redis+nothing://localhost",
        "unix+cluster:///run/redis.sock",
        "http+sentinel://localhost/kitchen",
        "unix://",
        "unix:///run/redis.sock#1",
        "redis://localhost:port",
        "redis://localhost:65536",
        "redis://localhost:-1",
        "redis://[::1",
        "redis://localhost?socket_timeout=soon",
        "redis://localhost?ssl_cert_reqs=none",
        "rediss://localhost?ssl_cert_reqs=perhaps",
        "rediss://localhost?ssl_unheard_of=1",
        "redis://localhost?nonsense",
        "redis://localhost/0#fragment",
        # What a password becomes that was not encoded.
        "redis://:12#34@localhost",
        "redis://:12/34@localhost",
        "redis://:12?34@localhost",
        "redis://ann:12/34#56@localhost:6379/0",
        "redis://ann:[secret@localhost",
    ],
)
@pytest.mark.parametrize("make", [RedisBackend, Publisher, SyncPublisher])
def test_a_url_that_leads_nowhere_is_refused_and_not_shown(url, make):
    with pytest.raises(ConfigurationError) as refused:
        make(url)
    text = str(refused.value)
    assert text.startswith("this is no URL that leads to Redis (it is not shown, it may hold a password): write redis:")
    assert (refused.value.__cause__, refused.value.__context__) == (None, None)
    assert "34" not in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (None, "builtins.NoneType"),
        (b"redis://localhost", "builtins.bytes"),
        (("localhost", 6379), "builtins.tuple"),
        (redis.ConnectionPool(), "redis.connection.ConnectionPool"),
    ],
)
def test_what_is_neither_a_url_nor_a_client_is_refused_by_its_kind(source, kind):
    with pytest.raises(ConfigurationError, match=f"not {kind}: write redis://host:6379, rediss://"):
        RedisBackend(source)


def test_a_client_with_options_that_redis_does_not_take_is_refused():
    client = Redis.from_url("redis://:secret@localhost?ssl_cert_reqs=none")
    with pytest.raises(ConfigurationError, match=r"ssl_cert_reqs.*Leave them out or mend them") as refused:
        RedisBackend(client)
    assert "secret" not in str(refused.value)
    assert (refused.value.__cause__, refused.value.__suppress_context__) == (None, True)


@pytest.fixture
def unix_broker(broker_kind, tmp_path):
    """A server that has a unix socket, too."""
    from brokers.server import Broker, running

    path = tmp_path / "it's a socket@home"
    made = Broker(broker_kind, tmp_path, f'unixsocket "{path}"')
    made.path = path
    with running(made):
        yield made


def ways(broker):
    """Every way to one server."""
    address = f"127.0.0.1:{broker.port}"
    return {
        "address": f"redis://{address}",
        "name": f"redis://localhost:{broker.port}",
        "database": f"redis://{address}/3",
        "capitals": f"REDIS://{address}",
        "options": f"redis://{address}?socket_timeout=0.001&max_connections=1&retry_on_timeout=yes&decode_responses=1",
        "socket": f"unix://{broker.path}",
        "client": Redis(port=broker.port, decode_responses=True, single_connection_client=True, db=3),
        "client of a URL": Redis.from_url(f"redis://{address}", protocol=3, socket_timeout=0.001),
        "client of a pool": Redis(connection_pool=BlockingConnectionPool(port=broker.port, max_connections=1)),
        "client of a socket": Redis(unix_socket_path=str(broker.path)),
    }


async def test_every_way_leads_to_the_same_place(unix_broker):
    async with running_nodes(unix_broker.url, 1, ROOM) as (listener,):
        for way, source in ways(unix_broker).items():
            node = Node(source, ROOM, settings=listener.settings)
            await node.start(required=True)
            await node.settled()
            await node.say(way)
            await listener.say(f"to {way}")
            await node.received(1)
            await node.backend.stop()
            async with Publisher(source, settings=listener.settings) as publisher:
                await publisher.broadcast_to_room("kitchen", f"async {way}")
            with SyncPublisher(source, settings=listener.settings) as publisher:
                await asyncio.to_thread(publisher.broadcast_to_room, "kitchen", f"sync {way}")
            await listener.received(3)
            assert listener.heard == [way, f"async {way}", f"sync {way}"]
            assert node.heard == [f"to {way}"]
            listener.envelopes.clear()


async def test_a_client_that_is_given_is_left_alone(each_broker):
    client = Redis(port=each_broker.port)
    async with running_nodes(client, 2, ROOM) as (one, two):
        await one.say("hello")
        await two.received(1)
    async with Publisher(client) as publisher:
        await publisher.broadcast("hello")
    with SyncPublisher(client) as publisher:
        publisher.broadcast("hello")
    pool = client.connection_pool
    assert (pool._available_connections, pool._in_use_connections) == ([], set())
    assert await client.ping()
    await client.aclose()


async def test_connections_bear_the_name_that_was_asked_for(each_broker):
    name = some_settings().key_prefix
    url = f"{each_broker.url}?client_name={name}"
    async with running_nodes(url, 1):
        assert sum(client["name"] == name for client in each_broker.clients()) == 2
    with SyncPublisher(url) as publisher:
        publisher.broadcast("hello")
        assert sum(client["name"] == name for client in each_broker.clients()) == 1
