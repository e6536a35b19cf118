"""What `fastapi_rooms.backends.redis` relies on in redis-py, in Redis and in Valkey; see also the facts on clusters."""

import asyncio
import collections
import contextlib
import inspect
import socket
import ssl
import sys
from typing import Any

import pytest
import redis
import uvloop
from brokers.server import Broker, running
from redis._parsers import _AsyncHiredisParser, _AsyncRESP2Parser
from redis.asyncio import Redis
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as SyncRetry
from redis.utils import HIREDIS_AVAILABLE
from support import DEADLINE, until

from fastapi_rooms.backends.redis.dialing import _ALLOWED, _LOST, _QUOTING, Server
from fastapi_rooms.backends.redis.listening import BATCH

MIB = 1024 * 1024
SILENCE = 0.3
"""How long nothing must happen where the fact is that nothing happens."""


since_8 = pytest.mark.skipif(redis.VERSION < (8,), reason="redis-py 8 is like this; its defaults were others before")


def server_at(port: int, connection_class: type[AbstractConnection] = Connection, **options: Any) -> Server:
    return Server(connection_class, {"host": "127.0.0.1", "port": port, **options}, DEADLINE)


@contextlib.asynccontextmanager
async def dialled(port: int, connection_class: type[AbstractConnection] = Connection, **options: Any):
    """A connection as our code makes it, used below by redis-py's own methods."""
    connection = await server_at(port, connection_class, **options).dial()
    try:
        yield connection
    finally:
        await abort(connection)


async def abort(connection: Any) -> None:
    if connection._writer is not None:
        connection._writer.transport.abort()
    await connection.disconnect(nowait=True)


async def send(connection: Any, *commands: tuple[Any, ...]) -> None:
    packed = b"".join(part for command in commands for part in connection.pack_command(*command))
    await connection.send_packed_command([packed], check_health=False)


async def send_until_it_ends(connection: Any) -> None:
    while True:
        await send(connection, ("PING",))
        await asyncio.sleep(0)


async def heard(connection: Any) -> Any:
    return await asyncio.wait_for(connection.read_response(disable_decoding=True), DEADLINE)


async def ask(connection: Any, *command: Any) -> Any:
    await send(connection, command)
    return await heard(connection)


@contextlib.asynccontextmanager
async def reading(connection: Any):
    """What is heard next, as a task. A read cannot be given up and taken up again: see below."""
    task = asyncio.ensure_future(connection.read_response(disable_decoding=True))
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def stays_undone(task: "asyncio.Future[Any]") -> bool:
    await asyncio.wait([task], timeout=SILENCE)
    return not task.done()


@contextlib.contextmanager
def frozen(broker):
    broker.freeze()
    try:
        yield
    finally:
        broker.thaw()


def run_on(loop: str, coroutine: Any) -> None:
    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[loop]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(coroutine)


def parsed_by(parser: Any) -> type[Connection]:
    class Parsed(Connection):
        def __init__(self, **options: Any) -> None:
            super().__init__(parser_class=parser, **options)

    return Parsed


@pytest.fixture(params=["python", "hiredis"])
def connection_class(request):
    """redis-py takes hiredis where it is installed; both must do."""
    if request.param == "python":
        return parsed_by(_AsyncRESP2Parser)
    if not HIREDIS_AVAILABLE:
        pytest.skip("hiredis is not installed")
    return parsed_by(_AsyncHiredisParser)


# The connection


def test_a_connection_has_a_writer_whose_transport_can_be_aborted(broker, loop):
    async def scenario() -> None:
        async with dialled(broker.port) as connection:
            assert connection.is_connected
            assert callable(connection._writer.transport.abort), "dialing.hang_up has no other way to the transport"
            await abort(connection)
            assert not connection.is_connected
            assert connection._writer is None

    run_on(loop, scenario())


def test_an_abort_frees_a_send_and_a_read_that_wait_for_a_frozen_server_and_a_close_does_not(broker, loop):
    async def scenario() -> None:
        async with dialled(broker.port) as connection, reading(connection) as read:
            with frozen(broker):
                sending = asyncio.ensure_future(send(connection, ("PUBLISH", "a", bytes(32 * MIB))))
                transport = connection._writer.transport
                await until(transport.get_write_buffer_size, "more than the kernel takes")
                connection._writer.close()
                # From Python 3.12 on asyncio lets the send go; what it was to send waits all the same.
                assert await stays_undone(sending) or (loop == "asyncio" and sys.version_info >= (3, 12))
                assert not read.done()
                assert transport.get_write_buffer_size() > 0
                transport.abort()
                await asyncio.wait_for(sending, DEADLINE)  # without an error
                with pytest.raises(RedisConnectionError):
                    await asyncio.wait_for(read, DEADLINE)
            assert not connection.is_connected

    run_on(loop, scenario())


