"""The backend over Redis on real servers: what it costs, what it wants of them, and what is made of what they say."""

import asyncio
import contextvars
import gc
import logging
import pickle
import random
import tracemalloc
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from redis_nodes import ROOM, Node, running_nodes, some_settings, text
from scripted_redis import LyingRedis, ScriptedRedis
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, connection_target, room_target, user_target
from fastapi_rooms.testing import Recorder

ROOMS = 10_000


def rooms(count, name="room"):
    return [room_target(f"{name} {number}") for number in range(count)]


def channel_of(node, target):
    return Channels(node.settings.key_prefix).of(target).decode()


def wanted_channels(node, targets):
    own = Channels(node.settings.key_prefix).of_node(node.node_id, 0).decode()
    return {own, *(channel_of(node, target) for target in targets)}


# What it costs


async def test_each_node_has_one_connection_that_listens_and_one_that_publishes(broker):
    async with running_nodes(broker.url, 3, ROOM) as nodes:
        for node in nodes:
            await node.backend.subscribe(rooms(50))
        for node in nodes:
            await asyncio.gather(*(node.say("hello", room) for room in rooms(50)))
        assert len(broker.clients("pubsub")) == 3
        assert len(broker.clients("normal")) == 3
        assert {client["resp"] for client in broker.clients()} == {"2"}
    await until(lambda: broker.clients() == [])


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_rooms_that_come_and_go_while_redis_is_away_leave_nothing(scheme):
    node = Node(f"{scheme}://127.0.0.1:1", ROOM, settings=some_settings(publish_timeout=0.2))
    await node.start()

    async def come_and_go(name):
        for number in range(ROOMS):
            here = [room_target(f"{name} {number}"), user_target(f"{name} {number}")]
            await node.backend.subscribe(here)
            node.backend.unsubscribe(here)

    await come_and_go("first")
    gc.collect()
    tracemalloc.start()
    try:
        await come_and_go("second")
        gc.collect()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left / ROOMS < 5, "bytes for a room and a user"
    await node.backend.stop()


async def test_a_publish_is_one_publish_whoever_hears_it(broker):
    async with running_nodes(broker.url, 3, *rooms(50), probe_interval=600) as (one, *_):
        before = broker.calls("publish")
        for target in (EVERYBODY, *rooms(20), user_target("ann"), connection_target(uuid4().hex)):
            await one.say("hello", target)
        assert broker.calls("publish") - before == 23


async def test_a_subscription_is_one_command_for_many_and_none_for_what_is_known(broker):
    async with running_nodes(broker.url, 1, probe_interval=600) as (node,):
        before = broker.calls("subscribe")
        await node.backend.subscribe(rooms(500))
        await node.backend.subscribe(rooms(500))
        assert broker.calls("subscribe") - before == 1
        node.backend.unsubscribe(rooms(500))
        await node.settled()
        assert broker.calls("unsubscribe") == 1


async def test_a_node_without_members_in_a_room_receives_nothing_of_it(broker):
    async with running_nodes(broker.url, 3, probe_interval=600) as (speaker, listener, other):
        await listener.backend.subscribe((ROOM,))
        assert broker.call("PUBSUB", "NUMSUB", channel_of(listener, ROOM)) == [channel_of(listener, ROOM), 1]
        before = broker.client.info("stats")["total_net_output_bytes"]
        for _ in range(1000):
            await speaker.say("x" * 1000)
        await listener.received(1000)
        sent = broker.client.info("stats")["total_net_output_bytes"] - before
        assert 1_000_000 < sent < 1_500_000, "all of it was sent to one node"
        assert other.envelopes == []


async def test_a_thousand_publishes_at_once_raise_nothing_and_need_one_connection(broker):
    async with running_nodes(broker.url, 2, ROOM) as (one, two):
        made = int(broker.client.info("stats")["total_connections_received"])
        await asyncio.gather(*(one.say(str(number)) for number in range(1000)))
        assert int(broker.client.info("stats")["total_connections_received"]) == made
        await two.received(1000)
        assert two.heard == [str(number) for number in range(1000)]
        assert one.backend.status.undelivered == 0


