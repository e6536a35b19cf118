"""The conformance suite finds what is wrong with a backend: here are some that are."""

import asyncio
import inspect
import time
import unicodedata
import unittest
from datetime import UTC, datetime
from typing import ClassVar

import pytest

from fastapi_rooms import BackendUnavailable, Gap
from fastapi_rooms.backends.memory import Hub, LocalStore, MemoryBackend
from fastapi_rooms.domain.backend_state import BackendStatus
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, Target, TargetKind, decode
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.move import Move
from fastapi_rooms.testing import BackendConformance


class Suite(BackendConformance):
    """Has no patience with what is wrong, and enough for what is right on a busy machine."""

    def __init__(self, make):
        self.hub = Hub()
        self.make = make
        is_right = make is MemoryBackend
        self.deadline = 20.0 if is_right else 0.2
        self.outage_deadline = 20.0 if is_right else 0.4

    async def make_backend(self):
        return self.make(self.hub)

    async def cut(self, backend):
        self.hub.cut(backend)

    async def restore(self, backend):
        self.hub.restore(backend)


def failed():
    """Something that has failed."""
    future = asyncio.get_running_loop().create_future()
    future.set_exception(BackendUnavailable("always"))
    future.exception()
    return future


class Renaming(MemoryBackend):
    """Changes targets on their way to the broker."""

    def rename(self, target):
        raise NotImplementedError

    def publish(self, envelope):
        renamed = Envelope(envelope.origin, self.rename(envelope.target), envelope.content, envelope.excluded)
        return super().publish(renamed)

    def subscribe(self, targets):
        return super().subscribe([self.rename(target) for target in targets])

    def unsubscribe(self, targets):
        super().unsubscribe([self.rename(target) for target in targets])


class IgnoresCase(Renaming):
    def rename(self, target):
        return Target(target.kind, target.name.casefold())


class CutsNames(Renaming):
    def rename(self, target):
        return Target(target.kind, target.name[:1000])


class ForgetsKinds(Renaming):
    def rename(self, target):
        return target if target == EVERYBODY else Target(TargetKind.ROOM, target.name)


class Echoes(MemoryBackend):
    async def start(self, node_id, receiver, **options):
        self.receiver = receiver
        await super().start(node_id, receiver, **options)

    def publish(self, envelope):
        if self.status.connected and envelope.target in self._wanted:
            self.receiver.receive(decode(envelope.encode()))
        return super().publish(envelope)


class Repeats(MemoryBackend):
    def publish(self, envelope):
        super().publish(envelope)
        return super().publish(envelope)


class PublishesWhenAwaited(MemoryBackend):
    async def publish(self, envelope):
        await super().publish(envelope)


class TakesBack(MemoryBackend):
    """Publishes in a task, which can be cancelled."""

    def publish(self, envelope):
        async def publish():
            await super(TakesBack, self).publish(envelope)

        return asyncio.create_task(publish())


class LosesConnections(MemoryBackend):
    def publish(self, envelope):
        return super().subscribe(()) if envelope.target.kind is TargetKind.CONNECTION else super().publish(envelope)


class TellsAll(MemoryBackend):
    async def start(self, *args, **options):
        self.hub.carry = lambda target, data: [
            backend._call(backend._life, backend._hear, next(iter(backend._wanted)), data)
            for backend in self.hub._nodes
            if backend is not self
        ]
        await super().start(*args, **options)


class Strips(MemoryBackend):
    """Changes what it carries."""

    def publish(self, envelope):
        content = envelope.content
        if isinstance(content, Message):
            content = Message(content.payload.strip(), is_text=content.is_text)
        return super().publish(Envelope(envelope.origin, envelope.target, content, envelope.excluded))


class MakesText(MemoryBackend):
    def publish(self, envelope):
        content = envelope.content
        if isinstance(content, Message):
            content = Message(content.payload, is_text=True)
        return super().publish(Envelope(envelope.origin, envelope.target, content, envelope.excluded))


class ForgetsReasons(MemoryBackend):
    def publish(self, envelope):
        content = envelope.content
        if isinstance(content, Close):
            content = Close(content.code)
        return super().publish(Envelope(envelope.origin, envelope.target, content, envelope.excluded))


