"""Publishing from code that is no node, with an event loop and without."""

import asyncio
import concurrent.futures
import contextlib
import gc
import inspect
import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from pydantic import BaseModel
from redis.asyncio import Redis
from redis_nodes import ROOM, Node, running_nodes, some_settings
from scripted_redis import LyingRedis, ScriptedRedis
from support import until

from fastapi_rooms import BackendUnavailable, ConfigurationError, InvalidName, MessageError, MessageType
from fastapi_rooms.backends.memory import Hub, MemoryBackend
from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.backends.redis.publisher import Publisher
from fastapi_rooms.backends.redis.sync_publisher import SyncPublisher
from fastapi_rooms.domain.envelope import EVERYBODY, connection_target, user_target
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.revocation import decode_revocation, revocation_keys

ANN = user_target("ann")
DEADLINE = 2.5
"""How long a call may take with the settings that everybody has, on a machine that is busy."""

one_kind_is_enough = pytest.mark.parametrize("broker_kind", ["valkey"], indirect=True)


class Menu(BaseModel):
    dish: str


class Either:
    """One of the two kinds, called in the same way."""

    def __init__(self, kind, source, **options):
        self.publisher = kind(source, settings=some_settings(**options))
        self.settings = self.publisher._settings

    async def call(self, name, *args, **options):
        method = attrgetter(name)(self.publisher)
        if not inspect.iscoroutinefunction(method):
            return await asyncio.to_thread(method, *args, **options)
        return await method(*args, **options)

    async def end(self):
        await self.call("stop" if isinstance(self.publisher, Publisher) else "close")


@pytest.fixture(params=[Publisher, SyncPublisher])
async def make(request):
    """Make publishers of one kind; they are ended at the end."""
    made = []

    def make(source, **options):
        made.append(Either(request.param, source, **options))
        return made[-1]

    yield make
    for either in made:
        await either.end()


async def listening(either, broker):
    node = Node(broker.url, EVERYBODY, ROOM, ANN, settings=either.settings)
    await node.start(required=True)
    await node.settled()
    return node


def plain(envelope):
    content = envelope.content
    if isinstance(content, Close):
        return envelope.target, content.code, content.reason
    return envelope.target, content.is_text, content.payload


@pytest.mark.parametrize(("seconds", "is_kept"), [(3600, True), (None, False)])
async def test_that_a_user_was_closed_is_kept_for_as_long_as_the_settings_say(each_broker, make, seconds, is_kept):
    either = make(each_broker.url, revocation_seconds=seconds)
    key = Channels(either.settings.key_prefix).of_key(revocation_keys("ann")[0])
    before = datetime.now(UTC)
    await either.call("close_user", "ann", 4501, "bye")
    assert each_broker.call("EXISTS", key) == is_kept
    if is_kept:
        node = await listening(either, each_broker)
        (value,) = await node.backend.peek([revocation_keys("ann")[0]])
        revocation = decode_revocation(value)
        await node.backend.stop()
        assert before - timedelta(milliseconds=1) <= revocation.at <= datetime.now(UTC)
        assert (revocation.close.code, revocation.close.reason) == (4501, "bye")
        assert 3_500 < each_broker.call("TTL", key) <= 3_600


async def test_those_who_hear_are_told_that_a_user_is_closed_also_if_it_cannot_be_kept(each_broker, make):
    either = make(each_broker.url.replace("://", "://forgetful:x@"))
    each_broker.call("ACL", "SETUSER", "forgetful", "reset", "on", ">x", "&*", "~*", "+@all", "-set")
    node = await listening(either, each_broker)
    with pytest.raises(BackendUnavailable):
        await either.call("close_user", "ann", 4501)
    assert [plain(envelope) for envelope in await node.received(1)] == [(ANN, 4501, "")]
    await node.backend.stop()
    each_broker.call("ACL", "DELUSER", "forgetful")