async def test_ten_thousand_rooms_are_heard_again_within_two_seconds(broker):
    async with running_nodes(broker.url, 1, *rooms(ROOMS)) as (node,):
        assert len(broker.channels()) == ROOMS + 2
        begin = asyncio.get_running_loop().time()
        assert broker.kill_listeners() == 1
        await until(lambda: node.gaps)
        took = asyncio.get_running_loop().time() - begin
        assert node.gaps[0].targets == {EVERYBODY, *rooms(ROOMS)}
        assert node.backend.is_settled()
        assert len(broker.channels()) == ROOMS + 2
        assert took < 2, f"{took:.2f} s"


async def test_an_open_room_takes_little_memory(broker):
    targets = rooms(ROOMS)
    async with running_nodes(broker.url, 1) as (node,):
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await node.backend.subscribe(targets)
            await node.settled()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        taken = (after - before) / ROOMS
        assert taken < 600, f"{taken:.0f} bytes a room, beside its name"


async def test_rooms_that_come_and_go_leave_nothing_behind(broker):
    async with running_nodes(broker.url, 1) as (node,):
        tracemalloc.start()
        try:
            await _come_and_go(node)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(5):
                await _come_and_go(node)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 400_000, "nothing for each of the 5,000 rooms"
        assert broker.channels() == wanted_channels(node, [EVERYBODY])


async def _come_and_go(node):
    many = rooms(1000, uuid4().hex)
    await node.backend.subscribe(many)
    node.backend.unsubscribe(many)
    await node.settled()


# What is wanted


async def test_whatever_is_wanted_and_lost_at_rest_redis_has_exactly_what_is_wanted(broker):
    dice = random.Random(3)
    pool = rooms(200)
    wanted = {EVERYBODY}
    async with running_nodes(broker.url, 1, publish_timeout=1) as (node,):
        for step in range(300):
            some = dice.sample(pool, dice.randint(1, 40))
            if dice.random() < 0.5:
                wanted.update(some)
                ready = asyncio.ensure_future(node.backend.subscribe(some))
                if dice.random() < 0.3:
                    ready.cancel()
                if dice.random() < 0.3:
                    await asyncio.wait([ready])
            else:
                wanted.difference_update(some)
                node.backend.unsubscribe(some)
            if step % 60 == 59:
                broker.kill_listeners()
            if dice.random() < 0.3:
                await asyncio.sleep(0)
        await until(lambda: node.backend.is_settled() and node.backend.status.connected)
        assert broker.channels() == wanted_channels(node, wanted)


async def test_a_subscription_that_is_ready_is_known_to_redis(each_broker):
    async with running_nodes(each_broker.url, 1) as (node,):
        for number, room in enumerate(rooms(50)):
            await node.backend.subscribe((room, user_target(str(number))))
            for target in (room, user_target(str(number))):
                assert each_broker.call("PUBSUB", "NUMSUB", channel_of(node, target))[1] == 1


async def test_apps_with_prefixes_of_their_own_do_not_hear_each_other(each_broker):
    async with (
        running_nodes(each_broker.url, 2, ROOM) as (one, two),
        running_nodes(each_broker.url, 1, ROOM) as (other,),
    ):
        for target in (ROOM, EVERYBODY):
            await one.say("hello", target)
        await two.received(2)
        await one.say("last")
        await two.received(3)
        assert other.envelopes == []