class ForgetsMoves(MemoryBackend):
    def publish(self, envelope):
        if isinstance(envelope.content, Move):
            envelope = Envelope(envelope.origin, envelope.target, Move(envelope.content.room, joins=True))
        return super().publish(envelope)


class ForgetsExcludedUsers(MemoryBackend):
    def publish(self, envelope):
        return super().publish(Envelope(envelope.origin, envelope.target, envelope.content, envelope.excluded))


class ForgetsExcluded(MemoryBackend):
    def publish(self, envelope):
        return super().publish(Envelope(envelope.origin, envelope.target, envelope.content))


class SubscribesLate(MemoryBackend):
    """Is ready before the broker knows."""

    def subscribe(self, targets):
        if self._life is None:
            return super().subscribe(targets)
        self._life.loop.call_later(0.02, super().subscribe, list(targets))
        return super().subscribe(())


class OnlyTheFirstWaits(MemoryBackend):
    """Of concurrent subscribers, only the first waits for the broker."""

    def __init__(self, hub):
        super().__init__(hub)
        self.asked = set()

    def subscribe(self, targets):
        if self._life is None or self.asked.issuperset(targets):
            return super().subscribe(targets if self._life is None else ())
        self.asked.update(targets)

        async def confirm():
            await asyncio.sleep(0.01)
            await super(OnlyTheFirstWaits, self).subscribe(targets)

        return asyncio.ensure_future(confirm())


class SharesOneFuture(MemoryBackend):
    """Who cancels its wait, cancels that of all."""

    def __init__(self, hub):
        super().__init__(hub)
        self.shared = None

    def subscribe(self, targets):
        super().subscribe(targets)
        if self._life is None:
            return super().subscribe(())
        if self.shared is None or self.shared.done():
            loop = asyncio.get_running_loop()
            self.shared = future = loop.create_future()
            loop.call_later(0.01, lambda: future.done() or future.set_result(None))
        return self.shared


class NeverUnsubscribes(MemoryBackend):
    def unsubscribe(self, targets):
        pass


class Counts(MemoryBackend):
    def __init__(self, hub):
        super().__init__(hub)
        self.counts = {}

    def subscribe(self, targets):
        for target in targets:
            self.counts[target] = self.counts.get(target, 0) + 1
        return super().subscribe(targets)

    def unsubscribe(self, targets):
        for target in targets:
            self.counts[target] = self.counts.get(target, 0) - 1
        super().unsubscribe([target for target in targets if self.counts[target] <= 0])


class ForgetsAtStart(MemoryBackend):
    async def start(self, *args, **options):
        self._wanted.difference_update([target for target in self._wanted if target != EVERYBODY])
        await super().start(*args, **options)


class ForgetsToStart(MemoryBackend):
    """Cannot be started again."""

    async def start(self, *args, **options):
        if not hasattr(self, "was_started"):
            await super().start(*args, **options)
        self.was_started = True


class StopsInHaste(MemoryBackend):
    """Publishes a little later, and does not wait for it."""

    def publish(self, envelope):
        future = asyncio.get_running_loop().create_future()

        def later():
            if not future.done():
                future.set_result(None)
            super(StopsInHaste, self).publish(envelope)

        asyncio.get_running_loop().call_later(0.005, later)
        return future


class NeverFails(MemoryBackend):
    def publish(self, envelope):
        super().publish(envelope)
        return self.subscribe(())


class AlwaysFails(MemoryBackend):
    def publish(self, envelope):
        super().publish(envelope)
        return failed()


class CountsNothing(MemoryBackend):
    @property
    def status(self):
        status = super().status
        return BackendStatus(status.connected, status.degraded_since)


class SeesHealth(MemoryBackend):
    @property
    def status(self):
        return BackendStatus(connected=True, degraded_since=None)


class NotInUtc(MemoryBackend):
    @property
    def status(self):
        since = super().status.degraded_since
        return BackendStatus(since is None, since and since.replace(tzinfo=None))


