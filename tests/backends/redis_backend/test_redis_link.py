"""Health is what was heard: a probe that went all the way, and nothing else."""

import asyncio
import logging
from datetime import UTC, datetime

import pytest
from scripted_redis import LyingRedis, bulk
from support import until

from fastapi_rooms.backends.redis import link as module
from fastapi_rooms.backends.redis.link import Link, Pace

PACE = Pace(timeout=0.2, probe_interval=0.05)
SECONDS = PACE.timeout + PACE.probe_interval + 0.5
"""How long a broken link may look healthy, on a machine that is busy."""


class Owner:
    def __init__(self):
        self.health = []
        self.messages = []
        self.repairs = []

    def on_health(self, link):
        if not self.health or self.health[-1] is not link.is_healthy:
            self.health.append(link.is_healthy)

    def on_message(self, channel, payload):
        self.messages.append((channel, payload))

    def on_repaired(self, link, since):
        self.repairs.append(since)


@pytest.fixture
async def redis():
    async with LyingRedis() as made:
        yield made


@pytest.fixture
async def owner():
    return Owner()


async def not_replaced(address):
    return False


@pytest.fixture(params=["master wanted", "any"])
async def link(request, redis, owner):
    is_replaced = not_replaced if request.param == "master wanted" else None
    made = Link("redis", redis.dial, PACE, owner, b"probe", is_replaced=is_replaced)
    yield made
    await made.stop()


async def healthy(link):
    link.start()
    await until(lambda: link.is_healthy, "healthy")


async def test_it_is_healthy_once_it_has_heard_itself(redis, owner, link):
    assert (link.is_healthy, link.last_error) == (False, None)
    begin = datetime.now(UTC)
    link.start()
    await link.decided()
    assert link.is_healthy
    assert (owner.health, owner.repairs, link.last_error) == ([True], [], None)
    assert begin <= link.heard_since <= datetime.now(UTC)
    assert redis.published[0] == (b"probe", b"1")


async def test_it_asks_again_and_again(redis, owner, link):
    await healthy(link)
    heard_since = link.heard_since
    await until(lambda: len(redis.published) >= 4)
    assert [payload for _, payload in redis.published[:4]] == [b"1", b"2", b"3", b"4"]
    await until(lambda: link.heard_since > heard_since)
    assert (owner.health, owner.repairs) == ([True], [])
    assert len(redis.visits) == 2, "one connection publishes, one listens"


async def test_what_was_never_heard_is_not_healthy_whatever_else_works(redis, owner, link):
    redis.passes_on = False
    link.start()
    await link.decided()
    assert not link.is_healthy
    assert str(link.last_error) == "Redis took what was published, but it was not heard within 0.2 s"
    await until(lambda: len(redis.visits) >= 4, "both connections are made again")
    redis.passes_on = True
    await until(lambda: link.is_healthy)
    assert len(owner.repairs) == 1, "what was published before may have been missed"


@pytest.mark.parametrize("trouble", ["deaf", "mute", "refused", "hung up", "half gone"])
async def test_trouble_is_noticed_without_any_traffic_and_healed(redis, owner, link, trouble):
    await healthy(link)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    last_heard = link.heard_since
    match trouble:
        case "deaf":
            redis.passes_on = False
        case "mute":
            redis.answers = None
        case "refused":
            redis.answers = b"-NOPERM no permissions\r\n"
        case "hung up":
            for visit in redis.visits:
                visit.hang_up()
        case "half gone":
            for visit in redis.visits:
                visit.hang_up()
            redis.confirms = False
    await until(lambda: owner.health[:2] == [True, False])
    assert loop.time() - begin < SECONDS
    redis.passes_on = redis.confirms = True
    redis.answers = b"number"
    await until(lambda: owner.health[-1])
    assert link.last_error is None
    if trouble == "mute" and not owner.repairs:
        return  # the listener has heard all the time
    assert last_heard <= owner.repairs[0]
    assert (owner.repairs[0] - last_heard).total_seconds() < SECONDS