async def test_subscribing_can_be_waited_for_in_every_way(each_broker):
    async with running_nodes(each_broker.url, 1) as (node,):
        await asyncio.wait_for(node.backend.subscribe((room_target("1"),)), 5)
        await asyncio.gather(node.backend.subscribe((room_target("2"),)), node.backend.subscribe((room_target("2"),)))
        ready = node.backend.subscribe((room_target("3"), room_target("4")))
        await ready
        await ready
        waiting = [asyncio.ensure_future(node.backend.subscribe((room_target("5"),))) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.gather(*waiting[1:])
        assert waiting[0].cancelled()
        await node.settled()


async def test_callers_that_are_cancelled_take_nothing_back_even_if_it_is_stopped(broker):
    many = 200
    async with running_nodes(broker.url, 2, ROOM) as (one, two):
        for number in range(many):
            asyncio.ensure_future(one.say(str(number) + "x" * 20_000)).cancel()
        await one.backend.stop()
        await two.received(many)
        assert [word.rstrip("x") for word in two.heard] == [str(number) for number in range(many)]


# What arrives


def envelope_from_elsewhere(target=ROOM, content="hello"):
    return Envelope(uuid4().hex, target, text(content)).encode()


async def test_what_is_no_envelope_is_dropped_counted_and_said_once_a_minute(each_broker, caplog):
    async with running_nodes(each_broker.url, 1, ROOM, max_envelope_bytes=10_000) as (node,):
        good = envelope_from_elsewhere()
        garbage = [
            b"",
            b"{}",
            b"\0" * 1000,
            pickle.dumps({"room": "kitchen"}),
            good[:30],
            good[:2] + b"\x09" + good[3:],
            good + b"x" * 10_000,
            envelope_from_elsewhere(room_target("hall")),
            envelope_from_elsewhere(user_target("kitchen")),
            envelope_from_elsewhere(EVERYBODY),
        ]
        for payload in (*garbage, good):
            each_broker.call("PUBLISH", channel_of(node, ROOM), payload)
        await node.received(1)
        assert node.heard == ["hello"]
        assert node.backend.status.undecodable == len(garbage)
        assert node.backend.status.connected
        (record,) = [record for record in caplog.records if "no envelope" in record.getMessage()]
        assert record.levelno == logging.WARNING
        assert channel_of(node, ROOM) in record.getMessage()
        assert "kitchen}" not in record.getMessage(), "no payload is shown"


async def test_what_others_say_on_the_channel_of_a_node_is_counted_and_no_proof(each_broker):
    async with running_nodes(each_broker.url, 1, probe_interval=600) as (node,):
        channel = Channels(node.settings.key_prefix).of_node(node.node_id, 0)
        for payload in (b"", b"garbage", envelope_from_elsewhere(), node.backend._mark + b"0"):
            each_broker.call("PUBLISH", channel, payload)
        await until(lambda: node.backend.status.undecodable == 3, "an old probe of its own is none of it")
        assert node.envelopes == []
        assert node.backend.status.connected


async def test_a_connection_is_reached_on_the_channel_of_everybody_and_nothing_else_is(each_broker):
    async with running_nodes(each_broker.url, 1, ROOM) as (node,):
        channel = channel_of(node, EVERYBODY)
        connection = connection_target(uuid4().hex)
        for target in (connection, ROOM, user_target("ann"), EVERYBODY):
            each_broker.call("PUBLISH", channel, envelope_from_elsewhere(target))
        await node.received(2)
        assert [envelope.target for envelope in node.envelopes] == [connection, EVERYBODY]
        assert node.backend.status.undecodable == 2


async def test_what_is_on_its_way_when_a_room_is_left_is_not_received(each_broker):
    async with running_nodes(each_broker.url, 2, ROOM) as (one, two):
        told = one.say("hello")
        two.backend.unsubscribe((ROOM,))
        await told
        await two.settled()
        await one.say("last", EVERYBODY)
        await two.received(1)
        assert two.heard == ["last"]


async def test_what_a_node_hears_of_itself_is_not_received(each_broker):
    async with running_nodes(each_broker.url, 2, ROOM) as (one, two):
        await one.say("mine")
        await two.say("yours")
        await one.received(1)
        assert one.heard == ["yours"]


async def test_a_receiver_that_raises_is_logged_and_harms_nobody(broker, caplog):
    class Clumsy(Recorder):
        def receive(self, envelope):
            super().receive(envelope)
            raise RuntimeError("receiving failed")

        def missed(self, gap):
            super().missed(gap)
            raise RuntimeError("missing failed")

    async with running_nodes(broker.url, 1) as (speaker,):
        clumsy, node = Clumsy(), Node(broker.url, ROOM, settings=speaker.settings)
        await node.backend.start(node.node_id, clumsy, required=True)
        await node.settled()
        await speaker.say("first")
        await clumsy.received(1)
        broker.kill_listeners()
        await clumsy.reported(1)
        await speaker.connected()
        await speaker.say("second")
        await clumsy.received(2)
        assert node.backend.status.connected
        await node.backend.stop()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "an envelope could not be delivered",
        "a gap could not be reported",
        "an envelope could not be delivered",
    ]
    assert all(record.exc_info for record in errors)