async def test_everybody_a_room_and_a_user_are_reached_and_closed(each_broker, make):
    either = make(each_broker.url)
    node = await listening(either, each_broker)
    assert await either.call("broadcast", "to all") is None
    assert await either.call("broadcast_to_room", "kitchen", "to a room") is None
    assert await either.call("broadcast_to_room", "hall", "to another room") is None
    assert await either.call("send_to_user", "ann", "to a user") is None
    assert await either.call("send_to_user", "bob", "to another user") is None
    assert await either.call("close_user", "ann") is None
    assert await either.call("close_user", "ann", 4001, "bye 🦆") is None
    assert await either.call("broadcast", None, MessageType.CLOSE) is None
    one, other = "1" * 32, "2" * 32
    assert await either.call("send_personal", one, "to one") is None
    assert await either.call("close_connection", one, 4002) is None
    assert await either.call("close_room", "kitchen", 4003) is None
    assert await either.call("broadcast_to_room", "kitchen", "to others", exclude=one) is None
    assert await either.call("broadcast", "to others", exclude=[one, other]) is None
    assert await either.call("close_user", "ann", 4004, exclude=one) is None
    assert [plain(envelope) for envelope in await node.received(12)] == [
        (EVERYBODY, True, b"to all"),
        (ROOM, True, b"to a room"),
        (ANN, True, b"to a user"),
        (ANN, 1000, ""),
        (ANN, 4001, "bye 🦆"),
        (EVERYBODY, 1000, ""),
        (connection_target(one), True, b"to one"),
        (connection_target(one), 4002, ""),
        (ROOM, 4003, ""),
        (ROOM, True, b"to others"),
        (EVERYBODY, True, b"to others"),
        (ANN, 4004, ""),
    ]
    assert len({envelope.origin for envelope in node.envelopes}) == 1
    assert {envelope.excluded for envelope in node.envelopes[:9]} == {frozenset()}
    assert [envelope.excluded for envelope in node.envelopes[9:]] == [{one}, {one, other}, {one}]
    await node.backend.stop()


async def test_a_user_is_left_out_and_moved(each_broker, make):
    either = make(each_broker.url)
    node = await listening(either, each_broker)
    await either.call("broadcast_to_room", "kitchen", "to others", exclude_user="ann")
    await either.call("broadcast", "to others", exclude_user="ann")
    await either.call("users.join_room", "ann", "kitchen")
    await either.call("users.leave_room", "ann", "kitchen")
    said = await node.received(4)
    assert [(one.target, one.excluded_user) for one in said] == [
        (ROOM, "ann"),
        (EVERYBODY, "ann"),
        (ANN, None),
        (ANN, None),
    ]
    assert [one.content for one in said[2:]] == [Move("kitchen", joins=True), Move("kitchen", joins=False)]
    for call in ("broadcast", "users.join_room"):
        with pytest.raises(InvalidName):
            await (either.call(call, "x", exclude_user="") if call == "broadcast" else either.call(call, "ann", ""))
    await node.backend.stop()


@one_kind_is_enough
async def test_they_take_along_where_in_a_trace_the_caller_is(broker, make):
    either = make(broker.url)
    node = await listening(either, broker)
    with trace.use_span(NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))):
        await either.call("broadcast_to_room", "kitchen", "inside")
    await either.call("broadcast_to_room", "kitchen", "outside")
    inside, outside = await node.received(2)
    assert inside.trace.traceparent == f"00-{1:032x}-{2:016x}-01"
    assert outside.trace is None


@pytest.mark.parametrize(
    ("args", "is_text", "payload"),
    [
        (("🦆\0é",), True, "🦆\0é".encode()),
        (("",), True, b""),
        ((bytes(range(256)),), False, bytes(range(256))),
        ((b"\r\n$3\r\n",), False, b"\r\n$3\r\n"),
        (({"a": [1, None, "ü"]},), True, '{"a":[1,null,"ü"]}'.encode()),
        ((Menu(dish="soup"),), True, b'{"dish":"soup"}'),
        (('{"ready": 1}', MessageType.JSON), True, b'{"ready": 1}'),
        ((b"text", "text"), True, b"text"),
        (("text", "bytes"), False, b"text"),
        ((None, "ping"), True, b'{"type":"ping"}'),
    ],
)
async def test_messages_arrive_to_the_byte(each_broker, make, args, is_text, payload):
    either = make(each_broker.url)
    node = await listening(either, each_broker)
    for name, to in (("broadcast", ()), ("broadcast_to_room", ("kitchen",)), ("send_to_user", ("ann",))):
        await either.call(name, *to, *args)
    assert [plain(envelope)[1:] for envelope in await node.received(3)] == [(is_text, payload)] * 3
    await node.backend.stop()


