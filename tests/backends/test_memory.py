"""The backend in memory: the contract, and what is particular to it: threads, loops that die, and being cut off."""

import asyncio
import contextvars
import threading
from uuid import uuid4

import pytest

from fastapi_rooms import Backend, BackendUnavailable, ConfigurationError
from fastapi_rooms.backends.contract import SupportsStore
from fastapi_rooms.backends.memory import Hub, LocalStore, MemoryBackend
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, room_target
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.testing import BackendConformance, Recorder

DEADLINE = 5.0
ROOM = room_target("kitchen")


class TestContract(BackendConformance):
    deadline = DEADLINE
    outage_deadline = DEADLINE

    def setup_method(self):
        self.hub = Hub()

    async def make_backend(self):
        return MemoryBackend(self.hub)

    async def cut(self, backend):
        self.hub.cut(backend)

    async def restore(self, backend):
        self.hub.restore(backend)


class Node(Recorder):
    def __init__(self, hub, *targets):
        super().__init__()
        self.backend = MemoryBackend(hub)
        self.node_id = uuid4().hex
        self.backend.subscribe(targets)

    async def start(self, **options):
        await self.backend.start(self.node_id, self, **options)

    def say(self, text, target=ROOM):
        return self.backend.publish(Envelope(self.node_id, target, Message(text.encode(), is_text=True)))

    @property
    def heard(self):
        return [envelope.content.payload.decode() for envelope in self.envelopes]


