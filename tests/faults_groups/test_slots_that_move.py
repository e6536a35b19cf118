"""What is sent on when slots move, without servers: any order of events, and the time that it may take."""

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import AskError, ClusterDownError, MovedError
from support import until

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis import cluster, listening
from fastapi_rooms.backends.redis.link import Pace
from fastapi_rooms.backends.redis.places import locate
from fastapi_rooms.backends.redis.publishing import Command
from fastapi_rooms.backends.redis.slots import SLOTS, SlotTable, slot_of
from fastapi_rooms.backends.redis.unheard import REPORT_SECONDS

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
            last = self.send(b"PING")
            await asyncio.wait([last])
            last.exception()


class Listener:
    """The listening side, which confirms nothing unless it is told to."""

    def __init__(self):
        self.wanted = set()
        self.confirmed = set()
        self.is_up = True

    def want(self, channels):
        self.wanted.update(channels)
        return [asyncio.get_running_loop().create_future() for channel in channels if channel not in self.confirmed]

    def unwant(self, channels):
        self.wanted.difference_update(channels)

    def try_again(self):
        pass


class Link:
    last_error = None
    is_healthy = True

    def __init__(self, name, dial, pace, owner, probe_channel, mark=b"", *, shards):
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
        self.links = cluster.ClusterLinks(
            seeds, Pace(timeout, 2.0), self.listening, lambda number: b"probe %d" % number, b""
        )
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
        self.tell(answer, server)

    def tell(self, answer, server=SERVERS[0]):
        """Have a server tell who has which slot."""
        table = SlotTable()
        table.replace(answer, server)
        self.links._take_table(table)

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

    def link(self, number):
        """One of all links that were ever made."""
        links = sorted(self.made, key=lambda link: link.address)  # the table is a set
        return links[number % len(links)]

    @property
    def pair(self):
        """The first links to the first and to the second server."""
        return [next(link for link in self.made if link.address == server) for server in SERVERS[:2]]

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
    min_size=20,
    max_size=60,
)


async def play(scene, story):
    scene.refresh(SERVERS[0])
    for event, *details in story:
        match event, details:
            case "publish", [channel]:
                scene.publish(channel)
            case "answer", [number]:
                scene.answer(scene.link(number))
            case "tell", [server, channel, owner]:
                scene.views[server][channel] = owner
            case "refresh", [server]:
                scene.refresh(server)
            case "cancel", [number] if scene.told:
                scene.told[number % len(scene.told)][2].cancel()
            case "lose", [number, late]:
                scene.lose(scene.link(number), late=late)
            case "wait", []:
                await asyncio.sleep(0)
    for view in scene.views.values():
        view.update(scene.views[SERVERS[0]])
    await scene.drain()
    scene.check()
    await scene.links.stop()
    assert all(link.is_stopped for link in scene.made)


@settings(max_examples=60, deadline=None)
@given(events)
def test_whatever_happens_all_is_taken_in_order_and_once(story):
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(play(Scene(monkeypatch), story))


# Publishing


@pytest.fixture
async def scene(monkeypatch):
    """Links to two servers, of which the first has the slots of all channels."""
    made = Scene(monkeypatch)
    made.refresh(SERVERS[0], SERVERS[1])
    yield made
    await made.links.stop()


def move(scene, channel, *servers):
    """Have servers believe that the second has a channel's slot."""
    for server in servers or SERVERS:
        scene.views[server][channel] = SERVERS[1]


async def test_what_was_refused_goes_before_what_was_published_since(scene):
    one, _ = scene.pair
    for _ in range(3):
        scene.publish(b"one")
    move(scene, b"one")
    scene.answer(one)
    scene.publish(b"one")
    assert [other.line.queue for other in scene.made if other is not one] == [deque()], "it waits for the others"
    await scene.drain()
    assert scene.taken[b"one"] == [0, 1, 2, 3]


async def test_what_was_refused_before_something_that_was_taken_fails(scene):
    one, _ = scene.pair
    for _ in range(3):
        scene.publish(b"one")
    move(scene, b"one")
    scene.answer(one)
    scene.views[SERVERS[0]][b"one"] = SERVERS[0]
    scene.answer(one)
    scene.views[SERVERS[0]][b"one"] = SERVERS[1]
    await scene.drain()
    assert scene.taken[b"one"] == [1, 2]
    with pytest.raises(BackendUnavailable, match="something behind it went first"):
        await scene.told[0][2]


