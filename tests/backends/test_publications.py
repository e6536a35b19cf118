"""What publishers do, driven by hand; then that both publishers drive it in the same way. No server is needed."""

import asyncio
import os
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from support import until

from fastapi_rooms import (
    Backend,
    BackendStatus,
    BackendUnavailable,
    ConfigurationError,
    InvalidName,
    MessageError,
    Publisher,
    RoomsSettings,
    SupportsStore,
    SyncPublisher,
)
from fastapi_rooms.backends.publications import Keep, Publications
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, connection_target, room_target, user_target
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.revocation import decode_revocation

ANN = user_target("ann")
ID, OTHER_ID = "0123456789abcdef" * 2, "f" * 32
SENDING = [
    (("broadcast",), EVERYBODY),
    (("broadcast_to_room", "kitchen"), room_target("kitchen")),
    (("send_to_user", "ann"), ANN),
    (("send_personal", ID), connection_target(ID)),
]
CLOSING = [
    (("close_user", "ann"), ANN),
    (("close_room", "kitchen"), room_target("kitchen")),
    (("close_connection", ID), connection_target(ID)),
]
CALLS = [*SENDING, *CLOSING]
FATES = [(False, False), (True, False), (False, True), (True, True)]


def begun(publications, call, *args):
    """Return the steps of a call, and the first of them."""
    name, *to = call
    steps = getattr(publications, name)(*to, *args)
    return steps, next(steps)


def answered(steps, failure):
    """Tell the fate of a step; return the next step, or None if there is none."""
    try:
        return next(steps) if failure is None else steps.throw(failure)
    except StopIteration:
        return None


def span(number):
    context = SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(1))
    return trace.use_span(NonRecordingSpan(context))


# By hand


@pytest.mark.parametrize(("call", "target"), SENDING)
def test_a_message_is_one_envelope(call, target):
    publications = Publications(RoomsSettings())
    steps, envelope = begun(publications, call, {"a": 1}, "json")
    assert (envelope.origin, envelope.target, envelope.trace) == (publications.origin, target, None)
    assert (envelope.content.is_text, envelope.content.payload) == (True, b'{"a":1}')
    assert answered(steps, None) is None


@pytest.mark.parametrize(("call", "target"), SENDING)
def test_what_fails_is_the_callers(call, target):
    steps, _ = begun(Publications(RoomsSettings()), call, "hello", None)
    failure = BackendUnavailable("away")
    with pytest.raises(BackendUnavailable) as caught:
        answered(steps, failure)
    assert caught.value is failure
    assert answered(steps, None) is None


@pytest.mark.parametrize(("call", "target"), CLOSING[1:])
def test_a_close_of_others_than_users_is_one_envelope_and_kept_nowhere(call, target):
    steps, envelope = begun(Publications(RoomsSettings()), call, 4001, "bye")
    assert (envelope.target, envelope.content.code, envelope.content.reason) == (target, 4001, "bye")
    assert answered(steps, None) is None


@pytest.mark.parametrize("call", [("broadcast",), ("broadcast_to_room", "kitchen")])
@pytest.mark.parametrize(("exclude", "excluded"), [(ID, {ID}), ([ID, OTHER_ID], {ID, OTHER_ID}), ((), set())])
def test_connections_can_be_left_out(call, exclude, excluded):
    _, envelope = begun(Publications(RoomsSettings()), call, "hello", None, exclude)
    assert envelope.excluded == excluded


def test_connections_can_be_left_out_when_a_user_is_closed():
    steps, keep = begun(Publications(RoomsSettings()), ("close_user", "ann"), 4001, "bye", iter([ID]))
    assert keep.key == "closed-others:ann"
    assert decode_revocation(keep.value, leaves_out=True).excluded == {ID}
    assert answered(steps, None).excluded == {ID}