def test_a_disconnect_without_waiting_suspends_nobody(broker, loop):
    async def scenario() -> None:
        async with dialled(broker.port) as connection:
            connection._writer.transport.abort()
            with pytest.raises(StopIteration):
                connection.disconnect(nowait=True).send(None)

    run_on(loop, scenario())


def test_what_is_sent_on_a_connection_that_was_hung_up_raises_what_we_take_for_its_end(broker, loop):
    async def scenario() -> None:
        async with dialled(broker.port) as connection:
            connection._writer.transport.abort()
            assert connection.is_connected, "nobody has noticed yet"
            with pytest.raises(_LOST):
                await send_until_it_ends(connection)
            assert not connection.is_connected

    run_on(loop, scenario())


async def test_the_end_of_a_connection_raises_once_it_is_read_and_is_connected_tells_it_from_then_on(
    broker, connection_class
):
    async with dialled(broker.port, connection_class) as connection:
        broker.kill()
        await until(connection._reader.at_eof)
        assert connection.is_connected, "it knows nothing of it yet"
        with pytest.raises(RedisConnectionError):
            await heard(connection)
        assert not connection.is_connected
        with pytest.raises(_LOST):
            await heard(connection)


async def test_a_send_on_a_closed_connection_makes_a_new_one_without_a_word(broker):
    """The reason for the question whether it is connected before each send."""
    async with dialled(broker.port) as connection:
        first = await ask(connection, "CLIENT", "ID")
        await connection.disconnect()
        await send(connection, ("CLIENT", "ID"))
        assert await heard(connection) != first


async def test_a_cancelled_read_ends_the_connection(broker):
    """The reason why time limits are alarms that hang up, and never a time-out around a read."""
    async with dialled(broker.port) as connection:
        async with reading(connection):
            pass
        assert not connection.is_connected


async def test_a_connection_is_what_we_ask_for_where_that_differs_from_its_defaults(broker):
    async with dialled(broker.port) as connection:
        assert connection.socket_timeout is None, "a node that hears nothing for a while would lose its connection"
        assert connection.health_check_interval == 0
        assert connection.protocol == 2
        assert connection.retry._retries == 0


@since_8
def test_by_default_a_connection_that_hears_nothing_for_some_seconds_is_given_up():
    """The reason for saying that there is no time-out."""
    assert Connection().socket_timeout == 5


# Connecting


@pytest.mark.parametrize("retries", [0, pytest.param(2, marks=since_8)])
async def test_a_connection_that_may_not_retry_connects_once(broker, proxy, retries):
    broker.kill()
    connection = Connection(port=proxy.port, protocol=2, retry=Retry(NoBackoff(), retries))
    with pytest.raises(RedisConnectionError):
        await connection.connect()
    assert proxy.accepted == 1 + retries


async def test_the_time_limit_for_connecting_does_not_cover_the_handshake(broker):
    """The reason for a time limit around the whole: the kernel of a frozen server accepts connections."""
    connection = Connection(port=broker.port, protocol=2, socket_timeout=None, socket_connect_timeout=0.1)
    with frozen(broker):
        connecting = asyncio.ensure_future(connection.connect())
        assert await stays_undone(connecting)
        connecting.cancel()
        await asyncio.wait([connecting])
    await abort(connection)


async def test_the_handshake_leaves_no_answer_behind(broker, connection_class):
    options = {"username": "default", "password": "secret", "client_name": "rooms"}
    broker.call("CONFIG", "SET", "requirepass", "secret")
    async with dialled(broker.port, connection_class, **options) as connection:
        assert await ask(connection, "ECHO", "mine") == b"mine"
        assert await ask(connection, "CLIENT", "GETNAME") == b"rooms"