async def test_a_new_connection_to_publish_by_is_no_gap(redis, owner):
    link = Link("redis", redis.dial, PACE, owner, b"probe")
    await healthy(link)
    (publisher,) = redis.publishers()
    publisher.hang_up()
    await until(lambda: owner.health[:3] == [True, False, True])
    await until(lambda: len(redis.published) >= 3)
    assert (owner.repairs, len(redis.visits)) == ([], 3)
    await link.stop()


async def test_a_new_connection_to_listen_by_is_a_gap(redis, owner):
    link = Link("redis", redis.dial, PACE, owner, b"probe")
    await healthy(link)
    last_heard = link.heard_since
    (listener,) = redis.listeners(b"probe")
    listener.hang_up()
    await until(lambda: owner.health[:3] == [True, False, True])
    assert len(owner.repairs) == 1
    assert owner.repairs[0] >= last_heard
    assert len(redis.visits) == 3
    await link.stop()


async def test_what_somebody_missed_who_did_not_wait_lies_in_the_gap_though_a_probe_was_heard_before(redis, owner):
    link = Link("redis", redis.dial, PACE, owner, b"probe")
    await healthy(link)
    (listener,), (publisher,) = redis.listeners(b"probe"), redis.publishers()
    redis.confirms = False
    publisher.hang_up()
    await until(lambda: owner.health == [True, False])
    assert link.listener.want([b"room"]) == [], "nobody waits for Redis while it is in doubt"
    missed = datetime.now(UTC)  # whatever is said in the room from here on
    await until(lambda: owner.health == [True, False, True])
    count = len(redis.published)
    await until(lambda: len(redis.published) >= count + 2, "probes are heard, and the room is not")
    assert owner.repairs == []
    listener.say(bulk(b"subscribe", b"room", 2))
    await until(lambda: owner.repairs)
    assert owner.repairs[0] <= missed
    heard_since = link.heard_since
    await until(lambda: link.heard_since > heard_since)
    assert len(owner.repairs) == 1
    await link.stop()


async def test_what_others_say_on_its_own_channel_is_no_proof(redis, owner, link):
    redis.passes_on = False
    link.start()
    await until(lambda: redis.listeners(b"probe") and redis.published, "it listens, and waits for its first probe")
    for payload in (b"", b"0", b"01", b"one", b"\0" * 20, b"9" * 50):
        redis.pass_on(b"probe", payload)
    await until(lambda: len(owner.messages) == 6)
    await link.decided()
    assert not link.is_healthy


async def test_a_probe_that_comes_late_or_twice_is_no_proof_of_the_next(redis, owner, link):
    await healthy(link)
    redis.passes_on = False
    await until(lambda: len(redis.published) >= 2 and redis.listeners(b"probe"))
    for _, payload in redis.published[:-1]:
        redis.pass_on(b"probe", payload)
    await until(lambda: owner.health[-1] is False)


async def test_messages_are_passed_on(redis, owner, link):
    await healthy(link)
    (confirmed,) = link.listener.want([b"room"])
    await confirmed
    assert await link.publish(b"room", b"hello") == 1
    await until(lambda: owner.messages == [(b"room", b"hello")])


async def test_who_is_no_master_any_more_is_left(redis, owner):
    link = Link("redis", redis.dial, PACE, owner, b"probe", is_replaced=not_replaced)
    await healthy(link)
    redis.role = bulk(b"slave", b"127.0.0.1", 6379, b"connected", 0)
    await until(lambda: owner.health[:2] == [True, False])
    assert "no master any more" in str(link.last_error)
    redis.role = bulk(b"master", 0)
    await until(lambda: owner.health[:3] == [True, False, True])
    await link.stop()


async def test_who_was_replaced_is_left(redis, owner):
    asked = []

    async def is_replaced(address):
        asked.append(address)
        return len(asked) == 2

    link = Link("redis", redis.dial, PACE, owner, b"probe", is_replaced=is_replaced)
    await healthy(link)
    await until(lambda: owner.health[:3] == [True, False, True])
    assert set(asked) == {("127.0.0.1", redis.port)}
    assert len(redis.visits) == 4, "both sides have asked anew"
    await link.stop()