@pytest.mark.parametrize(("is_not_kept", "is_not_told"), FATES)
def test_a_close_is_kept_then_told_and_then_what_failed_is_raised(is_not_kept, is_not_told):
    publications = Publications(RoomsSettings(revocation_seconds=60))
    before = datetime.now(UTC)
    steps, keep = begun(publications, ("close_user", "ann"), 4001, "bye")
    assert isinstance(keep, Keep)
    assert (keep.key, keep.seconds) == ("closed:ann", 60)
    revocation = decode_revocation(keep.value)
    assert before - timedelta(milliseconds=1) <= revocation.at <= datetime.now(UTC)
    assert (revocation.close.code, revocation.close.reason) == (4001, "bye")

    not_kept = BackendUnavailable("not kept") if is_not_kept else None
    not_told = BackendUnavailable("not told") if is_not_told else None
    envelope = answered(steps, not_kept)
    assert isinstance(envelope, Envelope)
    assert (envelope.origin, envelope.target) == (publications.origin, ANN)
    assert (envelope.content.code, envelope.content.reason) == (4001, "bye")

    expected = not_told or not_kept
    if expected is None:
        assert answered(steps, None) is None
    else:
        with pytest.raises(BackendUnavailable) as caught:
            answered(steps, not_told)
        assert caught.value is expected
        assert caught.value.__context__ is None, "neither failure came of the other"
    assert answered(steps, None) is None


@pytest.mark.parametrize(("seconds", "has_store"), [(None, True), (60, False)])
def test_a_close_is_only_told_where_it_is_not_to_be_kept_or_cannot_be(seconds, has_store):
    publications = Publications(RoomsSettings(revocation_seconds=seconds), has_store=has_store)
    steps, envelope = begun(publications, ("close_user", "ann"), 1000, "")
    assert isinstance(envelope, Envelope)
    assert isinstance(envelope.content, Close)
    assert answered(steps, None) is None


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("broadcast", "\ud800", None), MessageError),
        (("broadcast_to_room", "", "hello", None), InvalidName),
        (("broadcast_to_room", "kitchen", "x" * 1000, None), MessageError),
        (("send_to_user", 5, "hello", None), ConfigurationError),
        (("close_user", "", 1000, ""), InvalidName),
        (("close_user", "ann", 1006, ""), ConfigurationError),
        (("close_user", "ann", 1000, "x" * 100), MessageError),
        (("close_user", "ann", 1000, "", ["bob"]), ConfigurationError),
        (("close_room", "", 1000, ""), InvalidName),
        (("close_room", "kitchen", 1006, ""), ConfigurationError),
        (("close_connection", "ann", 1000, ""), ConfigurationError),
        (("send_personal", "ann", "hello", None), ConfigurationError),
        (("broadcast", "hello", None, "ann"), ConfigurationError),
        (("broadcast_to_room", "kitchen", "hello", None, [ID, 7]), ConfigurationError),
    ],
)
def test_what_cannot_be_sent_is_refused_before_the_first_step(args, error):
    name, *rest = args
    with pytest.raises(error):
        next(getattr(Publications(RoomsSettings(max_envelope_bytes=100)), name)(*rest))


@pytest.mark.parametrize(("call", "target"), CALLS)
def test_the_trace_is_that_of_the_first_step(call, target):
    args = (1000, "") if call[0].startswith("close") else ("hello", None)
    with span(1):
        steps, step = begun(Publications(RoomsSettings()), call, *args)
    with span(2):
        while not isinstance(step, Envelope):
            step = answered(steps, None)
    assert step.trace.traceparent == f"00-{1:032x}-{1:016x}-01"


@pytest.mark.parametrize("interruption", [asyncio.CancelledError, KeyboardInterrupt, OSError, GeneratorExit])
def test_any_other_exception_ends_it(interruption):
    steps, _ = begun(Publications(RoomsSettings()), ("close_user", "ann"), 1000, "")
    with pytest.raises(interruption):
        steps.throw(interruption())
    assert answered(steps, None) is None


def test_calls_at_once_have_steps_of_their_own():
    publications = Publications(RoomsSettings())
    lucky, keep_ann = begun(publications, ("close_user", "ann"), 4001, "")
    unlucky, keep_bob = begun(publications, ("close_user", "bob"), 4002, "")
    assert (keep_ann.key, keep_bob.key) == ("closed:ann", "closed:bob")
    assert answered(unlucky, BackendUnavailable("not kept")).content.code == 4002
    assert answered(lucky, None).content.code == 4001
    with pytest.raises(BackendUnavailable, match="not kept"):
        answered(unlucky, None)
    assert answered(lucky, None) is None