class LeavesTasks(MemoryBackend):
    tasks: ClassVar = set()

    async def start(self, *args, **options):
        self.tasks.add(asyncio.create_task(asyncio.sleep(1)))
        await super().start(*args, **options)


class DiesWithItsReceiver(MemoryBackend):
    async def start(self, node_id, receiver, **options):
        await super().start(node_id, receiver, **options)
        receive = receiver.receive

        def receive_or_die(envelope):
            try:
                receive(envelope)
            except RuntimeError:
                self._die()

        receiver.receive = receive_or_die


class DiesOfGarbage(MemoryBackend):
    def _hear(self, life, target, data):
        before = self._undecodable
        super()._hear(life, target, data)
        if self._undecodable > before:
            self._die()


class WaitsForTheBroker(MemoryBackend):
    def subscribe(self, targets):
        super().subscribe(targets)
        return asyncio.get_running_loop().create_future() if self._is_cut else super().subscribe(())


class StaysDeaf(MemoryBackend):
    """Connects again, and forgets what it wanted."""

    def on_restored(self):
        super().on_restored()
        self._wanted &= {EVERYBODY}


class HidesGaps(MemoryBackend):
    def _report(self, life, gap):
        pass


class ReportsEmptyGaps(MemoryBackend):
    def _report(self, life, gap):
        super()._report(life, Gap(gap.since, gap.until, frozenset()))


class ReportsLateGaps(MemoryBackend):
    def _report(self, life, gap):
        now = datetime.now(UTC)
        super()._report(life, Gap(now, now, gap.targets))


class SendsAgain(MemoryBackend):
    """Keeps what failed for later."""

    def __init__(self, hub):
        super().__init__(hub)
        self.kept = []

    def publish(self, envelope):
        if self._is_cut:
            self.kept.append(envelope)
        return super().publish(envelope)

    def on_restored(self):
        super().on_restored()
        while self.kept:
            envelope = self.kept.pop()
            self.hub.carry(envelope.target, envelope.encode())


class PullsOthersDown(MemoryBackend):
    def on_cut(self):
        for backend in self.hub._nodes:
            MemoryBackend.on_cut(backend)


class IgnoresRequired(MemoryBackend):
    async def start(self, node_id, receiver, *, required=False):
        await super().start(node_id, receiver)


class NeverConnectsLate(MemoryBackend):
    def on_restored(self):
        if self._life is None or self._life.was_connected:
            super().on_restored()


class NeverStops(MemoryBackend):
    async def stop(self):
        if not self._is_cut:
            await super().stop()


class KeepsToItself(MemoryBackend):
    """Has a store that others do not see."""

    def __init__(self, hub):
        super().__init__(hub)
        self._own = LocalStore()

    def _reach_store(self):
        super()._reach_store()
        return self._own


class ChangesValues(MemoryBackend):
    async def put(self, key, value, seconds):
        await super().put(key, value.strip(), seconds)


class TakesWhenPeeking(MemoryBackend):
    async def peek(self, keys):
        return [await self.take(key) for key in keys]


class FoldsKeys(MemoryBackend):
    async def put(self, key, value, seconds):
        await super().put(unicodedata.normalize("NFC", key), value, seconds)


class PicksByTag(MemoryBackend):
    """Takes a part of the key for all of it."""

    async def put(self, key, value, seconds):
        await super().put(key.partition("}")[0], value, seconds)

    async def peek(self, keys):
        return await super().peek([key.partition("}")[0] for key in keys])


class TakesInTwoSteps(MemoryBackend):
    async def take(self, key):
        (value,) = await self.peek([key])
        await asyncio.sleep(0)
        await super().take(key)
        return value


class KeepsForEver(MemoryBackend):
    async def put(self, key, value, seconds):
        await super().put(key, value, 60)


class CountsMilliseconds(MemoryBackend):
    async def put(self, key, value, seconds):
        await super().put(key, value, seconds / 1000)


class KeepsTheFirstTime(MemoryBackend):
    async def put(self, key, value, seconds):
        self.times = {key: seconds, **getattr(self, "times", {})}
        await super().put(key, value, self.times[key])


