"""Whatever is wanted, given up, lost, refused and taken away, in whatever order: at rest Redis has what is wanted."""

import asyncio
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scripted_redis import PubSubServer, bulk
from support import until

from fastapi_rooms.backends.redis.listening import Listener, Sharded
from fastapi_rooms.backends.redis.slots import slot_of

CHANNELS = [b"%d" % number for number in range(6)]
some_channels = st.sets(st.sampled_from(CHANNELS), min_size=1)


class Waiting:
    """Somebody who waits for a subscription."""

    def __init__(self, channel, future, connection):
        self.channel = channel
        self.future = future
        self.connection = connection
        self.is_excused = False  # it may end without a confirmation


class Listening(RuleBasedStateMachine):
    sharded = False

    def __init__(self):
        super().__init__()
        self.server = PubSubServer()
        self.wanted = set()
        self.waiting = []
        self.said = []
        self.heard = []
        self.doubtful = set()  # Redis took it away, or refused it, and the node may not know yet
        self.has_raced = False  # Redis took away what was just being asked for: two answers look like one

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def start(self):
        self.loop = asyncio.new_event_loop()
        self.pauses = mock.patch("fastapi_rooms.backends.redis.supervised.pause_before", return_value=0.0)
        self.pauses.start()
        sharded = Sharded(lambda: None, lambda channel: None) if self.sharded else None
        if self.sharded:
            self.server.words = (b"SSUBSCRIBE", b"SUNSUBSCRIBE")
        self.listener = Listener("listener", self.server.dial, lambda: None, 60.0, self.hear, sharded)

        async def start():
            await self.server.__aenter__()
            self.listener.start()

        self.run(start())

    def hear(self, channel, payload):
        self.heard.append(payload)

    # What the node does

    @rule(channels=some_channels)
    def want(self, channels):
        self.wanted |= channels

        async def want():
            for channel in channels:
                futures = self.listener.want([channel])
                self.waiting += [Waiting(channel, future, self.listener._connection) for future in futures]

        self.run(want())

    @rule(channels=some_channels)
    def unwant(self, channels):
        self.wanted -= channels
        self.listener.unwant(channels)
        for one in self.waiting:
            one.is_excused |= one.channel in channels

    @rule(channels=some_channels)
    def stop_waiting(self, channels):
        for one in self.waiting:
            if one.channel in channels:
                one.is_excused = True
                one.future.cancel()

    @rule()
    def drop(self):
        self.listener.drop("the probe was not heard")

    @rule(ticks=st.integers(1, 12))
    def go_on(self, ticks):
        async def go_on():
            for _ in range(ticks):
                await asyncio.sleep(0)

        self.run(go_on())

    # What Redis does

    @rule(is_prompt=st.booleans())
    def hurry(self, is_prompt):
        self.server.is_prompt = is_prompt

    @precondition(lambda self: self.server.owed)
    @rule(count=st.integers(1, 7))
    def answer(self, count):
        self.server.answer(count)

    @precondition(lambda self: self.server.visits)
    @rule()
    def lose(self):
        self.doubtful.update(CHANNELS)  # what was confirmed just before may be read just after
        self.server.lose()

    @precondition(lambda self: self.server.owed)
    @rule(error=st.sampled_from([b"ERR no", b"MOVED %d 127.0.0.1:7000", b"NOPERM no"]))
    def refuse(self, error):
        if self.sharded:
            _, channel = self.server.owed.popleft()
            self.doubtful.add(channel)
            if error.startswith(b"MOVED") and channel in self.server.subscribed:
                self.has_raced = True
                self.server.take_away(channel)  # as a shard does before it says so
            error = error.replace(b"%d", b"%d" % slot_of(channel))
        self.server.visits[-1].say(b"-%s\r\n" % error.replace(b"%d", b"1"))

    @precondition(lambda self: self.server.subscribed)
    @rule(data=st.data())
    def take_away(self, data):
        channel = data.draw(st.sampled_from(sorted(self.server.subscribed)))
        self.has_raced = True
        self.doubtful.add(channel)
        self.server.take_away(channel)

    @precondition(lambda self: self.server.subscribed)
    @rule(data=st.data())
    def say(self, data):
        channel = data.draw(st.sampled_from(sorted(self.server.subscribed)))
        self.said.append(b"%d" % len(self.said))
        word = b"smessage" if self.sharded else b"message"
        self.server.visits[-1].say(bulk(word, channel, self.said[-1]))

    # What must hold

    @rule()
    def come_to_rest(self):
        self.server.is_prompt = True
        self.server.answer(len(self.server.owed))

        async def rest():
            await until(self.is_at_rest, "rest", 3.0)
            assert self.listener.is_hearing
            assert self.listener.wanted == self.wanted
            assert self.listener.want(self.wanted) == []

        self.run(rest())
        self.doubtful.clear()
        assert all(one.future.done() for one in self.waiting), "nobody is forgotten"

    def is_at_rest(self):
        self.listener.try_again()
        return self.listener.is_settled() and self.server.subscribed == self.wanted and not self.server.owed

    @invariant()
    def there_is_one_command_per_channel_under_way(self):
        assert self.has_raced or self.server.complaints == []

    @invariant()
    def what_is_confirmed_is_not_busy(self):
        assert not self.listener._confirmed & self.listener._busy, "no such row in the table of the module"

    @invariant()
    def nobody_is_told_too_early(self):
        for one in self.waiting:
            is_lost = one.connection is not self.listener._connection
            if one.future.done() and not (one.is_excused or is_lost or one.channel in self.doubtful):
                assert one.channel in self.server.subscribed
        self.waiting = [one for one in self.waiting if not one.future.done()]

    @invariant()
    def what_is_heard_was_said_in_that_order(self):
        rest = iter(self.said)
        assert all(payload in rest for payload in self.heard)

    def teardown(self):
        async def end():
            await self.listener.stop()
            await self.server.__aexit__()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        try:
            self.come_to_rest()
        finally:
            self.run(end())
            self.loop.close()
            self.pauses.stop()


class ListeningToAShard(Listening):
    sharded = True


@pytest.mark.parametrize("examples", [40, pytest.param(400, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("machine", [Listening, ListeningToAShard])
def test_at_rest_redis_has_what_is_wanted(machine, examples):
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None))