async def test_what_is_in_the_context_of_a_publish_is_not_in_that_of_a_receive(each_broker):
    secret = contextvars.ContextVar("secret", default="none")
    seen = []

    class Curious(Node):
        def receive(self, envelope):
            seen.append(secret.get())
            super().receive(envelope)

    async with running_nodes(each_broker.url, 1) as (speaker,):
        secret.set("mine")
        curious = Curious(each_broker.url, ROOM, settings=speaker.settings)
        await curious.start(required=True)
        await curious.settled()
        await speaker.say("hello")
        await curious.received(1)
        await curious.backend.stop()
    assert seen == ["none"]


async def test_it_tells_how_long_its_last_probe_took(broker):
    node = Node(broker.url, ROOM, settings=some_settings(probe_interval=0.05))
    assert node.backend.status.probe_seconds is None
    await node.start(required=True)
    first = node.backend.status.probe_seconds
    assert first is not None
    assert 0 < first < node.settings.publish_timeout
    await until(lambda: node.backend.status.probe_seconds != first)
    await node.backend.stop()
    assert node.backend.status.probe_seconds is None


# Losing Redis


async def test_after_a_loss_it_hears_again_and_tells_what_it_may_have_missed(broker, caplog):
    async with running_nodes(broker.url, 2, ROOM, user_target("ann")) as (one, two):
        loop = asyncio.get_running_loop()
        begin = loop.time()
        killed = datetime.now(UTC)
        broker.kill_listeners()
        for node in (one, two):
            (gap,) = await node.reported(1)
            assert gap.targets == {EVERYBODY, ROOM, user_target("ann")}
            assert killed - timedelta(seconds=2.5) < gap.since < killed < gap.until <= datetime.now(UTC)
            status = node.backend.status
            assert (status.connected, status.degraded_since) == (True, None)
            assert (status.reconnects, status.gaps, status.undelivered) == (1, 1, 0)
        assert loop.time() - begin < 0.5
        await one.say("hello")
        await two.received(1)
    texts = [record.getMessage() for record in caplog.records]
    assert sum(text.startswith("degraded: the connection to Redis was lost: ") for text in texts) == 2
    assert texts.count(f"connected again: 127.0.0.1:{broker.port}") == 2


async def test_losing_the_connection_to_publish_by_is_no_gap(broker):
    async with running_nodes(broker.url, 2, ROOM) as (one, two):
        broker.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: one.backend.status.reconnects == two.backend.status.reconnects == 1)
        await one.say("hello")
        await two.received(1)
        assert (one.gaps, two.gaps, one.backend.status.gaps) == ([], [], 0)


async def test_what_was_under_way_when_redis_died_fails_once_and_is_counted(broker):
    async with running_nodes(broker.url, 2, ROOM) as (one, two):
        broker.freeze()
        told = [asyncio.ensure_future(one.say(str(number))) for number in range(100)]
        await asyncio.sleep(0.02)
        broker.kill()
        results = await asyncio.gather(*told, return_exceptions=True)
        assert {type(result) for result in results} == {BackendUnavailable}
        assert one.backend.status.undelivered == 100
        with pytest.raises(BackendUnavailable):
            await one.say("at once")
        assert one.backend.status.undelivered == 101
        broker.start()
        await one.connected()
        await two.connected()
        await one.say("after")
        await two.received(1)
        assert two.heard == ["after"]


async def test_what_redis_refuses_to_publish_fails_and_says_why(broker):
    settings = some_settings()
    prefix = settings.key_prefix
    broker.call(
        "ACL", "SETUSER", "ann", "on", ">secret", "resetchannels", f"&{prefix}:all", f"&{prefix}:node:*", "+@all"
    )
    node = Node(f"redis://ann:secret@127.0.0.1:{broker.port}", EVERYBODY, settings=settings)
    await node.start(required=True)
    with pytest.raises(BackendUnavailable, match=r"Redis refused PUBLISH: .*permissions"):
        await node.say("hello")
    await node.say("hello", EVERYBODY)
    assert node.backend.status.connected
    assert node.backend.status.undelivered == 1
    await asyncio.wait_for(node.backend.subscribe((ROOM,)), 5)
    await until(lambda: not node.backend.status.connected, "it says that it cannot hear what it wants")
    node.backend.unsubscribe((ROOM,))
    await node.connected()
    await node.backend.stop()