class LosesOrder(MemoryBackend):
    async def peek(self, keys):
        return await super().peek(sorted(keys))


class PeeksAtAThousand(MemoryBackend):
    async def peek(self, keys):
        return await super().peek(keys[:1000])


class AlwaysReachesItsStore(MemoryBackend):
    def _reach_store(self):
        return self.hub.store


class PutsAgain(MemoryBackend):
    """Keeps what failed for later."""

    async def put(self, key, value, seconds):
        try:
            await super().put(key, value, seconds)
        except BackendUnavailable:
            self.late = (key, value, seconds)
            raise

    def on_restored(self):
        super().on_restored()
        self.hub.store._kept.put(*self.late, time.monotonic())


WRONG = [
    (Echoes, "reaches_every_subscribed_node_but_the_one_that_published"),
    (AlwaysFails, "reaches_every_subscribed_node_but_the_one_that_published"),
    (TellsAll, "does_not_reach_a_node_that_is_not_subscribed"),
    (NeverUnsubscribes, "does_not_reach_a_node_that_is_not_subscribed_to_everybody"),
    (ForgetsKinds, "reaches_all_a_room_and_a_user"),
    (LosesConnections, "reaches_a_connection_through_those_subscribed_to_everybody"),
    (PublishesWhenAwaited, "delivers_each_once_and_in_the_order_of_the_calls"),
    (Repeats, "delivers_each_once_and_in_the_order_of_the_calls"),
    (TakesBack, "does_not_take_back_what_nobody_waits_for"),
    (StopsInHaste, "stop_waits_for_what_is_on_its_way"),
    (IgnoresCase, "keeps_names_apart_whatever_they_are"),
    (CutsNames, "keeps_names_apart_whatever_they_are"),
    (ForgetsKinds, "keeps_names_apart_whatever_they_are"),
    (Strips, "text_arrives_unchanged"),
    (Strips, "bytes_arrive_unchanged"),
    (MakesText, "nothing_arrives_as_nothing"),
    (MakesText, "a_megabyte_arrives"),
    (ForgetsReasons, "closes_arrive_with_code_and_reason"),
    (ForgetsMoves, "moves_arrive_with_their_room"),
    (ForgetsExcluded, "who_is_left_out_arrives"),
    (ForgetsExcludedUsers, "who_is_left_out_arrives"),
    (SubscribesLate, "hears_all_that_is_published_once_a_subscription_is_ready"),
    (OnlyTheFirstWaits, "hears_all_that_is_published_once_a_subscription_is_ready"),
    (SharesOneFuture, "is_ready_for_the_others_when_one_does_not_wait_any_longer"),
    (SubscribesLate, "what_counts_is_the_last_word_of_a_tick"),
    (NeverUnsubscribes, "ends_hearing_what_is_not_wanted_any_more"),
    (Counts, "does_not_count_how_often_something_is_wanted"),
    (SubscribesLate, "takes_a_thousand_targets_at_once"),
    (ForgetsAtStart, "hears_what_was_wanted_before_the_start_once_it_is_connected"),
    (ForgetsToStart, "may_be_started_and_stopped_more_than_once"),
    (ForgetsAtStart, "still_wants_after_a_stop_what_it_wanted_before"),
    (SeesHealth, "the_status_tells_whether_it_is_connected"),
    (NotInUtc, "the_status_tells_whether_it_is_connected"),
    (NeverFails, "publishing_fails_while_it_is_stopped"),
    (CountsNothing, "publishing_fails_while_it_is_stopped"),
    (LeavesTasks, "leaves_no_task"),
    (DiesWithItsReceiver, "outlives_a_receiver_that_raises"),
    (DiesOfGarbage, "outlives_what_is_no_envelope"),
    (CountsNothing, "outlives_what_is_no_envelope"),
    (NeverFails, "publishing_fails_while_cut_off"),
    (SendsAgain, "publishing_fails_while_cut_off"),
    (SeesHealth, "publishing_fails_while_cut_off"),
    (PullsOthersDown, "others_go_on_while_one_is_cut_off"),
    (WaitsForTheBroker, "subscribing_is_ready_while_cut_off"),
    (StaysDeaf, "reports_a_gap_and_hears_again_what_it_wants_by_then"),
    (HidesGaps, "reports_a_gap_and_hears_again_what_it_wants_by_then"),
    (ReportsEmptyGaps, "reports_a_gap_and_hears_again_what_it_wants_by_then"),
    (ReportsLateGaps, "reports_a_gap_and_hears_again_what_it_wants_by_then"),
    (CountsNothing, "reports_a_gap_and_hears_again_what_it_wants_by_then"),
    (NeverConnectsLate, "starts_degraded_and_connects_when_the_broker_comes"),
    (IgnoresRequired, "does_not_start_without_the_broker_if_it_is_required"),
    (NeverStops, "can_be_stopped_while_cut_off"),
    (KeepsToItself, "a_store_keeps_values_for_all_nodes_as_they_are"),
    (ChangesValues, "a_store_keeps_values_for_all_nodes_as_they_are"),
    (TakesWhenPeeking, "a_store_keeps_values_for_all_nodes_as_they_are"),
    (FoldsKeys, "a_store_keeps_keys_apart_whatever_they_are"),
    (PicksByTag, "a_store_keeps_keys_apart_whatever_they_are"),
    (TakesInTwoSteps, "of_all_who_take_a_value_at_once_one_gets_it"),
    (KeepsForEver, "a_store_forgets_a_value_when_its_time_is_over"),
    (CountsMilliseconds, "a_store_forgets_a_value_when_its_time_is_over"),
    (KeepsTheFirstTime, "a_store_forgets_a_value_when_its_time_is_over"),
    (LosesOrder, "a_store_is_asked_for_ten_thousand_keys_at_once"),
    (PeeksAtAThousand, "a_store_is_asked_for_ten_thousand_keys_at_once"),
    (AlwaysReachesItsStore, "a_store_fails_while_it_is_stopped"),
    (AlwaysReachesItsStore, "a_store_fails_while_cut_off"),
    (PutsAgain, "a_store_fails_while_cut_off"),
]


