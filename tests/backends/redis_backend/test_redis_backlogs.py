"""A listener that has much to read is not deaf, and many who join do not keep a node in doubt."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from scripted_redis import LyingRedis, ScriptedRedis, bulk
from support import until

from fastapi_rooms import BackendUnavailable, ConfigurationError
from fastapi_rooms.backends.redis.link import MAX_BACKLOG_TIMEOUTS, Link, Pace
from fastapi_rooms.backends.redis.places import locate
from fastapi_rooms.backends.redis.table import ask_for_table

PACE = Pace(timeout=0.2, probe_interval=0.05)


class Owner:
    def __init__(self):
        self.health = []
        self.heard = 0
        self.repairs = 0

    def on_health(self, link):
        if not self.health or self.health[-1] is not link.is_healthy:
            self.health.append(link.is_healthy)

    def on_message(self, channel, payload):
        self.heard += payload == b"backlog"

    def on_repaired(self, link, since):
        self.repairs += 1


@asynccontextmanager
async def linked():
    """A healthy link to a Redis that can be told to lie."""
    async with LyingRedis() as redis:
        owner = Owner()
        link = Link("redis", redis.dial, PACE, owner, b"probe")
        try:
            link.listener.want([b"room"])
            link.start()
            await until(lambda: link.is_healthy, "it is healthy")
            yield redis, link, owner
        finally:
            await link.stop()


@asynccontextmanager
async def pouring(redis):
    """Let something arrive in every tick."""

    async def pour():
        while True:
            redis.pass_on(b"room", b"backlog")
            await asyncio.sleep(0)

    task = asyncio.create_task(pour())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_who_works_off_a_backlog_is_not_hung_up_for_a_probe_that_is_behind_it():
    async with linked() as (redis, link, owner):
        redis.passes_on = False
        probes = len(redis.published)
        async with pouring(redis):
            await until(lambda: len(redis.published) > probes, "a probe is under way")
            await asyncio.sleep(2 * PACE.timeout)  # longer than a probe may take
            assert owner.heard > 100
            redis.pass_on(*redis.published[-1])
            await until(lambda: len(redis.published) > probes + 1, "the probe was heard")
        redis.passes_on = True
        redis.pass_on(*redis.published[-1])
        assert (link.listener.connections_made, link.line.connections_made) == (1, 1)
        assert (owner.health, owner.repairs) == ([True], 0)


async def test_who_is_deaf_is_found_out_however_much_there_is_to_read():
    async with linked() as (redis, link, owner):
        redis.passes_on = False
        async with pouring(redis):
            await until(
                lambda: owner.health == [True, False], "it is degraded", 3 * MAX_BACKLOG_TIMEOUTS * PACE.timeout
            )
        assert "was not heard within 0.2 s" in str(link.last_error)


async def test_those_who_join_meanwhile_do_not_keep_it_from_being_proved_good():
    async with linked() as (redis, link, owner):
        number = 0

        async def join():
            nonlocal number
            while True:
                number += 1
                assert link.listener.want([b"%d" % number]) == [] or link.is_healthy, "nobody waits while in doubt"
                await asyncio.sleep(0)

        redis.passes_on = False
        await until(lambda: owner.health == [True, False], "it is degraded")
        joining = asyncio.create_task(join())
        await until(lambda: number > 100)
        redis.passes_on = True
        await until(lambda: owner.health[-1], "it is healthy while they join")
        assert not joining.done()
        joining.cancel()
        await asyncio.wait([joining])
        await until(lambda: owner.repairs, "the gap is reported once all are heard")
        await until(link.listener.is_settled, "all are heard")


# Servers that answer nonsense


class Nonsense(ScriptedRedis):
    """Answers each command with what it was told to; hangs up where there is nothing to say."""

    def __init__(self, **answers):
        super().__init__()
        self.answers = answers

    def on_command(self, visit, command):
        answer = self.answers.get(command[0].decode())
        visit.end() if answer is None else visit.say(answer)


async def test_what_is_no_table_of_slots_is_no_answer():
    async with Nonsense(CLUSTER=b"*1\r\n:5\r\n") as redis:
        (server,) = locate(redis.url.replace("redis://", "redis+cluster://"), 1.0).servers
        with pytest.raises(BackendUnavailable, match="no answer to CLUSTER SLOTS"):
            await ask_for_table(server)


async def test_a_master_that_does_not_tell_its_role_is_none():
    async with Nonsense() as master, Nonsense(SENTINEL=bulk(b"127.0.0.1", b"%d" % master.port)) as sentinel:
        place = locate(f"redis+sentinel://127.0.0.1:{sentinel.port}/kitchen", 1.0)
        with pytest.raises(BackendUnavailable, match="did not tell its role"):
            await place.dial()


def test_sentinels_have_to_be_told_which_master():
    with pytest.raises(ConfigurationError, match="leads to Redis"):
        locate("redis+sentinel://127.0.0.1:7/", 1.0)
