"""Fresh connections: made within a deadline or not at all, used once, and thrown away whole."""

import asyncio

import pytest
from redis.asyncio.connection import AbstractConnection, Connection
from scripted_redis import ScriptedRedis
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis.dialing import (
    Lost,
    Server,
    ask,
    check_role,
    close,
    hang_up,
    pack,
    read,
    send,
    unavailable,
)


def server_at(port, timeout=0.3, **options):
    return Server(Connection, {"host": "127.0.0.1", "port": port, **options}, timeout)


@pytest.fixture
async def scripted():
    async with ScriptedRedis() as made:
        yield made


@pytest.fixture(params=["hiredis", "python"])
def parser(request, monkeypatch):
    """The parser in C, which is there if hiredis is, and the one that is always there."""
    from redis._parsers import _AsyncHiredisParser, _AsyncRESP2Parser

    parsers = {"hiredis": _AsyncHiredisParser, "python": _AsyncRESP2Parser}
    original = AbstractConnection.__init__

    def init(self, **options):
        original(self, **{**options, "parser_class": parsers[request.param]})

    monkeypatch.setattr(AbstractConnection, "__init__", init)
    return request.param


async def test_it_keeps_address_credentials_and_tls_and_nothing_else():
    server = Server(
        Connection,
        {"host": "redis", "port": 7000, "username": "ann", "password": "secret", "db": 3, "retry": None,
         "socket_timeout": 9, "decode_responses": True, "max_connections": 1, "protocol": 3},
        1,
    )  # fmt: skip
    assert server.options == {"host": "redis", "port": 7000, "username": "ann", "password": "secret"}
    assert server.address == ("redis", 7000)
    assert repr(server) == object.__repr__(server), "a repr would hold the password"


async def test_another_server_is_reached_in_the_same_way():
    other = server_at(7000, password="secret", client_name="web").at("10.0.0.2", 7001)
    assert other.address == ("10.0.0.2", 7001)
    assert other.options == {"host": "10.0.0.2", "port": 7001, "password": "secret", "client_name": "web"}


async def test_a_connection_asks_and_is_answered(each_broker, parser):
    connection = await server_at(each_broker.port).dial()
    assert (
        type(connection._parser).__name__ == {"hiredis": "_AsyncHiredisParser", "python": "_AsyncRESP2Parser"}[parser]
    )
    assert await ask(connection, "ECHO", "🦆") == "🦆".encode()
    answer = await ask(connection, "NONSENSE")
    assert isinstance(answer, Exception), "an error that answers a command is an answer"
    await send(connection, [pack(connection, "ECHO", b"\0\xff"), pack(connection, "ECHO", b"")])
    assert [await read(connection), await read(connection)] == [b"\0\xff", b""]
    await close(connection)


async def test_nothing_is_sent_or_read_on_a_connection_that_is_gone(each_broker, parser):
    connection = await server_at(each_broker.port).dial()
    hang_up(connection)
    hang_up(connection)
    with pytest.raises(Lost):
        await read(connection)
    with pytest.raises(Lost, match="closed"):
        await send(connection, [pack(connection, "PING")])
    await close(connection)
    await close(connection)
    hang_up(connection)
    assert not connection.is_connected, "redis-py would have connected anew"


async def test_a_reader_sees_that_its_connection_was_hung_up(each_broker, parser):
    connection = await server_at(each_broker.port).dial()
    reading = asyncio.create_task(read(connection))
    await asyncio.sleep(0)
    hang_up(connection)
    with pytest.raises(Lost):
        await asyncio.wait_for(reading, 1)
    await close(connection)


async def test_a_write_to_a_peer_that_reset_the_connection_is_lost(scripted):
    connection = await server_at(scripted.port).dial()
    (await scripted.visit()).hang_up()

    async def send_much():
        for _ in range(1000):
            await send(connection, [pack(connection, "ECHO", b"x" * 65536)])
            await asyncio.sleep(0.001)

    with pytest.raises(Lost):
        await send_much()
    await close(connection)


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense\r\n",
        b"$abc\r\n",
        b"*-7\r\n",
        b":seven\r\n",
        b"\0\xff\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*1\r\n" * 5000 + b"+OK\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-ERR max number of clients reached\r\n",
        b"-NOAUTH Authentication required.\r\n",
    ],
    ids=lambda garbage: garbage[:12],
)
async def test_garbage_ends_a_connection_or_is_an_answer_but_never_hangs(scripted, parser, garbage):
    connection = await server_at(scripted.port).dial()
    (await scripted.visit()).say(garbage)
    (await scripted.visit()).end()
    try:
        await asyncio.wait_for(read(connection), 2)
    except Lost:
        pass
    finally:
        await close(connection)