# By both publishers


class Deaf:
    """A backend without a store, which takes what it is told, or fails to."""

    def __init__(self, failing=()):
        self.failing = failing
        self.told = []
        self.goes_on = asyncio.Event()  # cleared: a publish hangs
        self.goes_on.set()

    @property
    def status(self):
        return BackendStatus(connected=True, degraded_since=None)

    async def start(self, node_id, receiver, *, required=False):
        self.told.append(f"start {node_id}")

    async def stop(self):
        self.goes_on.set()

    async def publish(self, envelope):
        self.tell("PUBLISH", envelope.origin)
        await self.goes_on.wait()

    def subscribe(self, targets):
        raise AssertionError("a publisher hears nothing")

    def unsubscribe(self, targets):
        raise AssertionError("a publisher hears nothing")

    def tell(self, word, *rest):
        self.told.append(" ".join((word, *rest)))
        if word in self.failing:
            raise BackendUnavailable(f"{word} failed")


class Keeping(Deaf):
    """The same with a store."""

    async def put(self, key, value, seconds):
        self.tell("SET", key, f"{seconds:g}")

    async def take(self, key):
        raise AssertionError("a publisher only puts")

    async def peek(self, keys):
        raise AssertionError("a publisher only puts")


class Client:
    """In place of redis-py's."""

    def __init__(self, failing):
        self.failing = failing
        self.told = []

    def execute_command(self, word, to, value, *rest):
        self.told.append(word)
        if word in self.failing:
            raise ConnectionError(f"{word} failed")

    def close(self):
        """Do nothing."""


def awaiting(failing):
    backend = Keeping(failing)
    publisher = Publisher(backend)
    return backend, lambda *args: asyncio.run(publisher.close_user(*args))


def blocking(failing):
    publisher = SyncPublisher("redis://nowhere")
    # Private, since redis-py has no place for one that fails at will.
    client = publisher._clients[os.getpid()] = Client(failing)
    return client, publisher.close_user


@pytest.mark.parametrize("kind", [awaiting, blocking])
@pytest.mark.parametrize(("is_not_kept", "is_not_told"), FATES)
def test_both_tell_though_it_was_not_kept_and_raise_what_failed_last(kind, is_not_kept, is_not_told):
    failing = [word for word, fails in (("SET", is_not_kept), ("PUBLISH", is_not_told)) if fails]
    told_to, close_user = kind(failing)
    if not failing:
        close_user("ann")
    else:
        with pytest.raises(BackendUnavailable) as caught:
            close_user("ann")
        text = str(caught.value)
        assert text.startswith("the nodes were not told, or not for certain: ")
        assert f"{failing[-1]} failed" in text
        assert text.endswith(". Send again later")
        assert str(caught.value.__cause__) == f"{failing[-1]} failed"
    words = [told.split()[0] for told in told_to.told]
    assert words[-2:] == ["SET", "PUBLISH"]
    assert words[:-2] == (["start"] if kind is awaiting else [])


async def test_a_backend_without_a_store_is_only_told():
    backend = Deaf()
    assert isinstance(backend, Backend)
    assert not isinstance(backend, SupportsStore)
    async with Publisher(backend) as publisher:
        await publisher.close_user("ann")
    start, publish = backend.told
    assert start.split() == ["start", publish.split()[1]], "it publishes under the id with which it has started"


async def test_the_backend_keeps_it_for_as_long_as_the_settings_say():
    backend = Keeping()
    async with Publisher(backend, settings=RoomsSettings(revocation_seconds=60)) as publisher:
        await publisher.close_user("ann")
    assert backend.told[1] == "SET closed:ann 60"


async def test_a_close_that_is_cancelled_while_it_is_told_ends_as_cancelled_though_it_was_not_kept():
    backend = Keeping(["SET"])
    backend.goes_on.clear()
    async with Publisher(backend) as publisher:
        closing = asyncio.create_task(publisher.close_user("ann"))
        await until(lambda: backend.told[-1].startswith("PUBLISH"))
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
    assert len(backend.told) == 3
