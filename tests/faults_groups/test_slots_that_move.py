"""What is sent on when slots move, without servers: any order of events, and the time that it may take."""

import asyncio
import itertools
from collections import deque
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.exceptions import MovedError, ResponseError

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis import cluster
from fastapi_rooms.backends.redis.link import Pace
from fastapi_rooms.backends.redis.places import locate
from fastapi_rooms.backends.redis.publishing import Command
from fastapi_rooms.backends.redis.slots import SLOTS, SlotTable, slot_of

SERVERS = [("127.0.0.1", port) for port in (7001, 7002, 7003)]
CHANNELS = [b"one", b"two"]
TIMEOUT = 2.0


class Line:
    """The publishing side, whose server answers when it is told to. It connects anew at once."""

    def __init__(self, timeout):
        self.queue = deque()
        self.timeout = timeout

    def send(self, *words):
        command = self.make(*words)
        self.put(command)
        return command.future

    def make(self, *words):
        loop = asyncio.get_running_loop()
        return Command(words, loop.time() + self.timeout, loop.create_future())

    def put(self, command):
        self.queue.append(command)

    def unanswered(self):
        return list(self.queue)

    async def flush(self):
        if self.queue:
            await asyncio.wait([self.send(b"PING")])


class Listener:
    def __init__(self):
        self.wanted = set()
        self.is_up = True

    def want(self, channels):
        self.wanted.update(channels)
        return []

    def unwant(self, channels):
        self.wanted.difference_update(channels)

    def try_again(self):
        pass


class Link:
    last_error = None
    is_healthy = True

    def __init__(self, name, dial, pace, owner, probe_channel, *, shards):
        self.name = name
        self.address = (name.split(":")[0], int(name.split(":")[1]))
        self.owner = shards
        self.probe_channel = probe_channel
        self.line = Line(pace.timeout)
        self.listener = Listener()
        self.heard_since = datetime.now(UTC)
        self.is_stopped = False

    def start(self):
        pass

    async def stop(self):
        self.is_stopped = True
        self.lose()

    def publishing(self, channel, payload):
        return self.line.make(b"SPUBLISH", channel, payload)

    def probe_by(self, channel):
        self.probe_channel = channel

    def lose(self):
        failed, self.line.queue = self.line.queue, deque()
        for command in failed:
            command.fail(BackendUnavailable("lost"))


class Listening:
    """What the backend is told."""

    def __init__(self):
        self.repaired = []

    def on_health(self):
        pass

    def on_message(self, channel, payload):
        pass

    def on_repaired(self, since, channels):
        self.repaired.append((since, set(channels)))


class Scene:
    """Links to three servers, each of which has its own opinion on who has which slot."""

    def __init__(self, monkeypatch, timeout=TIMEOUT):
        self.made = []

        def make(*args, **options):
            self.made.append(Link(*args, **options))
            return self.made[-1]

        monkeypatch.setattr(cluster, "Link", make)
        seeds = locate("redis+cluster://127.0.0.1:7001", timeout)
        self.listening = Listening()
        self.links = cluster.ClusterLinks(seeds, Pace(timeout, 2.0), self.listening, lambda number: b"probe %d" % number)
        self.views = {server: dict.fromkeys(CHANNELS, SERVERS[0]) for server in SERVERS}
        self.told = []  # channel, number, future: in the order of the calls
        self.taken = {channel: [] for channel in CHANNELS}  # by the servers, in their order

    def refresh(self, server, *others):
        """Take over what a server says; the others have slots, too."""
        view = self.views[server]
        answer = [[0, SLOTS - 1, [SERVERS[0][0].encode(), SERVERS[0][1]]]]
        for number, (host, port) in enumerate(others):
            answer.append([number, number, [host.encode(), port]])
        for channel, (host, port) in view.items():
            answer.append([slot_of(channel), slot_of(channel), [host.encode(), port]])
        self.links._table = SlotTable()
        self.links._table.replace(answer, server)
        self.links._apply_table()

    def publish(self, channel):
        number = len(self.told)
        future = self.links.publish(channel, b"%d" % number)
        self.told.append((channel, number, future))
        return future

    def answer(self, link):
        """Have a server answer the next command of a link."""
        if not link.line.queue:
            return
        command = link.line.queue.popleft()
        if command.words[0] == b"PING":
            command.succeed(b"PONG")
            return
        _, channel, payload = command.words
        owner = self.views[link.address].get(channel, link.address)
        if owner == link.address:
            self.take(channel, payload)
            command.succeed(1)
            return
        error = MovedError(f"{slot_of(channel)} {owner[0]}:{owner[1]}")
        if not link.owner.on_refused(link, command, error):
            command.fail(BackendUnavailable(str(error)))

    def take(self, channel, payload):
        if channel in self.taken:
            self.taken[channel].append(int(payload))

    def lose(self, link, *, late):
        """End a connection; of what was under way the server takes all or nothing."""
        for command in link.line.queue if late else ():
            if command.words[0] != b"PING" and self.views[link.address].get(command.words[1]) == link.address:
                self.take(*command.words[1:])
        link.lose()

    async def drain(self):
        for _ in range(400):
            for link in list(self.made):
                self.answer(link)
            await asyncio.sleep(0)
            if not self.links._held.commands() and not any(link.line.queue for link in self.made):
                await asyncio.sleep(0)
                if not self.links._leaving:
                    return
        raise AssertionError("it never ends")

    def check(self):
        """Check that all was taken in order and once, and that everybody was told the truth."""
        for channel, taken in self.taken.items():
            assert taken == sorted(set(taken)), f"{channel} in order, and nothing twice"
        for channel, number, future in self.told:
            assert future.done()
            if not future.cancelled() and future.exception() is None:
                assert number in self.taken[channel], "what did not fail was taken"


channels, servers, numbers = st.sampled_from(CHANNELS), st.sampled_from(SERVERS), st.integers(0, 5)
events = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), channels),
        st.tuples(st.just("answer"), numbers),
        st.tuples(st.just("tell"), servers, channels, servers),
        st.tuples(st.just("refresh"), servers),
        st.tuples(st.just("cancel"), numbers),
        st.tuples(st.just("lose"), numbers, st.booleans()),
        st.tuples(st.just("wait")),
    ),
    max_size=60,
)


async def play(scene, story):
    scene.refresh(SERVERS[0])
    for event, *details in story:
        match event, details:
            case "publish", [channel]:
                scene.publish(channel)
            case "answer", [number]:
                scene.answer(scene.made[number % len(scene.made)])
            case "tell", [server, channel, owner]:
                scene.views[server][channel] = owner
            case "refresh", [server]:
                scene.refresh(server)
            case "cancel", [number] if scene.told:
                scene.told[number % len(scene.told)][2].cancel()
            case "lose", [number, late]:
                scene.lose(scene.made[number % len(scene.made)], late=late)
            case "wait", []:
                await asyncio.sleep(0)
    for view in scene.views.values():
        view.update(scene.views[SERVERS[0]])
    await scene.drain()
    scene.check()
    await scene.links.stop()
    assert all(link.is_stopped for link in scene.made)


@given(events)
def test_whatever_happens_all_is_taken_in_order_and_once(story):
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(play(Scene(monkeypatch), story))