async def test_nothing_overtakes_what_is_under_way_when_the_table_changes(scene):
    one, two = scene.pair
    scene.publish(b"one")
    move(scene, b"one", SERVERS[1])
    scene.refresh(SERVERS[1], SERVERS[1])
    scene.publish(b"one")
    scene.publish(b"two")
    assert (len(two.line.queue), [command.words[0] for command in one.line.queue]) == (
        0,
        [b"SPUBLISH", b"PING", b"SPUBLISH"],
    ), "another slot does not wait"
    await scene.drain()
    assert scene.taken == {b"one": [0, 1], b"two": [2]}


async def test_cancelling_does_not_take_back_what_was_refused_nor_let_others_overtake_it(scene):
    for _ in range(3):
        scene.publish(b"one")
    move(scene, b"one")
    for _, _, future in scene.told[:2]:
        future.cancel()
    scene.answer(scene.pair[0])
    await asyncio.sleep(0)
    scene.publish(b"one").cancel()
    await scene.drain()
    assert scene.taken[b"one"] == [0, 1, 2, 3]


async def test_servers_that_send_a_command_back_and_forth_do_not_do_so_for_ever(scene):
    scene.views[SERVERS[0]][b"one"], scene.views[SERVERS[1]][b"one"] = SERVERS[1], SERVERS[0]
    scene.publish(b"one")
    await scene.drain()
    with pytest.raises(BackendUnavailable, match=f"{slot_of(b'one')} 127.0.0.1:700"):
        await scene.told[0][2]
    assert scene.taken[b"one"] == []


async def test_what_is_held_fails_in_time_though_the_old_server_is_silent(monkeypatch):
    scene = Scene(monkeypatch, timeout=0.1)
    scene.refresh(SERVERS[0], SERVERS[1])
    for _ in range(2):
        scene.publish(b"one")
    move(scene, b"one")
    scene.answer(scene.pair[0])
    scene.publish(b"one")
    begin = asyncio.get_running_loop().time()
    for number in (0, 2):
        with pytest.raises(BackendUnavailable, match="its time was over"):
            await scene.told[number][2]
    assert asyncio.get_running_loop().time() - begin < 0.2
    await scene.drain()
    assert scene.taken[b"one"] == [], "what has failed is not sent afterwards"
    with pytest.raises(BackendUnavailable, match="its time was over"):
        await scene.told[1][2]
    await scene.links.stop()


async def test_what_is_held_for_a_slot_that_nobody_has_any_more_fails(scene):
    scene.publish(b"one")
    move(scene, b"one")
    scene.answer(scene.pair[0])
    scene.publish(b"one")
    scene.tell([])
    await scene.drain()
    for _, _, future in scene.told:
        with pytest.raises(BackendUnavailable, match="no server of the cluster is known to have slot"):
            await future
    with pytest.raises(BackendUnavailable, match="no server of the cluster is known to have slot"):
        await scene.publish(b"one")


@pytest.mark.parametrize(
    "error", [ClusterDownError("down"), MovedError("1 127.0.0.1:70000"), MovedError("1 127.0.0.1:7001")], ids=repr
)
async def test_what_was_not_sent_to_another_server_fails(scene, error):
    one, _ = scene.pair
    command = one.line.make(b"SPUBLISH", b"one", b"0")
    assert not scene.links.on_refused(one, command, error)
    assert scene.links._keeper._is_stale.is_set(), "the table is asked for"


async def test_a_server_that_does_not_know_the_name_of_another_means_its_own_host(scene):
    one, two = scene.pair
    command = one.line.make(b"SPUBLISH", b"one", b"0")
    assert scene.links.on_refused(one, command, MovedError(f"{slot_of(b'one')} :7002"))
    scene.answer(one)
    await asyncio.sleep(0)
    assert list(two.line.queue) == [command]


async def test_a_probe_is_not_sent_on_and_another_channel_is_taken(scene):
    one, two = scene.pair
    probe = one.probe_channel
    command = one.line.make(b"SPUBLISH", probe, b"1")
    scene.publish(b"one")
    one.line.queue.append(command)
    assert not scene.links.on_refused(one, command, MovedError(f"{slot_of(probe)} 127.0.0.1:7002"))
    assert scene.links._link_of(slot_of(probe)) is two
    assert scene.links._link_of(slot_of(one.probe_channel)) is one
    one.line.queue.remove(command)
    await scene.drain()