@pytest.mark.parametrize("credentials", [{}, {"password": "hunter2"}, {"username": "me", "password": "hunter2"}])
async def test_a_server_that_wants_another_password_is_an_error_that_shows_none(broker, credentials):
    broker.call("CONFIG", "SET", "requirepass", "swordfish")
    connection = Connection(port=broker.port, protocol=2, retry=Retry(NoBackoff(), 0), **credentials)

    async def connect_and_ask() -> None:
        await connection.connect()
        await ask(connection, "PING")  # Redis 7.0 says so only now, where nothing is said about credentials

    with pytest.raises(_LOST) as error:
        await connect_and_ask()
    assert not connection.is_connected
    for text in (str(error.value), repr(error.value), repr(connection)):
        assert "hunter2" not in text


async def test_a_server_that_does_not_know_auth_quotes_the_password_behind_words_that_we_look_for(
    broker_kind, tmp_path
):
    broker = Broker(broker_kind, tmp_path, 'rename-command AUTH ""')
    with running(broker):
        connection = Connection(port=broker.port, protocol=2, retry=Retry(NoBackoff(), 0), password="hunter2")
        with pytest.raises(ResponseError, match="hunter2") as error:
            await connection.connect()
    assert "hunter2" not in str(error.value).partition(_QUOTING)[0]
    assert not connection.is_connected


# Commands and answers


async def test_packed_commands_are_what_redis_wants_to_the_byte(broker, connection_class):
    async with dialled(broker.port, connection_class) as connection:
        packed = b"".join(connection.pack_command(b"PUBLISH", b"a", b"\xff\r\n\x00"))
        assert packed == b"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$4\r\n\xff\r\n\x00\r\n"
        for payload in (b"", b"\x00\xff\r\n", bytes(range(256)) * 1024):
            assert await ask(connection, b"ECHO", payload) == payload


async def test_commands_sent_in_one_piece_are_answered_one_by_one_in_order_an_error_in_its_place(
    broker, connection_class
):
    async with dialled(broker.port, connection_class) as connection:
        await send(connection, ("ECHO", "1"), ("NONSENSE",), ("ECHO", "3"))
        assert await heard(connection) == b"1"
        with pytest.raises(ResponseError, match=r"(?i)unknown command"):
            await heard(connection)
        assert connection.is_connected, "an answer is no reason to end a connection"
        assert await heard(connection) == b"3"


async def test_with_protocol_2_confirmations_and_messages_are_lists_of_bytes(broker, connection_class):
    async with dialled(broker.port, connection_class) as connection, dialled(broker.port) as publisher:
        expected = [b"subscribe", b"caf\xc3\xa9\xff", 1]
        assert await ask(connection, b"SUBSCRIBE", b"caf\xc3\xa9\xff") == expected
        assert await ask(publisher, b"PUBLISH", b"caf\xc3\xa9\xff", b"\xff\x00\r\n") == 1
        message = await heard(connection)
        assert message == [b"message", b"caf\xc3\xa9\xff", b"\xff\x00\r\n"]
        assert {type(message), *map(type, message)} == {list, bytes}
        assert await ask(connection, b"UNSUBSCRIBE", b"caf\xc3\xa9\xff") == [b"unsubscribe", b"caf\xc3\xa9\xff", 0]


@since_8
async def test_with_protocol_3_a_read_does_not_return_what_a_channel_says(broker):
    """The reason for protocol 2, which is redis-py's default no more."""
    connection = Connection(port=broker.port, protocol=3)
    await connection.connect()
    await send(connection, ("SUBSCRIBE", "a"), ("PING",))
    assert await heard(connection) == b"PONG", "the confirmation was swallowed"
    await abort(connection)


# Channels


async def test_one_command_for_many_channels_is_confirmed_channel_by_channel_in_order(broker):
    channels = [f"a:{number}".encode() for number in range(BATCH)]
    async with dialled(broker.port) as connection:
        await send(connection, ("SUBSCRIBE", *channels), ("UNSUBSCRIBE", *channels))
        for word, counts in ((b"subscribe", range(1, BATCH + 1)), (b"unsubscribe", range(BATCH - 1, -1, -1))):
            for channel, count in zip(channels, counts, strict=True):
                assert await heard(connection) == [word, channel, count]


async def test_what_is_asked_twice_is_confirmed_twice_and_changes_nothing(broker):
    async with dialled(broker.port) as connection:
        for _ in range(2):
            assert await ask(connection, "SUBSCRIBE", "a") == [b"subscribe", b"a", 1]
        for _ in range(2):
            assert await ask(connection, "UNSUBSCRIBE", "a") == [b"unsubscribe", b"a", 0]