@pytest.mark.parametrize(("wrong", "test"), WRONG, ids=lambda value: getattr(value, "__name__", value))
async def test_what_is_wrong_is_found(wrong, test):
    with pytest.raises((AssertionError, TimeoutError, BackendUnavailable)):
        await getattr(Suite(wrong), f"test_{test}")()


@pytest.mark.parametrize("test", sorted({test for _, test in WRONG}))
async def test_what_is_right_passes(test):
    await getattr(Suite(MemoryBackend), f"test_{test}")()


def test_every_test_is_an_async_method():
    tests = [value for name, value in inspect.getmembers(BackendConformance) if name.startswith("test_")]
    assert len(tests) > 30
    assert all(inspect.iscoroutinefunction(test) for test in tests)


# A broker that cannot be cut off


class Uncuttable(BackendConformance):
    def __init__(self):
        self.hub = Hub()

    async def make_backend(self):
        return MemoryBackend(self.hub)


async def test_tests_of_outages_are_skipped_where_the_broker_cannot_be_cut_off():
    with pytest.raises(unittest.SkipTest, match=r"override cut\(\) and restore\(\)"):
        await Uncuttable().test_others_go_on_while_one_is_cut_off()


class Storeless:
    """The rest of a backend."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name in ("put", "take", "peek"):
            raise AttributeError(name)
        return getattr(self.inner, name)


async def test_tests_of_a_store_are_skipped_where_there_is_none():
    with pytest.raises(unittest.SkipTest, match="has no store"):
        await Suite(lambda hub: Storeless(MemoryBackend(hub))).test_a_store_fails_while_it_is_stopped()


async def test_what_can_be_cut_off_has_to_be_restored():
    with pytest.raises(NotImplementedError, match=r"override restore\(\)"):
        await Uncuttable().restore(MemoryBackend(Hub()))


def test_how_backends_are_made_has_to_be_said():
    with pytest.raises(TypeError, match="make_backend"):
        BackendConformance()