# Start and stop


async def test_without_redis_it_does_not_start_if_it_is_required_and_says_why():
    node = Node("redis://127.0.0.1:1", ROOM)
    before = asyncio.all_tasks()
    with pytest.raises(BackendUnavailable, match=r"Redis \(127\.0\.0\.1:1\) was not there .* or start with") as failed:
        await node.start(required=True)
    assert "Connect call failed" in str(failed.value.__cause__)
    assert asyncio.all_tasks() == before
    with pytest.raises(BackendUnavailable, match="the backend is stopped"):
        await node.say("hello")


async def test_without_redis_it_starts_degraded_and_says_so(caplog):
    node = Node("redis://127.0.0.1:1", ROOM)
    began = datetime.now(UTC)
    await node.start()
    await node.start()
    assert not node.backend.status.connected
    assert node.backend.status.degraded_since <= began, "it never was connected"
    await asyncio.wait_for(node.backend.subscribe((room_target("hall"),)), 1)
    (record,) = caplog.records
    assert record.getMessage().startswith("starting degraded, 127.0.0.1:1 is not there: Redis at 127.0.0.1:1 cannot be")
    await node.backend.stop()
    await node.backend.stop()


@pytest.mark.parametrize("required", [True, False])
async def test_a_redis_that_does_not_answer_delays_a_start_by_its_deadline(required, caplog):
    async with ScriptedRedis() as silent:
        silent.greeting = None
        node = Node(silent.url, settings=some_settings(publish_timeout=0.3))
        loop = asyncio.get_running_loop()
        begin = loop.time()
        if required:
            with pytest.raises(BackendUnavailable, match=r"was not there within 0\.3 s"):
                await node.start(required=True)
        else:
            await node.start()
        assert 0.25 < loop.time() - begin < 0.8
        begin = loop.time()
        await node.backend.stop()
        assert loop.time() - begin < 0.5


async def test_a_start_that_fails_does_not_wait_for_what_is_under_way(broker, proxy):
    proxy.delay(0.15)
    node = Node(proxy.url, settings=some_settings(publish_timeout=0.7))
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(BackendUnavailable):
        await node.start(required=True)
    assert loop.time() - begin < 1.1


async def test_a_start_that_is_cancelled_leaves_nothing():
    async with ScriptedRedis() as silent:
        silent.greeting = None
        before = asyncio.all_tasks()
        node = Node(silent.url)
        starting = asyncio.create_task(node.start())
        await silent.visit(1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert node.backend._topology is None
        await until(lambda: asyncio.all_tasks() & before == before and all(visit.is_over for visit in silent.visits))


async def test_stopping_waits_for_answers_but_not_beyond_their_deadline():
    async with LyingRedis() as lying:
        node = Node(lying.url, settings=some_settings(publish_timeout=0.3, probe_interval=600))
        await node.start(required=True)
        lying.answers = None
        told = asyncio.ensure_future(node.say("hello"))
        await until(lambda: len(lying.published) == 2)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await node.backend.stop()
        assert loop.time() - begin < 0.8
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.3 s"):
            await told
        assert node.backend.status.undelivered == 1


def test_it_may_be_used_on_one_loop_after_the_other(each_broker):
    one, two = (Node(each_broker.url, ROOM, settings=some_settings(key_prefix="loops")) for _ in range(2))

    async def life(word, *, stops):
        for node in (one, two):
            await node.start(required=True)
            await node.settled()
        await one.say(word)
        await two.received(1)
        if stops:
            for node in (one, two):
                await node.backend.stop()
        heard, two.envelopes = two.heard, []
        return heard

    for word, stops in (("first", True), ("second", False), ("third", False), ("last", True)):
        assert asyncio.run(life(word, stops=stops)) == [word]
    assert not one.backend.status.connected


def test_its_repr_tells_where_and_how_it_is_and_nothing_else(each_broker):
    async def life():
        async with running_nodes(each_broker.url, 1, ROOM) as (node,):
            return repr(node.backend)

    assert asyncio.run(life()) == f"<RedisBackend 127.0.0.1:{each_broker.port}>"