async def test_what_cannot_be_sent_is_refused_before_anything_is_done(make):
    either = make("redis://127.0.0.1:1", max_envelope_bytes=1000)
    for args in (("\ud800",), (object(),), ("x" * 1000,), ("no json", "json")):
        for name, to in (("broadcast", ()), ("broadcast_to_room", ("kitchen",)), ("send_to_user", ("ann",))):
            with pytest.raises(MessageError):
                await either.call(name, *to, *args)
    for code in (1006, 70_000):
        with pytest.raises(ConfigurationError):
            await either.call("close_user", "ann", code)


async def test_messages_to_a_room_arrive_in_order(each_broker, make):
    either = make(each_broker.url)
    node = await listening(either, each_broker)
    for number in range(200):
        await either.call("broadcast_to_room", "kitchen", str(number))
    await node.received(200)
    assert node.heard == [str(number) for number in range(200)]
    await node.backend.stop()


async def test_a_call_while_redis_is_away_fails_in_time_and_a_later_one_succeeds(broker, make):
    either = make(broker.url)
    broker.kill()
    begin = time.monotonic()
    with pytest.raises(BackendUnavailable, match=f"127.0.0.1:{broker.port}.*again"):
        await either.call("broadcast", "lost")
    assert time.monotonic() - begin < DEADLINE
    broker.start()
    node = await listening(either, broker)
    await either.call("broadcast", "arrives")
    await node.received(1)
    broker.kill()
    with pytest.raises(BackendUnavailable, match=r"the nodes were not told, or not for certain: .*Send again later"):
        await either.call("broadcast", "lost")
    broker.start()
    await node.reported(1)
    await _until_told(either)
    await node.received(2)
    assert node.heard == ["arrives", "again"], "what has failed is never sent again"
    await node.backend.stop()


