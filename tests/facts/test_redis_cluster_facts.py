"""What `fastapi_rooms.backends.redis` relies on in redis-py, Redis and Valkey where there are several servers."""

import asyncio
import contextlib
import functools
from typing import Any

import pytest
import redis
from brokers.groups import SLOTS, Cluster, eventually, info
from brokers.server import Broker, running
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode as SyncClusterNode
from redis.cluster import RedisClusterException
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as SyncRetry
from redis.sentinel import Sentinel as SyncSentinel
from support import DEADLINE

from fastapi_rooms.backends.redis.dialing import Server

ONCE = {"socket_timeout": 0.4, "socket_connect_timeout": 0.4, "retry": SyncRetry(NoBackoff(), 0), "protocol": 2}
"""How a sync client is kept from publishing twice."""


@contextlib.asynccontextmanager
async def dialled(*brokers: Broker):
    """Connections as our code makes them, one to each."""
    connections = [await Server(Connection, {"host": "127.0.0.1", "port": b.port}, DEADLINE).dial() for b in brokers]
    try:
        yield connections
    finally:
        for connection in connections:
            await connection.disconnect(nowait=True)


async def heard(connection: Any) -> Any:
    """What a server says next, an error that it answers with among it."""
    try:
        return await asyncio.wait_for(connection.read_response(disable_decoding=True), DEADLINE)
    except ResponseError as answer:
        return answer


async def ask(connection: Any, *command: Any) -> Any:
    packed = b"".join(connection.pack_command(*command))
    await connection.send_packed_command([packed], check_health=False)
    return await heard(connection)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    with contextlib.ExitStack() as ends:

        @functools.cache
        def form(kind):
            cluster = ends.enter_context(Cluster(kind, tmp_path_factory.mktemp("cluster")).running())
            for master in cluster.masters:
                master.call("CONFIG", "SET", "cluster-node-timeout", 30_000)  # a frozen one is not given up
                eventually(
                    lambda master=master: f"cluster_slots_assigned:{SLOTS}" in info(master), "all know all slots"
                )
            return cluster

        yield form


@pytest.fixture
def cluster(broker_kind, clusters):
    """A cluster that the tests of this module share."""
    return clusters(broker_kind)


@pytest.fixture
def channels(request, cluster):
    """Per master two channels that it has, in two slots, which no other test uses."""
    names = [f"{request.node.name}:{number}".encode() for number in range(200)]
    owners = cluster.owners()
    owned = [[name for name in names if owners[key_slot(name)] is master] for master in cluster.masters]
    return [mine[:2] for mine in owned]


# Slots


async def test_redis_py_and_the_server_agree_on_the_slot_of_a_channel(cluster):
    async with dialled(cluster.masters[0]) as [connection]:
        for channel in (b"rooms:all", b"rooms:room:a%20b~c", b"rooms:user:%7Bx%7D", b"", b"{a}b", b"{}b", b"\xff"):
            assert await ask(connection, "CLUSTER", "KEYSLOT", channel) == key_slot(channel)


async def test_every_server_tells_which_master_has_which_slot(cluster):
    async with dialled(*cluster.masters) as connections:
        for connection in connections:
            owners: dict[int, Any] = {}
            for first, last, (host, port, *_), *_replicas in await ask(connection, "CLUSTER", "SLOTS"):
                owners.update(dict.fromkeys(range(first, last + 1), (host, port)))
            assert sorted(owners) == list(range(SLOTS))
            assert set(owners.values()) == {(b"127.0.0.1", master.port) for master in cluster.masters}


async def test_a_server_that_knows_no_name_for_itself_leaves_its_host_empty(broker_kind, tmp_path):
    lone = Broker(broker_kind, tmp_path, "cluster-enabled yes", "cluster-require-full-coverage no")
    with running(lone):
        lone.call("CLUSTER", "ADDSLOTS", 7)
        async with dialled(lone) as [connection]:
            ((first, last, (host, port, *_), *replicas),) = await ask(connection, "CLUSTER", "SLOTS")
    assert (first, last, host, port, replicas) == (7, 7, b"", lone.port, [])