@pytest.mark.parametrize("greeting", [b"nonsense\r\n", b"$abc\r\n", b"-ERR \xff\xfe\r\n", b":seven\r\n", b"*-7\r\n"])
async def test_garbage_in_place_of_a_greeting_is_no_connection(scripted, parser, greeting):
    scripted.greeting = greeting
    with pytest.raises(BackendUnavailable, match=f"Redis at 127.0.0.1:{scripted.port} cannot be reached: "):
        await server_at(scripted.port, password="secret").dial()
    await until(lambda: all(visit.is_over for visit in scripted.visits), "it hung up")


async def test_who_does_not_answer_in_time_is_no_connection(scripted):
    scripted.greeting = None
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(BackendUnavailable, match="cannot be reached: "):
        await server_at(scripted.port, 0.2).dial()
    assert 0.15 < loop.time() - begin < 1
    await until(lambda: scripted.visits[0].is_over, "it hung up")


async def test_who_is_not_there_is_no_connection():
    with pytest.raises(BackendUnavailable, match=r"Redis at 127\.0\.0\.1:1 cannot be reached: Error 111 connecting"):
        await server_at(1).dial()
    with pytest.raises(BackendUnavailable, match=r"Redis at nobody\.invalid:6379 cannot be reached"):
        await Server(Connection, {"host": "nobody.invalid"}, 5).dial()


async def test_dialing_that_is_cancelled_leaves_nothing(scripted):
    scripted.greeting = None
    dialing = asyncio.create_task(server_at(scripted.port, 5).dial())
    visit = await scripted.visit()
    dialing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialing
    await until(lambda: visit.is_over, "it hung up")


async def test_one_question_is_asked_on_a_connection_of_its_own(each_broker):
    assert await server_at(each_broker.port).ask("ECHO", "hello") == b"hello"
    with pytest.raises(BackendUnavailable, match="refused NONSENSE: unknown command"):
        await server_at(each_broker.port).ask("NONSENSE")


async def test_a_question_that_is_not_answered_fails_and_hangs_up(scripted):
    with pytest.raises(BackendUnavailable, match=r"did not answer ROLE: TimeoutError"):
        await server_at(scripted.port, 0.1).ask("ROLE")
    asking = asyncio.create_task(server_at(scripted.port, 5).ask("ROLE"))
    visit = await scripted.visit(1)
    assert await visit.command() == [b"ROLE"]
    visit.hang_up()
    with pytest.raises(BackendUnavailable, match="did not answer ROLE: "):
        await asking
    await until(lambda: scripted.visits[0].is_over, "it hung up")


@pytest.mark.parametrize("nonsense", [b":seven\r\n", b"$abc\r\n", b"nonsense\r\n"])
async def test_a_question_that_is_answered_with_nonsense_fails_and_hangs_up(scripted, parser, nonsense):
    asking = asyncio.create_task(server_at(scripted.port, 5).ask("ROLE"))
    visit = await scripted.visit()
    await visit.command()
    visit.say(nonsense)
    with pytest.raises(BackendUnavailable, match="did not answer ROLE: "):
        await asking
    await until(lambda: visit.is_over, "it hung up")


@pytest.mark.parametrize("answer", [[b"slave", b"127.0.0.1", 7000, b"connected", 0], [], b"", None, b"sentinel", 7])
def test_whoever_is_no_master_is_refused(answer):
    with pytest.raises(BackendUnavailable, match="is no master any more"):
        check_role(answer)


def test_a_master_is_a_master():
    check_role([b"master", 0, []])


def test_an_error_without_words_is_told_by_its_kind():
    error = EOFError()
    made = unavailable("Redis is gone", error, ". Wait")
    assert (str(made), made.__cause__) == ("Redis is gone: EOFError. Wait", error)


def test_an_error_that_quotes_is_cut_and_not_chained():
    made = unavailable("refused", ValueError("unknown command 'AUTH', with args beginning with: 'ann' 'secret'"))
    assert (str(made), made.__cause__, made.__context__) == ("refused: unknown command 'AUTH'", None, None)