async def test_a_probe_stays_where_it_is_when_the_table_changes_elsewhere(scene):
    probes = [link.probe_channel for link in scene.made]
    move(scene, b"one")
    scene.refresh(SERVERS[0], SERVERS[1], SERVERS[1])
    assert [link.probe_channel for link in scene.made] == probes


async def test_a_link_that_leaves_waits_for_its_answers(scene):
    one, two = scene.pair
    told = [scene.publish(b"one") for _ in range(3)]
    told[0].cancel()
    move(scene, b"one", SERVERS[1])
    move(scene, b"two", SERVERS[1])
    scene.tell([[0, SLOTS - 1, [b"127.0.0.1", 7002]]])
    await asyncio.sleep(0)
    assert not one.is_stopped
    flushing = asyncio.ensure_future(scene.links.flush())
    await scene.drain()
    await flushing
    assert one.is_stopped
    assert scene.taken[b"one"] == [0, 1, 2]
    assert list(scene.links._addresses) == [two]


async def test_a_link_that_leaves_is_stopped_with_the_others(scene):
    one, _ = scene.pair
    told = scene.publish(b"one")
    scene.tell([[0, SLOTS - 1, [b"127.0.0.1", 7002]]])
    await asyncio.sleep(0)
    await scene.links.stop()
    assert one.is_stopped
    with pytest.raises(BackendUnavailable):
        await told


async def test_nothing_is_sent_on_after_the_end(scene):
    one, _ = scene.pair
    await scene.links.stop()
    assert not scene.links.on_refused(one, one.line.make(b"SPUBLISH", b"one", b"0"), MovedError("1 127.0.0.1:7003"))
    assert len(scene.made) == 2, "nobody is connected to"


# Listening


async def test_nothing_is_heard_where_a_channel_is_not_wanted_any_more():
    heard = []
    listener = listening.Listener("listener", None, int, TIMEOUT, lambda channel, payload: heard.append(payload))
    listener.want([b"one"])
    listener._take([b"smessage", b"one", b"before it moved"])
    listener.unwant([b"one"])
    listener._take([b"smessage", b"one", b"late, and from a server that it has left"])
    assert heard == [b"before it moved"]


async def test_who_joins_waits_until_the_channel_is_heard_wherever_that_is(scene):
    one, two = scene.pair
    (heard,) = scene.links.want([b"one"])
    assert scene.links.want([b"one"]) == [heard], "others wait for the same"
    assert one.listener.wanted == {b"one"}
    move(scene, b"one")
    scene.refresh(SERVERS[0], SERVERS[1])
    assert (one.listener.wanted, two.listener.wanted) == (set(), {b"one"})
    assert not heard.done()
    scene.links.on_confirmed(b"one")
    assert heard.done()
    two.listener.confirmed.add(b"one")
    assert scene.links.want([b"one"]) == []


async def test_who_joins_does_not_wait_for_a_server_that_is_lost_nor_for_nobody(scene):
    one, two = scene.pair
    (first,) = scene.links.want([b"one"])
    two.is_healthy = False
    scene.links.on_health(two)
    assert not first.done(), "it is another server"
    one.is_healthy = False
    scene.links.on_health(one)
    assert first.done()
    (second,) = scene.links.want([b"two"])
    scene.tell([])
    assert second.done()
    assert scene.links.want([b"one"]) == []


async def test_who_joins_does_not_wait_longer_than_for_an_answer(monkeypatch):
    scene = Scene(monkeypatch, timeout=0.05)
    scene.refresh(SERVERS[0])
    (heard,) = scene.links.want([b"one"])
    await asyncio.wait_for(heard, 1)
    (again,) = scene.links.want([b"one"])
    scene.links.unwant([b"one"])
    assert again.done()
    await scene.links.stop()


async def test_who_joins_waits_for_a_server_that_is_new_but_not_for_one_that_is_away(scene):
    one, _ = scene.pair
    one.listener.is_up = False
    one.listener.confirmed = {b"one", b"two"}  # it has nothing to wait for
    (heard,) = scene.links.want([b"one"])
    one.last_error = BackendUnavailable("away")
    assert scene.links.want([b"two"]) == []
    await scene.links.stop()
    assert heard.done(), "nobody waits for what is stopped"


