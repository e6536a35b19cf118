"""The listening side: Redis has what is wanted, and whoever waits for it waits no longer than that."""

import asyncio

import pytest
from scripted_redis import PubSubServer, bulk
from support import until

from fastapi_rooms.backends.redis.listening import BATCH, Listener, Sharded
from fastapi_rooms.backends.redis.slots import slot_of

TIMEOUT = 0.3


@pytest.fixture
async def server():
    async with PubSubServer() as made:
        yield made
        assert made.complaints == []


class Heard:
    def __init__(self):
        self.messages = []
        self.changes = 0

    def message(self, channel, payload):
        self.messages.append((channel, payload))

    def change(self):
        self.changes += 1


@pytest.fixture
async def make_listener(server):
    listeners = []

    async def make(*channels, timeout=TIMEOUT, sharded=None):
        heard = Heard()
        listener = Listener("listener", server.dial, heard.change, timeout, heard.message, sharded)
        listener.heard = heard
        listeners.append(listener)
        listener.want(channels)
        listener.start()
        await until(lambda: listener.is_up)
        return listener

    yield make
    for listener in listeners:
        await listener.stop()


async def ready(futures, seconds=2.0):
    if futures:
        _, waiting = await asyncio.wait(futures, timeout=seconds)
        assert not waiting


async def commands(visit, count):
    await until(lambda: len(visit.commands) >= count)
    return [visit.commands.popleft() for _ in range(count)]


async def test_what_is_wanted_before_it_connects_is_subscribed_when_it_has(server, make_listener):
    listener = await make_listener(b"one", b"two")
    await until(lambda: listener.is_hearing)
    assert server.subscribed == {b"one", b"two"}
    assert listener.wanted == {b"one", b"two"}
    assert listener.is_settled()
    assert listener.heard.changes == 2, "it was connected, and then it heard"


async def test_nobody_waits_for_a_connection(server):
    listener = Listener("listener", server.dial, lambda: None, TIMEOUT, lambda *_: None)
    assert listener.want([b"one"]) == []
    assert (listener.is_hearing, listener.is_settled()) == (False, False)


async def test_messages_arrive_to_the_byte_in_order(server, make_listener):
    listener = await make_listener(b"one")
    await until(listener.is_settled)
    payloads = [b"", b"\0\xff", b"\r\n$3\r\n", b"subscribe", "🦆".encode()]
    server.visits[0].say(b"".join(bulk(b"message", b"one", payload) for payload in payloads))
    await until(lambda: len(listener.heard.messages) == len(payloads))
    assert listener.heard.messages == [(b"one", payload) for payload in payloads]