async def test_a_server_that_may_not_name_hosts_leaves_them_out_of_the_table_and_out_of_redirections(cluster, channels):
    other = cluster.masters[1]
    other.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint")
    try:
        async with dialled(other) as [connection]:
            assert {entry[2][0] for entry in await ask(connection, "CLUSTER", "SLOTS")} == {None}
            moved = await ask(connection, "SPUBLISH", channels[0][0], "x")
        assert (moved.host, int(moved.port)) == ("", cluster.masters[0].port)
    finally:
        other.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


# Sharded channels


async def test_sharded_messages_and_confirmations_have_words_of_their_own(cluster, channels):
    channel = channels[0][0]
    async with dialled(cluster.masters[0], cluster.masters[0]) as [listener, publisher]:
        assert await ask(listener, "SSUBSCRIBE", channel) == [b"ssubscribe", channel, 1]
        assert await ask(publisher, "SPUBLISH", channel, b"\xff\r\n") == 1
        assert await heard(listener) == [b"smessage", channel, b"\xff\r\n"]
        assert await ask(listener, "SUNSUBSCRIBE", channel) == [b"sunsubscribe", channel, 0]


async def test_channels_of_two_slots_cannot_share_a_command_although_one_server_has_both(cluster, channels):
    """The reason for one command per sharded channel."""
    async with dialled(cluster.masters[0]) as [listener]:
        refused = await ask(listener, "SSUBSCRIBE", *channels[0])
        assert isinstance(refused, ResponseError)
        assert "same slot" in str(refused)
        for count, channel in enumerate(channels[0], 1):
            assert await ask(listener, "SSUBSCRIBE", channel) == [b"ssubscribe", channel, count]


async def test_a_server_sends_publishers_and_listeners_to_the_master_that_has_the_slot(cluster, channels):
    channel = channels[0][0]
    async with dialled(cluster.masters[1]) as [connection]:
        for command in (("SPUBLISH", channel, "x"), ("SSUBSCRIBE", channel)):
            moved = await ask(connection, *command)
            assert isinstance(moved, MovedError), "a connection that belongs to no cluster client knows it, too"
            assert (moved.host, int(moved.port)) == ("127.0.0.1", cluster.masters[0].port)
            assert moved.slot_id == key_slot(channel)
        assert connection.is_connected


async def test_a_slot_that_moves_takes_its_listeners_off_unasked_and_leaves_the_others(cluster, channels):
    moving, staying = channels[0]
    old, new, _ = cluster.masters
    async with dialled(old, old, new) as [listener, publisher, publisher_there]:
        for channel in channels[0]:
            await ask(listener, "SSUBSCRIBE", channel)
        cluster.move(key_slot(moving), new)
        assert await heard(listener) == [b"sunsubscribe", moving, 1]
        assert isinstance(await ask(publisher, "SPUBLISH", moving, "x"), MovedError)
        assert await ask(publisher_there, "SPUBLISH", moving, "lost") == 0
        assert await ask(publisher, "SPUBLISH", staying, "heard") == 1
        assert await heard(listener) == [b"smessage", staying, b"heard"]


async def test_leaving_a_channel_whose_slot_has_moved_is_answered_with_the_redirection(cluster, channels):
    channel = channels[0][0]
    async with dialled(cluster.masters[0]) as [listener]:
        await ask(listener, "SSUBSCRIBE", channel)
        cluster.move(key_slot(channel), cluster.masters[1])
        assert (await heard(listener))[0] == b"sunsubscribe"
        assert isinstance(await ask(listener, "SUNSUBSCRIBE", channel), MovedError)