async def test_channels_that_moved_are_reported_together_each_since_it_was_heard(scene):
    one, two = scene.pair
    scene.links.want(CHANNELS)
    one.heard_since = datetime(2026, 1, 1, tzinfo=UTC)
    for channel in CHANNELS:
        move(scene, channel)
    scene.refresh(SERVERS[0], SERVERS[1])
    for channel in CHANNELS:
        scene.links.on_confirmed(channel)
    scene.links.on_taken(two, b"one")
    scene.links.on_confirmed(b"one")
    assert scene.listening.repaired == [], "they are collected"
    await until(lambda: scene.listening.repaired)
    assert scene.listening.repaired == [(one.heard_since, set(CHANNELS))]
    scene.links.on_confirmed(b"one")
    assert scene.links._unheard._report_timer is None, "it did not move"


async def test_a_channel_whose_slot_comes_back_before_anybody_looked_is_reported(scene):
    one, _ = scene.pair
    scene.links.want([b"one"])
    scene.links.on_confirmed(b"one")
    scene.links.on_taken(one, b"one")
    scene.links.on_taken(one, one.probe_channel)
    scene.links.on_confirmed(b"one")
    await until(lambda: scene.listening.repaired)
    assert scene.listening.repaired == [(one.heard_since, {b"one"})]


async def test_what_is_not_wanted_any_more_is_not_reported(scene):
    one, two = scene.pair
    scene.links.want([b"one"])
    scene.links.on_taken(one, b"one")
    scene.links.on_confirmed(b"one")
    scene.links.unwant([b"one"])
    await until(lambda: scene.links._unheard._report_timer is None)
    scene.links.on_repaired(two, datetime.now(UTC) - timedelta(seconds=1))
    assert scene.listening.repaired == []


async def test_nothing_is_reported_after_the_end(scene):
    one, _ = scene.pair
    scene.links.want([b"one"])
    scene.links.on_taken(one, b"one")
    scene.links.on_confirmed(b"one")
    await scene.links.stop()
    await asyncio.sleep(REPORT_SECONDS * 1.5)
    assert scene.listening.repaired == []


async def test_it_is_healthy_when_all_servers_are_and_says_why_not(scene):
    _, two = scene.pair
    assert scene.links.is_healthy
    two.is_healthy = False
    assert not scene.links.is_healthy
    assert str(scene.links.last_error) == "127.0.0.1:7002 was not heard yet"
    two.last_error = BackendUnavailable("away")
    assert scene.links.last_error is two.last_error
    two.is_healthy = True
    scene.links._table = SlotTable()
    assert not scene.links.is_healthy
    assert str(scene.links.last_error) == "some slots of the cluster have no server"


# Keys that are ahead of their slot


def ask(port):
    return AskError(f"{slot_of(CHANNELS[0])} 127.0.0.1:{port}")


async def test_what_is_about_a_key_that_is_ahead_of_its_slot_is_sent_after_it(monkeypatch):
    scene = Scene(monkeypatch)
    scene.refresh(SERVERS[0], SERVERS[1])
    source, target = scene.pair
    told = scene.links.send(b"GETDEL", CHANNELS[0])
    command = source.line.queue.popleft()
    assert source.owner.on_refused(source, command, ask(SERVERS[1][1]))
    assert [one.words for one in target.line.queue] == [(b"ASKING",), (b"GETDEL", CHANNELS[0])]
    for one in list(target.line.queue):
        one.succeed(b"OK")
    assert await told == b"OK"
    assert scene.links._link_of(slot_of(CHANNELS[0])) is source, "its slot is where it was"
    target.line.queue.clear()
    await scene.links.stop()


async def test_nobody_asks_a_server_that_is_not_known_or_one_after_the_other_for_ever(monkeypatch):
    scene = Scene(monkeypatch)
    scene.refresh(SERVERS[0], SERVERS[1])
    source, _ = scene.pair
    command = source.line.make(b"GETDEL", CHANNELS[0])
    assert not source.owner.on_refused(source, command, ask(SERVERS[2][1]))
    assert not source.owner.on_refused(source, command, ask(99_999))
    command.redirects = cluster.MAX_REDIRECTS
    assert not source.owner.on_refused(source, command, ask(SERVERS[1][1]))
    await scene.links.stop()


async def test_what_is_about_a_key_that_is_ahead_fails_by_its_deadline(monkeypatch):
    scene = Scene(monkeypatch, timeout=0.05)
    scene.refresh(SERVERS[0], SERVERS[1])
    source, target = scene.pair
    told = scene.links.send(b"GETDEL", CHANNELS[0])
    assert source.owner.on_refused(source, source.line.queue.popleft(), ask(SERVERS[1][1]))
    with pytest.raises(BackendUnavailable, match="its time was over"):
        await asyncio.wait_for(told, 5)
    target.lose()
    await scene.links.stop()