async def test_it_is_ready_when_redis_has_confirmed_and_not_before(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    (one,) = listener.want([b"one"])
    (two,) = listener.want([b"two"])
    assert listener.want([b"one"]) == [one], "everybody waits for the same"
    await until(lambda: len(server.owed) == 2)
    server.answer()
    await ready([one])
    assert not two.done()
    server.answer()
    await ready([two])
    assert listener.want([b"one", b"two"]) == [], "there is nothing to wait for"
    assert listener.is_settled()


async def test_what_came_within_one_tick_leaves_in_batches(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.batches.clear()
    futures = [future for number in range(1203) for future in listener.want([b"%d" % number])]
    await ready(futures)
    assert server.batches == [BATCH, BATCH, 203]
    server.batches.clear()
    listener.unwant([b"%d" % number for number in range(600)])
    await until(listener.is_settled)
    assert server.batches == [BATCH, 100]
    assert len(server.subscribed) == 604


async def test_what_was_taken_back_within_a_tick_is_not_told(server, make_listener):
    listener = await make_listener(b"node", b"kept")
    await until(listener.is_settled)
    (waiting,) = listener.want([b"one"])
    listener.unwant([b"one"])
    assert waiting.done(), "nobody waits for what nobody wants"
    listener.unwant([b"kept"])
    assert listener.want([b"kept"]) == []
    await ready(listener.want([b"last"]))
    assert (await commands(server.visits[0], 2))[1] == [b"SUBSCRIBE", b"last"]


async def test_wanting_twice_and_unwanting_what_is_not_wanted_tells_nothing(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    listener.unwant([b"unheard of"])
    await ready(listener.want([b"one", b"one"]))
    assert listener.want([b"one"]) == []
    assert [len(command) for command in server.visits[0].commands] == [2, 2]


async def test_the_last_word_counts_whatever_is_under_way(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    (first,) = listener.want([b"one"])
    await until(lambda: server.owed)
    listener.unwant([b"one"])
    assert first.done()
    (second,) = listener.want([b"one"])
    server.answer()
    await ready([second])
    await until(listener.is_settled)
    assert (len(server.batches), server.subscribed) == (2, {b"node", b"one"})


async def test_a_subscription_that_is_not_wanted_any_more_when_it_is_confirmed_is_given_up(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    listener.want([b"one"])
    await until(lambda: server.owed)
    listener.unwant([b"one"])
    server.answer()
    await until(lambda: server.owed)
    assert server.owed[0] == (b"unsubscribe", b"one")
    assert not listener.is_settled()
    server.answer()
    await until(listener.is_settled)
    assert server.subscribed == {b"node"}


async def test_who_wants_again_what_is_being_given_up_waits_until_it_is_heard_again(server, make_listener):
    listener = await make_listener(b"node", b"one")
    await until(listener.is_settled)
    server.is_prompt = False
    listener.unwant([b"one"])
    await until(lambda: server.owed)
    (waiting,) = listener.want([b"one"])
    server.answer()
    await until(lambda: server.owed)
    assert server.owed[0] == (b"subscribe", b"one")
    assert not waiting.done()
    server.answer()
    await ready([waiting])
    assert server.subscribed == {b"node", b"one"}


async def test_what_redis_takes_away_is_asked_for_again(server, make_listener):
    listener = await make_listener(b"node", b"one")
    await until(listener.is_settled)
    server.take_away(b"one")
    await until(lambda: server.subscribed == {b"node", b"one"} and listener.is_settled())


async def test_what_redis_gives_unasked_is_given_back(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.subscribed.add(b"gift")
    server.visits[0].say(bulk(b"subscribe", b"gift", 2))
    await until(lambda: server.subscribed == {b"node"} and listener.is_settled())
    server.visits[0].say(bulk(b"unsubscribe", b"gift", 1))
    await ready(listener.want([b"one"]))


async def test_after_a_loss_all_that_is_wanted_by_then_is_subscribed(server, make_listener):
    listener = await make_listener(b"node", b"kept", b"dropped")
    await until(listener.is_settled)
    server.lose()
    await until(lambda: not listener.is_up)
    assert not listener.is_hearing
    listener.unwant([b"dropped"])
    assert listener.want([b"added"]) == [], "nobody waits while Redis is away"
    await until(lambda: listener.is_hearing)
    assert server.subscribed == {b"node", b"kept", b"added"}


async def test_whoever_waits_when_the_connection_is_lost_waits_no_longer(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    waiting = listener.want([b"one", b"two"])
    await until(lambda: server.owed)
    server.lose()
    await ready(waiting)
    server.is_prompt = True


async def test_it_does_not_hear_before_everything_has_been_confirmed(server, make_listener):
    server.is_prompt = False
    listener = await make_listener(b"node", b"one", b"two")
    await until(lambda: len(server.owed) == 3)
    later = listener.want([b"later"])
    server.answer(2)
    await asyncio.sleep(0.02)
    assert not listener.is_hearing
    server.answer()
    await until(lambda: listener.is_hearing)
    assert not later[0].done(), "it was not wanted when the connection was made"
    assert listener.heard.changes == 2
    server.answer()


async def test_what_is_given_up_meanwhile_is_not_waited_for_before_it_hears(server, make_listener):
    server.is_prompt = False
    listener = await make_listener(b"node", b"one")
    await until(lambda: len(server.owed) == 2)
    first = server.owed[0][1]
    (other,) = {b"node", b"one"} - {first}
    server.answer()
    await asyncio.sleep(0.02)
    listener.unwant([other])
    assert listener.is_hearing
    server.is_prompt = True
    server.answer(5)
    await until(listener.is_settled)


async def test_a_subscription_that_is_not_confirmed_in_time_ends_the_connection(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await ready(listener.want([b"one"]))
    assert TIMEOUT <= loop.time() - begin < TIMEOUT + 0.5
    assert str(listener.last_error) == "Redis did not confirm a subscription within 0.3 s"
    server.is_prompt = True
    server.forget()
    await until(lambda: server.subscribed == {b"node", b"one"} and listener.is_settled())


async def test_a_redis_that_confirms_slowly_but_steadily_is_not_given_up(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    waiting = listener.want([b"%d" % number for number in range(6)])
    await until(lambda: len(server.owed) == 6)
    for _ in range(6):
        await asyncio.sleep(TIMEOUT / 3)
        server.answer()
    await ready(waiting)
    assert len(server.visits) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b":7\r\n",
        b"+OK\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        bulk(b"message", b"one"),
        bulk(b"pmessage", b"*", b"one", b"x"),
        bulk(b"unsubscribe", b"one", 0)[:-4] + b"x",
        b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n",
        b"*3\r\n$7\r\nmessage\r\n$3\r\none\r\n:7\r\n",
        b"*3\r\n$7\r\nmessage\r\n$3\r\none\r\n*1\r\n$1\r\nx\r\n",
        b"nonsense\r\n",
        b"-ERR only (P)SUBSCRIBE is allowed in this context\r\n",
    ],
)
async def test_what_is_no_answer_ends_the_connection_and_all_is_subscribed_anew(server, make_listener, garbage):
    listener = await make_listener(b"node", b"one")
    await until(listener.is_settled)
    server.visits[0].say(garbage)
    server.visits[0].end()
    await until(lambda: listener.connections_made == 2 and listener.is_settled())
    assert server.subscribed == {b"node", b"one"}
    assert listener.heard.messages == []


async def test_a_message_on_a_channel_that_nobody_wants_any_more_is_dropped(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.visits[0].say(bulk(b"message", b"other", b"x") + bulk(b"message", b"node", b"y"))
    await until(lambda: listener.heard.messages)
    assert listener.heard.messages == [(b"node", b"y")]


async def test_a_subscription_that_is_refused_ends_the_connection(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    waiting = listener.want([b"one"])
    await until(lambda: server.owed)
    server.visits[0].say(b"-NOPERM no permissions to access a channel\r\n")
    await ready(waiting)
    assert str(listener.last_error) == "Redis refused a subscription: no permissions to access a channel"
    server.is_prompt = True
    server.forget()
    await until(listener.is_settled)


async def test_cancelling_who_waits_takes_nothing_back_and_disturbs_nobody(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    (one, two) = listener.want([b"one", b"two"])
    await until(lambda: len(server.owed) == 2)
    one.cancel()
    server.answer(2)
    await ready([two])
    await until(listener.is_settled)
    assert server.subscribed == {b"node", b"one", b"two"}


async def test_while_it_is_doubted_nobody_waits(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    waiting = listener.want([b"one"])
    listener.doubt()
    await ready(waiting)
    assert listener.want([b"two"]) == []
    await until(lambda: len(server.owed) == 2)
    server.answer(2)
    await until(listener.is_settled)
    listener.prove()
    (three,) = listener.want([b"three"])
    await until(lambda: server.owed)
    server.answer()
    await ready([three])


async def test_stopping_releases_whoever_waits(server, make_listener):
    listener = await make_listener(b"node")
    await until(listener.is_settled)
    server.is_prompt = False
    waiting = listener.want([b"one"])
    await listener.stop()
    await ready(waiting)
    assert not listener.is_up


# Sharded channels


class Shards:
    def __init__(self):
        self.moved = 0
        self.confirmed = []

    def sharded(self):
        def on_moved():
            self.moved += 1

        return Sharded(on_moved, self.confirmed.append)


class ShardServer(PubSubServer):
    words = (b"SSUBSCRIBE", b"SUNSUBSCRIBE")


@pytest.fixture
async def shard():
    async with ShardServer() as made:
        yield made
        assert made.complaints == []


@pytest.fixture
async def shard_listener(shard):
    shards = Shards()
    heard = Heard()
    listener = Listener("listener", shard.dial, heard.change, TIMEOUT, heard.message, shards.sharded())
    listener.heard, listener.shards = heard, shards
    listener.want([b"node"])
    listener.start()
    await until(listener.is_settled)
    yield listener
    await listener.stop()


async def test_sharded_channels_are_subscribed_one_by_one(shard, shard_listener):
    shard.batches.clear()
    await ready(shard_listener.want([b"one", b"two"]))
    assert shard.batches == [1, 1]
    assert shard_listener.shards.confirmed == [b"node", b"one", b"two"]
    shard.visits[0].say(bulk(b"smessage", b"one", b"x"))
    await until(lambda: shard_listener.heard.messages == [(b"one", b"x")])
    shard_listener.unwant([b"two"])
    await until(shard_listener.is_settled)
    assert shard.subscribed == {b"node", b"one"}
    assert shard_listener.shards.moved == 0


async def test_a_slot_that_is_taken_away_is_reported(shard, shard_listener):
    await ready(shard_listener.want([b"one"]))
    shard.take_away(b"one")
    await until(lambda: shard_listener.shards.moved == 1)


@pytest.mark.parametrize(
    "error", [b"MOVED %d 127.0.0.1:7", b"ASK %d 127.0.0.1:7", b"CLUSTERDOWN slot %d", b"TRYAGAIN %d"]
)
async def test_a_channel_that_is_elsewhere_is_reported_and_asked_for_again_only_when_told_to(
    shard, shard_listener, error
):
    shard.is_prompt = False
    waiting = shard_listener.want([b"one"])
    await until(lambda: shard.owed)
    shard.owed.clear()
    shard.visits[0].say(b"-%s\r\n" % (error % slot_of(b"one")))
    await ready(waiting)
    assert shard_listener.shards.moved == 1
    assert not shard_listener.is_settled()
    await asyncio.sleep(0.02)
    assert not shard.owed
    shard.is_prompt = True
    shard_listener.try_again()
    await until(shard_listener.is_settled)
    assert shard.subscribed == {b"node", b"one"}


async def test_an_error_about_what_is_not_under_way_any_more_is_reported_and_is_no_answer(shard, shard_listener):
    shard.visits[0].say(b"-MOVED 1 127.0.0.1:7000\r\n")
    await until(lambda: shard_listener.shards.moved == 1)
    shard.is_prompt = False
    (waiting,) = shard_listener.want([b"one"])
    await until(lambda: shard.owed)
    shard.visits[0].say(b"-MOVED %d 127.0.0.1:7000\r\n" % (slot_of(b"one") + 1))
    await until(lambda: shard_listener.shards.moved == 2)
    assert not waiting.done()
    shard.answer()
    await ready([waiting])
    await until(shard_listener.is_settled)
    assert len(shard.visits) == 1


async def test_another_error_ends_the_connection_to_a_shard(shard, shard_listener):
    shard.is_prompt = False
    waiting = shard_listener.want([b"one"])
    await until(lambda: shard.owed)
    shard.visits[0].say(b"-NOPERM no\r\n")
    await ready(waiting)
    assert shard_listener.shards.moved == 0
    shard.is_prompt = True
    shard.forget()
    await until(lambda: shard_listener.connections_made == 2 and shard_listener.is_settled())