async def _until_told(either):
    """A publisher connects by itself when Redis is back."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await either.call("broadcast", "again")
            except BackendUnavailable:
                await asyncio.sleep(0.01)


@one_kind_is_enough
async def test_a_call_while_redis_stands_still_fails_in_time_and_is_not_repeated(broker, make):
    either = make(broker.url)
    node = await listening(either, broker)
    await either.call("broadcast", "before")
    calls = broker.calls("publish")
    broker.freeze()
    begin = time.monotonic()
    with pytest.raises(BackendUnavailable, match="not told, or not for certain"):
        await either.call("broadcast", "uncertain")
    assert time.monotonic() - begin < DEADLINE
    broker.thaw()
    await _until_told(either)
    await until(lambda: "again" in node.heard)
    assert node.heard.count("uncertain") <= 1
    assert broker.calls("publish") > calls
    await node.backend.stop()


@one_kind_is_enough
@pytest.mark.parametrize("call", [("broadcast", "lost"), ("close_user", "ann")], ids=lambda call: call[0])
async def test_the_first_call_to_a_redis_that_stands_still_fails_in_time(broker, make, call):
    broker.freeze()
    begin = time.monotonic()
    with pytest.raises(BackendUnavailable):
        await make(broker.url).call(*call)
    assert time.monotonic() - begin < DEADLINE


@one_kind_is_enough
@pytest.mark.parametrize("delay", [0.05, 0.11, 0.2])
async def test_a_first_call_over_a_slow_network_fails_or_arrives_in_time(broker, proxy, make, delay):
    broker.call("CONFIG", "SET", "requirepass", "secret")
    proxy.delay(delay)
    either = make(f"redis://:secret@127.0.0.1:{proxy.port}", publish_timeout=0.5)
    begin = time.monotonic()
    with contextlib.suppress(BackendUnavailable):
        await either.call("broadcast", "slow")
    assert time.monotonic() - begin < 0.5 + 0.5
    proxy.restore()


@pytest.mark.parametrize("answer", [b"-NOPERM no permissions\r\n", b"nonsense\r\n", b"-LOADING\r\n", None])
async def test_what_is_no_answer_fails_and_is_sent_once(make, answer):
    async with LyingRedis() as lying:
        either = make(lying.url, publish_timeout=0.3, probe_interval=600)
        await either.call("broadcast", "before")
        lying.answers = answer
        with pytest.raises(BackendUnavailable):
            await either.call("broadcast", "sent once")
        assert sum(b"sent once" in payload for _, payload in lying.published) == 1


async def test_it_can_be_ended_twice_and_used_again(each_broker, make):
    either = make(each_broker.url)
    node = await listening(either, each_broker)
    await either.end()
    for count in range(1, 4):
        await either.call("broadcast", str(count))
        await either.end()
        await either.end()
    await node.received(3)
    assert node.heard == ["1", "2", "3"]
    await node.backend.stop()


async def test_it_leaves_no_connection_and_no_task(broker, make):
    before = asyncio.all_tasks()
    either = make(broker.url)
    await either.call("broadcast", "hello")
    assert broker.clients()
    await either.end()
    await until(lambda: broker.clients() == [])
    assert asyncio.all_tasks() == before


async def test_a_url_that_leads_nowhere_is_refused_when_it_is_made(make):
    with pytest.raises(ConfigurationError):
        make("nowhere")


async def test_a_ready_client_says_where_redis_is(each_broker, make):
    client = Redis(port=each_broker.port)
    either = make(client)
    node = await listening(either, each_broker)
    await either.call("broadcast", "hello")
    await node.received(1)
    await node.backend.stop()
    await client.aclose()


async def test_settings_may_be_left_out(broker):
    async with running_nodes(broker.url, 1, key_prefix="rooms") as (node,):
        async with Publisher(broker.url) as publisher:
            await publisher.broadcast("async")
        with SyncPublisher(broker.url) as sync_publisher:
            await asyncio.to_thread(sync_publisher.broadcast, "sync")
        await node.received(2)
        assert node.heard == ["async", "sync"]


# With an event loop


async def test_the_status_and_the_repr_say_whether_it_is_connected(each_broker):
    publisher = Publisher(each_broker.url)
    assert not publisher.status.connected
    assert repr(publisher) == f"<Publisher <RedisBackend 127.0.0.1:{each_broker.port} (degraded)>>"
    async with publisher as entered:
        assert entered is publisher
        assert publisher.status.connected
        assert repr(publisher) == f"<Publisher <RedisBackend 127.0.0.1:{each_broker.port}>>"
        await publisher.start()
    assert not publisher.status.connected


async def test_starting_without_redis_says_what_to_do():
    publisher = Publisher("redis://127.0.0.1:1")
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=r"Redis is not there: .* Start it, and send again"):
            await publisher.start()
    async with ScriptedRedis() as silent:
        silent.greeting = None
        publisher = Publisher(silent.url, settings=some_settings(publish_timeout=0.2))
        with pytest.raises(BackendUnavailable, match=r"no answer within|cannot be reached"):
            await publisher.start()


async def test_a_call_of_several_steps_does_not_start_a_second_time():
    class Away(MemoryBackend):
        starts = 0

        async def start(self, *args, **options):
            self.starts += 1
            raise BackendUnavailable("away")

    backend = Away(Hub())
    publisher = Publisher(backend)
    for number in (1, 2):
        with pytest.raises(BackendUnavailable, match="Redis is not there: "):
            await publisher.close_user("ann")
        assert backend.starts == number, "each call tries it once"


async def test_calls_at_once_fail_together_when_redis_does_not_answer():
    async with ScriptedRedis() as silent:
        silent.greeting = None
        publisher = Publisher(silent.url, settings=some_settings(publish_timeout=0.3))
        begin = time.monotonic()
        told = await asyncio.gather(*(publisher.broadcast("hello") for _ in range(10)), return_exceptions=True)
        assert time.monotonic() - begin < 0.8
        assert {type(error) for error in told} == {BackendUnavailable}
        assert len({id(error) for error in told}) == 10


async def test_calls_at_once_connect_once_and_keep_their_order(broker):
    async with running_nodes(broker.url, 1) as (node,):
        publisher = Publisher(broker.url, settings=node.settings)
        await asyncio.gather(*(publisher.broadcast(str(number)) for number in range(500)))
        await node.received(500)
        assert node.heard == [str(number) for number in range(500)]
        assert len(broker.clients()) == 4, "two of the node, two of the publisher"
        await publisher.stop()


async def test_a_call_that_is_cancelled_takes_nothing_back(each_broker):
    async with running_nodes(each_broker.url, 1) as (node,):
        async with Publisher(each_broker.url, settings=node.settings) as publisher:
            telling = asyncio.create_task(publisher.broadcast("first"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            telling.cancel()
            await publisher.broadcast("second")
        await node.received(2)
        assert node.heard == ["first", "second"]


async def test_ending_waits_for_what_is_under_way(each_broker):
    async with running_nodes(each_broker.url, 1) as (node,):
        publisher = Publisher(each_broker.url, settings=node.settings)
        await publisher.start()
        telling = [asyncio.create_task(publisher.broadcast(str(number))) for number in range(100)]
        await asyncio.sleep(0)
        await publisher.stop()
        await asyncio.gather(*telling)
        await node.received(100)


@pytest.mark.parametrize("stops", [True, False])
def test_it_works_under_one_asyncio_run_after_the_other(each_broker, stops):
    publisher = Publisher(each_broker.url, settings=some_settings())

    async def job():
        node = Node(each_broker.url, EVERYBODY, settings=publisher._settings)
        await node.start(required=True)
        await node.settled()
        await asyncio.gather(*(publisher.broadcast(str(number)) for number in range(5)))
        await node.received(5)
        await node.backend.stop()
        if stops:
            await publisher.stop()
        return node.heard

    for _ in range(3):
        assert asyncio.run(job()) == ["0", "1", "2", "3", "4"]
    asyncio.run(publisher.stop())
    assert not publisher.status.connected


# Without an event loop


def heard_by(broker, settings, do, count):
    """Return what a node hears while something is done in this thread."""
    done = threading.Event()
    ready = threading.Event()

    async def listen():
        node = Node(broker.url, EVERYBODY, settings=settings)
        await node.start(required=True)
        await node.settled()
        ready.set()
        await asyncio.to_thread(done.wait, 30)
        try:
            await node.received(count)
        finally:
            await node.backend.stop()
        return node.heard

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        listening = pool.submit(asyncio.run, listen())
        try:
            assert ready.wait(10)
            do()
        finally:
            done.set()
        return listening.result(30)


def test_threads_share_a_publisher_and_each_keeps_its_order(each_broker):
    publisher = SyncPublisher(each_broker.url, settings=some_settings())

    def tell(thread):
        for number in range(100):
            publisher.broadcast(f"{thread} {number}")

    def tell_in_threads():
        with publisher, concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(tell, range(8)))

    heard = heard_by(each_broker, publisher._settings, tell_in_threads, 800)
    for thread in range(8):
        assert [line for line in heard if line.startswith(f"{thread} ")] == [f"{thread} {n}" for n in range(100)]


def test_threads_that_call_first_at_once_leave_no_connection_behind(broker):
    begin = threading.Barrier(8)
    for _ in range(10):
        publisher = SyncPublisher(broker.url)

        def tell(publisher=publisher):
            begin.wait(10)
            publisher.broadcast("hello")

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for told in [pool.submit(tell) for _ in range(8)]:
                told.result(10)
        publisher.close()
        eventually(lambda: broker.clients() == [])


@one_kind_is_enough
def test_it_may_be_closed_while_others_use_it(broker):
    publisher = SyncPublisher(broker.url)
    is_over = threading.Event()

    def tell():
        told = 0
        while not is_over.is_set():
            try:
                publisher.broadcast("hello")
                told += 1
            except BackendUnavailable:
                continue
        return told

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            telling = [pool.submit(tell) for _ in range(4)]
            for _ in range(200):
                publisher.close()
                time.sleep(0.001)
            is_over.set()
            assert sum(one.result(10) for one in telling) > 0
    finally:
        sys.setswitchinterval(interval)
    publisher.close()
    gc.collect()
    eventually(lambda: broker.clients() == [])


def eventually(fact):
    end = time.monotonic() + 5
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_says_where_it_leads(each_broker):
    with SyncPublisher(each_broker.url) as publisher:
        assert repr(publisher) == f"<SyncPublisher 127.0.0.1:{each_broker.port}>"
        publisher.broadcast(json.dumps({"a": 1}))
    publisher.close()


async def test_it_says_nothing_of_itself_that_it_would_have_to_wait_for():
    async with LyingRedis() as lying:
        with SyncPublisher(lying.url) as publisher:
            await asyncio.to_thread(publisher.broadcast, "hello")
        assert lying.greetings == []


@one_kind_is_enough
def test_who_is_interrupted_while_it_is_kept_is_not_told_something_else(broker, monkeypatch):
    publisher = SyncPublisher(broker.url, settings=some_settings())
    told = []

    def interrupt(*command):
        told.append(command[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(publisher._connected_client(), "execute_command", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publisher.close_user("ann")
    assert told == ["SET"]
    publisher.close()