async def test_a_question_that_fails_as_nobody_expects_does_not_end_the_probes(redis, owner, caplog, monkeypatch):
    monkeypatch.setattr(module, "FAILURE_PAUSE_SECONDS", 0.01)
    failures = 0

    async def is_replaced(address):
        nonlocal failures
        failures += 1
        if failures in (2, 3, 4):
            raise ValueError("no number")
        return False

    link = Link("redis", redis.dial, PACE, owner, b"probe", is_replaced=is_replaced)
    await healthy(link)
    await until(lambda: owner.health == [True, False, True])
    assert failures >= 5
    assert link.last_error is None
    assert len(redis.visits) >= 8, "both sides were connected anew after each failure"
    (said,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert said.message == "watching redis failed; connecting anew (said once a minute)"
    assert said.exc_info
    await link.stop()


async def test_a_gap_that_cannot_be_told_does_not_end_the_probes(redis, owner, link, caplog, monkeypatch):
    monkeypatch.setattr(module, "FAILURE_PAUSE_SECONDS", 0.01)

    def fail(link, since):
        owner.repairs.append(since)
        if len(owner.repairs) == 1:
            raise ZeroDivisionError

    owner.on_repaired = fail
    await healthy(link)
    redis.listeners(b"probe")[0].hang_up()
    await until(lambda: len(owner.repairs) == 2 and link.is_healthy)
    count = len(redis.published)
    await until(lambda: len(redis.published) > count + 1, "it probes on")
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


async def test_it_can_probe_by_another_channel(redis, owner, link):
    await healthy(link)
    link.probe_by(b"probe")
    link.probe_by(b"other")
    await until(lambda: (b"other" in {channel for channel, _ in redis.published}) and link.listener.is_settled())
    heard_since = link.heard_since
    await until(lambda: link.heard_since > heard_since)
    assert redis.listeners(b"probe") == []
    assert link.is_healthy
    assert (owner.health, owner.repairs) == ([True], [])


async def test_it_does_not_probe_by_a_channel_that_is_not_heard_yet(redis, owner, link):
    await healthy(link)
    redis.confirms = False
    link.probe_by(b"other")
    await until(lambda: redis.listeners(b"other") and link._probe is not None and not link.listener.is_settled())
    (listener,) = redis.listeners(b"other")
    assert b"other" not in {channel for channel, _ in redis.published}
    redis.confirms = True
    listener.say(bulk(b"unsubscribe", b"probe", 1) + bulk(b"subscribe", b"other", 1))
    await until(lambda: b"other" in {channel for channel, _ in redis.published})
    assert owner.health == [True]


async def test_changing_the_channel_while_a_probe_is_under_way_is_no_trouble(redis, owner, link):
    await healthy(link)
    redis.passes_on = False
    count = len(redis.published)
    await until(lambda: len(redis.published) > count)
    link.probe_by(b"other")
    redis.passes_on = True
    await until(lambda: (b"other" in {channel for channel, _ in redis.published}) and link.is_healthy)
    assert len(redis.visits) == 2, "nothing was hung up"


async def test_stopping_leaves_nothing(redis, link):
    await link.stop()
    before = asyncio.all_tasks()
    await healthy(link)
    await link.stop()
    await link.stop()
    await until(lambda: asyncio.all_tasks() <= before)
    await until(lambda: all(visit.is_over for visit in redis.visits))


@pytest.mark.parametrize("trouble", ["deaf", "mute", "away"])
async def test_it_can_be_stopped_in_trouble(redis, link, trouble, caplog):
    caplog.set_level(logging.ERROR)
    redis.passes_on = False
    redis.answers = None if trouble == "mute" else b"number"
    redis.greeting = b"-LOADING\r\n" if trouble == "away" else b"+OK\r\n"
    link.start()
    await until(lambda: redis.published or trouble == "away")
    await asyncio.wait_for(link.stop(), 1)
    assert caplog.records == []