async def test_messages_of_one_connection_arrive_in_order_and_after_the_confirmation(broker):
    async with dialled(broker.port) as listener, dialled(broker.port) as publisher:
        await send(listener, ("SUBSCRIBE", "a", "b"))
        assert [(await heard(listener))[0] for _ in range(2)] == [b"subscribe"] * 2
        published = [(f"{'ab'[number % 2]}".encode(), str(number).encode()) for number in range(100)]
        await send(publisher, *[(b"PUBLISH", *message) for message in published])
        assert [tuple((await heard(listener))[1:]) for _ in published] == published


async def test_a_killed_listener_hears_the_end_and_publishers_stay(broker):
    async with dialled(broker.port) as listener, dialled(broker.port) as publisher:
        await ask(listener, "SUBSCRIBE", "a")
        assert broker.kill_listeners() == 1
        with pytest.raises(RedisConnectionError):
            await heard(listener)
        assert await ask(publisher, "PUBLISH", "a", "nobody hears it") == 0


async def test_a_listener_that_is_too_slow_is_cut_off_without_a_word(broker):
    broker.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
    async with dialled(broker.port) as listener:
        await ask(listener, "SUBSCRIBE", "a")
        published = 0
        while broker.clients("pubsub"):
            assert published < 1000
            published += broker.client.publish("a", bytes(MIB))
        received = []

        async def receive() -> None:
            while True:
                received.append(await heard(listener))

        with pytest.raises(RedisConnectionError):
            await receive()
        assert received == [[b"message", b"a", bytes(MIB)]] * len(received)
        assert len(received) < published


async def test_a_frozen_server_takes_what_is_published_without_an_error_and_delivers_it_late(broker):
    """The reason for deadlines, and why nobody knows whether what failed by its deadline has arrived."""
    async with dialled(broker.port) as listener, dialled(broker.port) as publisher:
        await ask(listener, "SUBSCRIBE", "a")
        async with reading(listener) as message, reading(publisher) as answer:
            with frozen(broker):
                await asyncio.wait_for(send(publisher, ("PUBLISH", "a", "late")), DEADLINE)
                assert await stays_undone(answer)
                assert not message.done()
                assert publisher.is_connected
            assert await asyncio.wait_for(message, DEADLINE) == [b"message", b"a", b"late"]
            assert await asyncio.wait_for(answer, DEADLINE) == 1


async def test_a_server_that_is_no_master_any_more_takes_what_is_published_and_tells_its_role_when_asked(broker):
    """The reason for asking for the role at every probe."""
    async with dialled(broker.port) as connection:
        assert (await ask(connection, "ROLE"))[0] == b"master"
        broker.call("REPLICAOF", "127.0.0.1", 1)
        assert await ask(connection, "PUBLISH", "a", "lost") == 0
        assert (await ask(connection, "ROLE"))[0] == b"slave"


# Reasons against redis-py's own clients


@since_8
async def test_by_default_a_publish_that_redis_is_slow_to_answer_happens_twice(broker):
    async with dialled(broker.port) as listener, Redis(port=broker.port, socket_timeout=SILENCE / 2) as client:
        await ask(listener, "SUBSCRIBE", "a")
        await client.ping()
        with frozen(broker):
            publishing = asyncio.ensure_future(client.publish("a", "once"))
            assert await stays_undone(publishing)
        assert await asyncio.wait_for(publishing, DEADLINE) == 1
        assert [await heard(listener) for _ in range(2)] == [[b"message", b"a", b"once"]] * 2


@since_8
async def test_by_default_a_thousand_publishes_at_once_are_too_many(broker):
    async with Redis(port=broker.port) as client:
        publishing = [client.publish("a", "x") for _ in range(1000)]
        outcomes = await asyncio.gather(*publishing, return_exceptions=True)
    kinds = collections.Counter(map(type, outcomes))
    assert kinds == {int: 100, MaxConnectionsError: 900}