async def test_a_slot_on_its_way_is_served_by_its_old_master_until_it_has_arrived(cluster, channels):
    channel, slot = channels[0][0], key_slot(channels[0][0])
    old, new, _ = cluster.masters
    new.call("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.node_id(old))
    old.call("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.node_id(new))
    try:
        async with dialled(old, old, new) as [listener, publisher, publisher_there]:
            assert await ask(listener, "SSUBSCRIBE", channel) == [b"ssubscribe", channel, 1]
            assert await ask(publisher, "SPUBLISH", channel, "x") == 1
            moved = await ask(publisher_there, "SPUBLISH", channel, "x")
            assert (type(moved), int(moved.port)) == (MovedError, old.port)
    finally:
        for one in (new, old):
            one.call("CLUSTER", "SETSLOT", slot, "STABLE")


async def test_a_slot_that_nobody_has_is_an_error_of_its_own(broker_kind, tmp_path):
    lone = Broker(broker_kind, tmp_path, "cluster-enabled yes", "cluster-require-full-coverage no")
    with running(lone):
        async with dialled(lone) as [connection]:
            for command in (("SPUBLISH", "a", "x"), ("SSUBSCRIBE", "a")):
                assert isinstance(await ask(connection, *command), ClusterDownError)


async def test_what_is_published_to_no_shard_reaches_every_server_of_the_cluster(cluster, channels):
    """The reason for sharded channels: each server would have the load of all."""
    channel = channels[0][0]
    async with dialled(*cluster.masters) as [publisher, *listeners]:
        for listener in listeners:
            await ask(listener, "SUBSCRIBE", channel)
        await ask(publisher, "PUBLISH", channel, "x")
        for listener in listeners:
            assert await heard(listener) == [b"message", channel, b"x"]


def test_all_that_sends_us_elsewhere_is_an_answer_and_no_end_of_a_connection():
    assert issubclass(MovedError, AskError), "listening.py counts on it"
    for kind in (AskError, ClusterDownError, TryAgainError):
        assert issubclass(kind, ResponseError)


# Clients


def test_a_cluster_client_shows_how_it_would_connect_before_it_has():
    nodes = [ClusterNode("127.0.0.1", 7000), ClusterNode("127.0.0.2", "7001")]
    client = RedisCluster(startup_nodes=nodes, username="me", password="secret", ssl=True, ssl_ca_certs="/ca.pem")
    assert client.get_nodes() == []
    assert [(node.host, int(node.port)) for node in client.startup_nodes] == [("127.0.0.1", 7000), ("127.0.0.2", 7001)]
    shown = {"username": "me", "password": "secret", "ssl_ca_certs": "/ca.pem", "connection_class": SSLConnection}
    assert shown.items() <= client.connection_kwargs.items()
    assert RedisCluster(host="127.0.0.1").connection_kwargs.get("connection_class", Connection) is Connection


async def test_a_cluster_client_that_has_connected_knows_all_servers(cluster):
    async with RedisCluster(host="127.0.0.1", port=cluster.masters[0].port) as client:
        found = {(node.host, int(node.port)) for node in client.get_nodes()}
    assert found == {("127.0.0.1", master.port) for master in cluster.masters}


async def test_a_sync_cluster_client_that_may_not_retry_publishes_once_to_whoever_has_the_channel(cluster, channels):
    nodes = [SyncClusterNode("127.0.0.1", master.port) for master in cluster.masters]
    client = redis.RedisCluster(startup_nodes=nodes, require_full_coverage=False, ssl=False, **ONCE)
    first, *_ = cluster.masters
    async with dialled(*cluster.masters) as listeners:
        for listener, [channel, _] in zip(listeners, channels, strict=True):
            await ask(listener, "SSUBSCRIBE", channel)
            client.execute_command("SPUBLISH", channel, b"\xff\x00")
            assert await heard(listener) == [b"smessage", channel, b"\xff\x00"]
        first.freeze()
        try:
            once = asyncio.to_thread(client.execute_command, "SPUBLISH", channels[0][0], b"once")
            publishing = asyncio.ensure_future(once)
            await asyncio.wait([publishing], timeout=0.6)  # a second attempt would be under way, and succeed
        finally:
            first.thaw()
        with pytest.raises(RedisTimeoutError):
            await publishing
        client.execute_command("SPUBLISH", channels[0][0], b"after")
        assert [(await heard(listeners[0]))[2] for _ in range(2)] == [b"once", b"after"]
    client.close()


async def test_a_sync_cluster_client_follows_a_slot_that_has_moved(cluster, channels):
    channel = channels[0][0]
    nodes = [SyncClusterNode("127.0.0.1", cluster.masters[0].port)]
    client = redis.RedisCluster(startup_nodes=nodes, require_full_coverage=False, ssl=False, **ONCE)
    async with dialled(cluster.masters[1]) as [listener]:
        cluster.move(key_slot(channel), cluster.masters[1])
        await ask(listener, "SSUBSCRIBE", channel)
        client.execute_command("SPUBLISH", channel, b"x")
        assert await heard(listener) == [b"smessage", channel, b"x"]
    client.close()


def test_a_cluster_that_is_away_is_no_redis_error(broker_kind, tmp_path):
    """The reason why a sync publisher takes every exception for a failure."""
    assert not issubclass(RedisClusterException, RedisError)
    nobody = [SyncClusterNode("127.0.0.1", Broker(broker_kind, tmp_path).port)]
    with pytest.raises(RedisClusterException):
        redis.RedisCluster(startup_nodes=nobody, require_full_coverage=False, **ONCE)


# Sentinel


@pytest.fixture
def sentinel(broker, tmp_path):
    """One Sentinel that watches `broker`."""
    watch = f"sentinel monitor kitchen 127.0.0.1 {broker.port} 1"
    made = Broker(broker.kind, tmp_path, watch, sentinel=True)
    with running(made):
        yield made


async def test_a_sentinel_tells_where_a_master_is_and_nothing_of_one_it_does_not_know(broker, sentinel):
    async with dialled(sentinel) as [connection]:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME")
        assert await ask(connection, *question, "kitchen") == [b"127.0.0.1", str(broker.port).encode()]
        assert await ask(connection, *question, "cellar") is None


def test_a_sentinel_client_shows_how_it_would_connect():
    addresses = [("127.0.0.1", 26379), ("127.0.0.2", 26380)]
    sentinels = Sentinel(addresses, sentinel_kwargs={"password": "sentinels"})
    pool = sentinels.master_for("kitchen", username="me", password="secret").connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.connection_class) == ("kitchen", SentinelManagedConnection)
    assert {"username": "me", "password": "secret"}.items() <= pool.connection_kwargs.items()
    for (host, port), one in zip(addresses, pool.sentinel_manager.sentinels, strict=True):
        shown = {"host": host, "port": port, "password": "sentinels"}
        assert shown.items() <= one.connection_pool.connection_kwargs.items()
        assert one.connection_pool.connection_class is Connection


def test_a_sentinel_client_shows_whether_it_would_use_tls():
    pool = Sentinel([]).master_for("kitchen", ssl=True, ssl_ca_certs="/ca.pem").connection_pool
    assert pool.connection_class is SentinelManagedSSLConnection
    assert pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem"
    plain = Redis().connection_pool
    assert not isinstance(plain, SentinelConnectionPool)


async def test_a_sync_client_finds_the_master_by_the_sentinels_that_it_was_given_afterwards(broker, sentinel):
    finder = SyncSentinel([])
    pool = redis.ConnectionPool(connection_class=redis.Connection, host="127.0.0.1", port=sentinel.port, **ONCE)
    finder.sentinels = [redis.Redis.from_pool(pool)]
    client = finder.master_for("kitchen", ssl=False, **ONCE)
    async with dialled(broker) as [listener]:
        await ask(listener, "SUBSCRIBE", "a")
        assert client.execute_command("PUBLISH", b"a", b"x") == 1
        assert await heard(listener) == [b"message", b"a", b"x"]
    client.close()
    finder.sentinels[0].close()