class ThreadedNode(Node):
    """A node on a loop and in a thread of its own."""

    def __init__(self, hub, *targets):
        super().__init__(hub, *targets)
        self.called_in = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def receive(self, envelope):
        self.called_in.add((threading.current_thread(), asyncio.get_running_loop()))
        super().receive(envelope)

    def missed(self, gap):
        self.called_in.add((threading.current_thread(), asyncio.get_running_loop()))
        super().missed(gap)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE)

    def die(self):
        """End the loop as a process ends that is killed: nothing is stopped."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE)
        self.loop.close()


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
def threaded(hub):
    """Make started nodes in threads; what is left of them is stopped at the end."""
    nodes = []

    def make(*targets):
        node = ThreadedNode(hub, *targets)
        nodes.append(node)
        node.run(node.start())
        return node

    yield make
    for node in nodes:
        if not node.loop.is_closed():
            node.run(node.backend.stop())
            node.die()


@pytest.fixture
async def nodes(hub):
    """Two nodes on the loop of the test, in the same room."""
    made = [Node(hub, ROOM), Node(hub, ROOM)]
    for node in made:
        await node.start(required=True)
    yield made
    for node in made:
        await node.backend.stop()


def test_it_is_a_backend(hub):
    assert isinstance(MemoryBackend(hub), Backend)


# Threads


def test_nodes_hear_each_other_across_loops_and_threads(threaded):
    one, two = threaded(ROOM), threaded(ROOM)

    async def say_much(node):
        for number in range(500):
            await node.say(str(number))
            if number % 50 == 0:
                await asyncio.sleep(0)

    running = [asyncio.run_coroutine_threadsafe(say_much(node), node.loop) for node in (one, two)]
    for future in running:
        future.result(DEADLINE)
    for node in (one, two):
        node.run(node.received(500))
        assert node.heard == [str(number) for number in range(500)]
        assert node.called_in == {(node.thread, node.loop)}, "a receiver is called on its own loop"


def test_gaps_are_reported_on_the_loop_of_the_node(hub, threaded):
    node = threaded(ROOM, EVERYBODY)
    hub.cut(node.backend)
    hub.restore(node.backend)
    (gap,) = node.run(node.reported(1))
    assert gap.targets == {ROOM, EVERYBODY}
    assert node.called_in == {(node.thread, node.loop)}


def test_anything_may_be_called_while_nodes_start_stop_subscribe_and_are_cut(hub, threaded):
    speaker, listener, other = threaded(ROOM), threaded(ROOM), threaded(ROOM)
    over = threading.Event()
    failures = []

    def disturb(*steps):
        try:
            while not over.is_set():
                for step in steps:
                    step()
        except BaseException as error:
            failures.append(error)
            raise

    rooms = [room_target(str(number)) for number in range(50)]
    threads = [
        threading.Thread(target=disturb, args=steps)
        for steps in [
            (lambda: other.run(other.backend.stop()), lambda: other.run(other.start())),
            (lambda: other.backend.subscribe(rooms), lambda: other.backend.unsubscribe(rooms)),
            (lambda: hub.cut(other.backend), lambda: hub.restore(other.backend)),
            (lambda: repr(hub), lambda: repr(other.backend), lambda: other.backend.status),
        ]
    ]
    for thread in threads:
        thread.start()

    async def say_much():
        for number in range(1000):
            await speaker.say(str(number))
            await asyncio.sleep(0)

    try:
        speaker.run(say_much())
        listener.run(listener.received(1000))
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert failures == []
    assert listener.heard == [str(number) for number in range(1000)]
    numbers = [int(word) for word in other.heard]
    assert numbers == sorted(set(numbers)), "each at most once, in order"


def test_context_variables_do_not_cross(threaded):
    secret = contextvars.ContextVar("secret", default="none")
    seen = []

    class Curious(Recorder):
        def receive(self, envelope):
            seen.append(secret.get())
            super().receive(envelope)

    one, two = threaded(ROOM), threaded(ROOM)
    curious = Curious()
    two.run(two.backend.stop())
    two.run(two.backend.start(two.node_id, curious))

    async def say():
        secret.set("mine")
        await one.say("hello")

    one.run(say())
    two.run(curious.received(1))
    assert seen == ["none"]


# Loops that die


def test_a_node_whose_loop_was_closed_is_gone_and_nobody_else_notices(hub, threaded):
    one, two, three = threaded(ROOM), threaded(ROOM), threaded(ROOM)
    two.die()
    assert repr(hub) == "<Hub nodes=3>", "nobody has tried to reach it"
    one.say("hello")
    three.run(three.received(1))
    assert repr(hub) == "<Hub nodes=2>"
    assert not two.backend.status.connected
    assert two.envelopes == []
    assert one.backend.status.undelivered == 0


def test_a_gap_of_a_node_whose_loop_was_closed_is_nobodys(hub, threaded):
    node = threaded(ROOM)
    hub.cut(node.backend)
    node.die()
    hub.restore(node.backend)
    assert not node.backend.status.connected
    assert node.gaps == []


async def test_a_node_whose_loop_was_closed_can_start_again_on_another(hub, threaded, nodes):
    one, _ = nodes
    dead = threaded(ROOM)
    dead.die()
    await dead.start(required=True)
    assert dead.backend.status.connected
    await one.say("hello")
    assert [envelope.origin for envelope in await dead.received(1)] == [one.node_id]
    await dead.backend.stop()


async def test_a_node_whose_loop_was_closed_does_not_start_while_cut_off_if_it_is_required(hub, threaded):
    dead = threaded(ROOM)
    dead.die()
    hub.cut(dead.backend)
    with pytest.raises(BackendUnavailable, match="cut off: restore it, or start with required=False"):
        await dead.start(required=True)
    assert repr(hub) == "<Hub nodes=0>"


def test_it_may_be_started_on_one_loop_after_the_other(hub):
    one, two = Node(hub, ROOM), Node(hub, ROOM)

    async def life(word):
        for node in (one, two):
            await node.start(required=True)
        await one.say(word)
        await two.received(1)
        heard, two.envelopes = two.heard, []
        for node in (one, two):
            await node.backend.stop()
        return heard

    for word in ("first", "second"):
        assert asyncio.run(life(word)) == [word]


# Being cut off


async def test_what_was_published_before_the_cut_arrives_and_what_was_published_after_it_does_not(hub, nodes):
    one, two = nodes
    await one.say("before")
    hub.cut(two.backend)
    await one.say("lost")
    hub.restore(two.backend)
    await one.say("after")
    await two.received(2)
    assert two.heard == ["before", "after"]
    assert len(two.gaps) == 1


async def test_the_gap_is_exactly_the_time_for_which_it_was_cut_off(hub, nodes):
    _, two = nodes
    hub.cut(two.backend)
    since = two.backend.status.degraded_since
    hub.cut(two.backend)
    assert two.backend.status.degraded_since == since, "cutting twice is cutting once"
    hub.restore(two.backend)
    hub.restore(two.backend)
    (gap,) = await two.reported(1)
    assert (gap.since, gap.targets) == (since, {ROOM})
    status = two.backend.status
    assert (status.connected, status.reconnects, status.gaps) == (True, 1, 1)


async def test_what_was_never_cut_off_is_not_restored(hub, nodes):
    one, _ = nodes
    hub.restore(one.backend)
    await asyncio.sleep(0)
    assert (one.gaps, one.backend.status.gaps) == ([], 0)


async def test_a_stopped_node_that_is_restored_reports_nothing(hub):
    node = Node(hub, ROOM)
    hub.cut(node.backend)
    hub.restore(node.backend)
    await node.start(required=True)
    await node.backend.stop()
    assert (node.gaps, node.backend.status.gaps) == ([], 0)


async def test_what_was_never_connected_has_no_reconnect_but_a_gap(hub, nodes):
    late = Node(hub, ROOM)
    hub.cut(late.backend)
    await late.start()
    hub.restore(late.backend)
    assert (await late.reported(1))[0].targets == {ROOM}
    status = late.backend.status
    assert (status.connected, status.reconnects, status.gaps) == (True, 0, 1)
    await late.backend.stop()


async def test_a_node_that_is_stopped_while_cut_off_has_been_degraded_since_the_cut(hub, nodes):
    one, _ = nodes
    hub.cut(one.backend)
    since = one.backend.status.degraded_since
    await one.backend.stop()
    assert one.backend.status.degraded_since == since


async def test_why_publishing_fails_is_said(hub, nodes):
    one, _ = nodes
    hub.cut(one.backend)
    with pytest.raises(BackendUnavailable, match="this node is cut off"):
        await one.say("hello")
    await one.backend.stop()
    with pytest.raises(BackendUnavailable, match="the backend is not started"):
        await one.say("hello")


def test_a_backend_of_another_hub_is_refused(hub):
    foreign = MemoryBackend(Hub())
    for call in (hub.cut, hub.restore):
        with pytest.raises(ConfigurationError, match=r"another hub: use backend\.hub"):
            call(foreign)


# What is on its way when something ends


async def test_what_is_on_its_way_to_a_node_that_stops_is_dropped(hub, nodes):
    one, two = nodes
    await one.say("hello")
    await two.backend.stop()
    await two.start()
    hub.cut(two.backend)
    hub.restore(two.backend)
    await two.backend.stop()
    await asyncio.sleep(0)
    assert (two.envelopes, two.gaps) == ([], [])


async def test_nothing_is_received_after_unsubscribing_even_what_was_on_its_way(nodes):
    one, two = nodes
    await one.say("on its way")
    two.backend.unsubscribe((ROOM,))
    await asyncio.sleep(0)
    assert two.envelopes == []


async def test_receivers_are_never_called_within_a_publish(nodes):
    one, two = nodes
    told = one.say("hello")
    assert two.envelopes == []
    await told
    assert two.envelopes == [], "it is ready at once"
    await two.received(1)


# Receivers that raise


async def test_a_receiver_that_raises_is_logged(hub, nodes, caplog):
    class Clumsy(Recorder):
        def receive(self, envelope):
            raise RuntimeError("receiving failed")

        def missed(self, gap):
            raise RuntimeError("missing failed")

    one, _ = nodes
    clumsy = MemoryBackend(hub)
    clumsy.subscribe((ROOM,))
    await clumsy.start(uuid4().hex, Clumsy())
    await one.say("hello")
    hub.cut(clumsy)
    hub.restore(clumsy)
    await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records] == [
        "an envelope could not be delivered",
        "a gap could not be reported",
    ]
    assert all(record.exc_info for record in caplog.records)
    assert clumsy.status.connected
    await clumsy.stop()


def test_its_repr_shows_no_names(hub):
    backend = MemoryBackend(hub)
    backend.subscribe((room_target("secret"),))
    assert repr(backend) == "<MemoryBackend targets=1 (degraded)>"
    asyncio.run(backend.start(uuid4().hex, Recorder()))
    assert repr(backend) == "<MemoryBackend targets=1>"


# The store


def test_it_has_a_store():
    assert isinstance(MemoryBackend(Hub()), SupportsStore)
    assert isinstance(LocalStore(), SupportsStore)


async def test_values_are_kept_by_the_clock_of_the_hub_whoever_put_them():
    now = 1000.0
    hub = Hub(clock=lambda: now)
    one, two = Node(hub), Node(hub)
    for node in (one, two):
        await node.start()
    await one.backend.put("a", b"1", 30.0)
    await one.backend.stop()
    now = 1029.9
    assert await two.backend.peek(["a"]) == [b"1"]
    now = 1030.0
    assert await two.backend.peek(["a"]) == [None]
    assert await two.backend.take("a") is None
    await two.backend.stop()


async def test_a_node_that_is_cut_off_says_why_its_store_is_out_of_reach(hub):
    node = Node(hub)
    with pytest.raises(BackendUnavailable, match="not started"):
        await node.backend.put("a", b"1", 30.0)
    await node.start()
    hub.cut(node.backend)
    with pytest.raises(BackendUnavailable, match="cut off"):
        await node.backend.take("a")
    await node.backend.stop()


def test_nodes_in_many_threads_take_a_value_once(hub, threaded):
    nodes = [threaded() for _ in range(4)]
    for number in range(100):
        nodes[0].run(nodes[0].backend.put(str(number), b"", 30.0))
    taken = [
        asyncio.run_coroutine_threadsafe(node.backend.take(str(number)), node.loop)
        for number in range(100)
        for node in nodes
    ]
    assert [one.result(DEADLINE) for one in taken].count(b"") == 100


async def test_a_store_shows_how_much_it_keeps_and_nothing_of_it():
    store = LocalStore(max_values=2)
    for key in ("s3cret", "b", "c"):
        await store.put(key, b"s3cret", 30.0)
    assert repr(store) == "<LocalStore values=2>"