async def test_redis_pys_subscribe_does_not_wait_and_its_health_check_does_not_notice_a_frozen_server(broker):
    async with Redis(port=broker.port, health_check_interval=0.05) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("a")
        assert (await pubsub.get_message(timeout=DEADLINE))["type"] == "subscribe"
        with frozen(broker):
            for _ in range(4):
                assert await pubsub.get_message(timeout=SILENCE / 3) is None
            await asyncio.wait_for(pubsub.subscribe("b"), DEADLINE)
            assert b"b" in pubsub.channels
            assert await pubsub.get_message(timeout=SILENCE / 3) is None


@since_8
async def test_redis_pys_pubsub_heals_without_a_word_about_what_was_lost(broker):
    async with Redis(port=broker.port) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("a")
        await pubsub.get_message(timeout=DEADLINE)
        broker.kill_listeners()
        assert await client.publish("a", "lost") == 0
        assert (await pubsub.get_message(timeout=DEADLINE))["type"] == "subscribe"
        await client.publish("a", "heard")
        assert (await pubsub.get_message(timeout=DEADLINE))["data"] == b"heard"


@since_8
async def test_redis_pys_pubsub_takes_a_channel_back_that_it_was_leaving_when_the_connection_was_lost(broker):
    async with Redis(port=broker.port) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("a", "b")
        for _ in range(2):
            await pubsub.get_message(timeout=DEADLINE)
        with frozen(broker):
            await pubsub.unsubscribe("a")
            pubsub.connection._writer.transport.abort()
        await until(lambda: not broker.channels())
        messages = [await pubsub.get_message(timeout=DEADLINE) for _ in range(2)]
        assert {(message["type"], message["channel"]) for message in messages} == {
            ("subscribe", b"a"),
            ("subscribe", b"b"),
        }
        assert broker.channels() == {"a", "b"}


async def test_redis_pys_pubsub_can_only_listen_while_it_has_a_channel(broker):
    async with Redis(port=broker.port) as client, client.pubsub() as pubsub:
        with pytest.raises(RuntimeError):
            await pubsub.get_message(timeout=DEADLINE)
        await pubsub.subscribe("a")
        await pubsub.unsubscribe("a")
        async with asyncio.timeout(DEADLINE):
            assert [message["type"] async for message in pubsub.listen()] == ["subscribe", "unsubscribe"]


# The client without an event loop


def sync_client(port: int, **options: Any) -> redis.Redis:
    pool = redis.ConnectionPool(
        connection_class=redis.Connection,
        host="127.0.0.1",
        port=port,
        retry=SyncRetry(NoBackoff(), 0),
        protocol=2,
        **options,
    )
    return redis.Redis.from_pool(pool)


async def test_a_sync_client_that_may_not_retry_publishes_once_and_fails_in_time(broker):
    client = sync_client(broker.port, socket_timeout=0.4, socket_connect_timeout=0.4)
    async with dialled(broker.port) as listener:
        await ask(listener, "SUBSCRIBE", "a")
        assert client.execute_command("PUBLISH", b"a", b"\xff\x00") == 1
        assert await heard(listener) == [b"message", b"a", b"\xff\x00"]
        with frozen(broker):
            publishing = asyncio.ensure_future(asyncio.to_thread(client.execute_command, "PUBLISH", b"a", b"once"))
            await asyncio.wait([publishing], timeout=0.6)  # a second attempt would be under way, and succeed
        with pytest.raises(RedisTimeoutError):
            await publishing
        assert client.execute_command("PUBLISH", b"a", b"after") == 1
        assert [(await heard(listener))[2] for _ in range(2)] == [b"once", b"after"]
    assert len(broker.clients("normal")) == 1
    client.close()
    await until(lambda: not broker.clients("normal"), "closing a client closes the pool that it was made from")


async def test_a_sync_client_connects_again_by_itself_and_all_its_errors_are_of_one_kind(broker):
    client = sync_client(broker.port)
    client.execute_command("PUBLISH", b"a", b"")
    broker.kill()
    for _ in range(2):
        with pytest.raises((RedisError, OSError)):
            client.execute_command("PUBLISH", b"a", b"")
    broker.start()
    assert client.execute_command("PUBLISH", b"a", b"") == 0
    client.close()


@since_8
def test_a_client_that_does_not_say_which_library_it_is_has_no_answers_to_wait_for(shared_broker):
    for named, options in ((0, {"driver_info": None}), (2, {})):
        before = shared_broker.calls("client|setinfo")
        client = sync_client(shared_broker.port, **options)
        client.ping()
        client.close()
        assert shared_broker.calls("client|setinfo") - before == named


# Addresses and options


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://", {}),
        ("redis://example.org", {"host": "example.org"}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        (
            "redis://m%65:p%40ss%2F@host:7000/3?client_name=rooms",
            {"username": "me", "password": "p@ss/", "host": "host", "port": 7000, "db": 3, "client_name": "rooms"},
        ),
        (
            "rediss://host?ssl_ca_certs=/ca.pem&ssl_check_hostname=no",
            {
                "host": "host",
                "connection_class": SSLConnection,
                "ssl_ca_certs": "/ca.pem",
                "ssl_check_hostname": False,
            },
        ),
        (
            "unix://:secret@/run/my%20redis.sock",
            {"path": "/run/my redis.sock", "password": "secret", "connection_class": UnixDomainSocketConnection},
        ),
    ],
)
def test_a_url_is_taken_apart_into_options_of_a_connection(url, options):
    assert parse_url(url) == options


def test_a_url_that_leads_nowhere_is_a_value_error_which_may_show_the_password():
    """The reason why that error is neither chained nor quoted."""
    for url in ("http://host", "//host", ""):
        with pytest.raises(ValueError, match="redis://"):
            parse_url(url)
    with pytest.raises(ValueError, match="swordfish"):
        parse_url("redis://:swordfish/x@host")


def parameters(*classes: type) -> set[str]:
    """What the constructors of these classes and of their bases take by name."""
    constructors = [vars(base)["__init__"] for one in classes for base in one.__mro__[:-1] if "__init__" in vars(base)]
    return {name for constructor in constructors for name in inspect.signature(constructor).parameters}


def test_the_options_that_we_take_over_are_known_to_the_connections_of_both_kinds():
    here = parameters(Connection, UnixDomainSocketConnection)
    there = parameters(redis.Connection, redis.UnixDomainSocketConnection)
    since_7_1 = {"driver_info"}
    assert here - {"self", "kwargs"} >= _ALLOWED - since_7_1
    assert there >= _ALLOWED - since_7_1
    names = {name for name in parameters(SSLConnection) if name.startswith("ssl_")}
    assert {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"} <= names
    assert names <= parameters(redis.SSLConnection), "a sync publisher could not use the settings of an async client"


@pytest.mark.parametrize(
    "options",
    [{"username": "me", "password": "secret", "credential_provider": UsernamePasswordCredentialProvider()}, {"ssl": 1}],
)
def test_a_connection_that_is_made_of_what_it_does_not_take_says_so_at_once(options):
    with pytest.raises((RedisError, TypeError, ValueError)):
        Connection(**options)


def test_the_classes_of_connections_tell_tls_and_unix_sockets_from_tcp():
    assert issubclass(SSLConnection, Connection)
    assert not issubclass(UnixDomainSocketConnection, Connection)
    assert issubclass(UnixDomainSocketConnection, AbstractConnection)


@pytest.mark.parametrize(
    ("options", "connection_class"),
    [
        ({"host": "host", "port": 7000, "username": "me", "password": "secret"}, Connection),
        ({"host": "host", "port": 7000, "ssl": True, "ssl_ca_certs": "/ca.pem"}, SSLConnection),
        ({"unix_socket_path": "/run/redis.sock", "password": "secret"}, UnixDomainSocketConnection),
    ],
)
def test_a_client_shows_how_it_would_connect(options, connection_class):
    pool = Redis(**options).connection_pool
    assert pool.connection_class is connection_class
    shown = {"path" if name == "unix_socket_path" else name: value for name, value in options.items() if name != "ssl"}
    assert shown.items() <= pool.connection_kwargs.items()
    connection_class(**Server(pool.connection_class, pool.connection_kwargs, DEADLINE).options)


def test_tls_checks_the_certificate_and_the_name_unless_told_otherwise():
    checked = SSLConnection(ssl_check_hostname=True).ssl_context.get()
    assert (checked.verify_mode, checked.check_hostname) == (ssl.CERT_REQUIRED, True)
    unchecked = SSLConnection(ssl_check_hostname=True, ssl_cert_reqs="none").ssl_context.get()
    assert (unchecked.verify_mode, unchecked.check_hostname) == (ssl.CERT_NONE, False)


async def test_a_connection_sends_small_pieces_at_once(broker):
    async with dialled(broker.port) as connection:
        own = connection._writer.get_extra_info("socket")
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
