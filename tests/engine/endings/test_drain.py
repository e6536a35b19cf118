"""Emptying a node: spread over its time, flushed first, over with the last, and nobody is forgotten."""

import asyncio
import itertools
import logging
import math
from contextvars import ContextVar

import pytest
from starlette.exceptions import WebSocketException
from support import counted, until

from engine.fakes import ImmediateWire, Peer, WaitingWire, is_empty, run_clocked, settled
from engine.scripted import ScriptedBackend
from fastapi_rooms import (
    ConfigurationError,
    Connection,
    ConnectionManager,
    DistributedWebSocketManager,
    HandshakeRefused,
    Hooks,
    RoomsSettings,
)
from fastapi_rooms.domain.connection import Phase
from fastapi_rooms.engine.endings.drain import ANSWER_SECONDS, BATCH_SECONDS, GRACE_SECONDS, MIN_BATCH


def batches_of(manager):
    """Note when connections are closed: (loop time, how many)."""
    batches = []
    close = manager._parts.drain._close

    def note(outboxes, frame):
        batches.append((asyncio.get_running_loop().time(), len(outboxes)))
        return close(outboxes, frame)

    manager._parts.drain._close = note
    return batches


class Polite(Peer):
    """A peer that answers the close frame at once, so that the server hangs up."""

    async def _send(self, event):
        await super()._send(event)
        if event["type"] == "websocket.close":
            self.transport.closing = True


async def connected(manager, room=None, user_id=None):
    peer = Polite()
    connection = await manager.connect(peer.websocket, room, user_id)
    peer.events.clear()
    return peer, connection


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO, "fastapi_rooms")


@pytest.fixture
def wires(monkeypatch):
    """Connections get these wires, one after the other; without one left, that of their server."""
    made = []
    from fastapi_rooms.engine import lifecycle

    original = lifecycle.choose_wire

    def choose(*args, **options):
        return made.pop(0) if made else original(*args, **options)

    monkeypatch.setattr(lifecycle, "choose_wire", choose)
    return made


def now():
    return asyncio.get_running_loop().time()


def said(caplog):
    return [record.getMessage() for record in caplog.records if "drain" in record.getMessage()]


# Who is closed when


def test_closes_are_spread_over_the_time_and_everybody_got_what_was_sent_before(caplog):
    async def main():
        manager = ConnectionManager()
        batches = batches_of(manager)
        peers = [(await connected(manager, "room"))[0] for _ in range(200)]
        assert await manager.broadcast("last words") == 200
        await manager.drain(2)
        assert [(peer.texts, peer.close_codes) for peer in peers] == [(["last words"], [1012])] * 200
        assert all(peer.events[-1]["reason"] == "restarting" for peer in peers)
        assert now() < 2
        times, sizes = zip(*batches, strict=True)
        assert sum(sizes) == 200
        assert max(sizes) <= math.ceil(200 / 16)
        assert times[0] == 0
        assert 1.4 < times[-1] <= 1.6 + BATCH_SECONDS
        assert all(later - sooner > BATCH_SECONDS * 0.99 for sooner, later in itertools.pairwise(times))
        assert said(caplog) == [
            "draining: 200 connections, within 2 s",
            f"drained: 200 connections closed, 0 of them aborted, in {now():.1f} s",
        ]
        await manager.stop()

    run_clocked(main)


def test_the_first_who_came_are_closed_first_and_the_others_still_hear_everybody():
    async def main():
        manager = ConnectionManager()
        (first, _), *others = [await connected(manager, "room") for _ in range(3 * MIN_BATCH)]
        draining = asyncio.create_task(manager.drain(1))
        await until(lambda: first.close_codes)
        assert await manager.broadcast_to_room("room", "still here") == 2 * MIN_BATCH
        await draining
        assert first.texts == []
        assert [peer.texts for peer, _ in others[-2 * MIN_BATCH :]] == [["still here"]] * 2 * MIN_BATCH
        await manager.stop()

    run_clocked(main)


def test_who_has_a_task_of_its_own_is_closed_last_while_it_runs():
    async def answer(connection, seconds):
        await asyncio.sleep(seconds)
        await connection.send("answer")

    async def main():
        manager = ConnectionManager()
        pushed, idle = [[await connected(manager) for _ in range(MIN_BATCH)] for _ in range(2)]
        for _, connection in pushed:
            connection.start_task(answer(connection, BATCH_SECONDS / 2))
        batches = batches_of(manager)
        await manager.drain(10)
        assert [peer.texts for peer, _ in pushed] == [["answer"]] * MIN_BATCH
        assert [peer.close_codes for peer, _ in (*pushed, *idle)] == [[1012]] * 2 * MIN_BATCH
        assert [size for _, size in batches] == [MIN_BATCH] * 2
        await manager.stop()

    run_clocked(main)


def test_an_app_is_told_of_a_drain_when_it_begins():
    told = []

    async def main():
        manager = ConnectionManager(
            hooks=Hooks(
                draining=lambda seconds: told.append((seconds, manager.is_draining)),
                disconnected=lambda end: told.append(end.code),
            )
        )
        await connected(manager)
        await asyncio.gather(manager.drain(2), manager.drain(5))
        assert told == [(2, True), 1012], "once, and before anybody is closed"
        await manager.stop()
        await manager.stop()
        assert len(told) == 2

    run_clocked(main)


def test_whose_handler_is_at_work_is_closed_last_and_gets_the_answer():
    """At the pace of all others, whether it comes to its end or not; a handler that has nothing in hand is no work."""

    async def answer_one(peer, connection, seconds):
        messages = connection.messages(str)
        peer.say("question")
        await anext(messages)
        await asyncio.sleep(seconds)
        await connection.send("answer")
        with pytest.raises(StopAsyncIteration):
            await anext(messages)  # and waits for the next

    async def push(peer, connection):
        connection.messages(str)
        await asyncio.Event().wait()

    async def main():
        nonlocal manager
        manager = ConnectionManager()
        quick, slow, pushed = [[await connected(manager) for _ in range(MIN_BATCH)] for _ in range(3)]
        handlers = [asyncio.create_task(answer_one(*one, BATCH_SECONDS / 2)) for one in quick]
        handlers += [asyncio.create_task(answer_one(*one, 3600)) for one in slow]
        handlers += [asyncio.create_task(push(*one)) for one in pushed]
        await settled()
        batches = batches_of(manager)
        draining = asyncio.create_task(manager.drain(10))
        await until(lambda: len(batches) == 1)
        assert all(not connection.is_open for _, connection in pushed)
        await draining
        assert [peer.texts for peer, _ in quick] == [["answer"]] * MIN_BATCH
        assert [peer.texts for peer, _ in slow] == [[]] * MIN_BATCH
        assert [peer.close_codes for peer, _ in (*quick, *slow)] == [[1012]] * 2 * MIN_BATCH
        assert [size for _, size in batches] == [MIN_BATCH] * 3
        for handler in handlers:
            handler.cancel()
        await asyncio.wait(handlers)
        await manager.stop()

    manager = None
    run_clocked(main)


@pytest.mark.parametrize("count", [0, 1, MIN_BATCH])
def test_a_few_are_closed_at_once_and_the_drain_is_over_with_the_last(caplog, count):
    async def main():
        manager = ConnectionManager()
        peers = [(await connected(manager))[0] for _ in range(count)]
        await manager.drain(3600)
        assert manager.stats().closed["restart"] == count
        assert now() < 0.1
        assert [peer.close_codes for peer in peers] == [[1012]] * count
        assert said(caplog)[1] == f"drained: {count} connections closed, 0 of them aborted, in 0.0 s"
        await manager.stop()

    run_clocked(main)


@pytest.mark.parametrize(("settings", "seconds"), [({}, 10), ({"drain_timeout": 3}, 3), ({"drain_timeout": None}, 10)])
def test_the_time_is_that_of_the_settings(caplog, settings, seconds):
    async def main():
        manager = ConnectionManager(RoomsSettings(**settings))
        await manager.drain()
        assert said(caplog)[0] == f"draining: 0 connections, within {seconds} s"
        await manager.stop()

    run_clocked(main)


def test_who_was_closed_before_and_has_not_left_is_known_and_does_not_outlive_it(caplog):
    async def main():
        manager = ConnectionManager()
        peers = [(await connected(manager))[0] for _ in range(2)]
        peers.append(rude := Peer())
        connection = await manager.connect(rude.websocket)
        await connection.close()
        await connection.wait_until_closed()
        assert (manager.stats().connections, manager.stats().closing) == (2, 1)
        await manager.drain(2)
        assert said(caplog)[0] == "draining: 2 connections and 1 sockets that were closed before, within 2 s"
        assert [peer.transport.aborted for peer in peers] == [False, False, True]
        await asyncio.sleep(2)
        assert (manager.stats().connections, manager.stats().closing) == (0, 0)
        await manager.stop()

    run_clocked(main)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, "5"])
async def test_a_time_that_makes_no_sense_is_refused_and_nothing_begins(manager, seconds):
    with pytest.raises(ConfigurationError, match="a number of seconds above 0"):
        await manager.drain(seconds)
    assert not manager.is_draining


# Who does not take what is left


def test_who_does_not_read_is_aborted_when_the_time_is_up_and_the_others_are_not(caplog, wires):
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=60))
        stuck, slow, _ = mine = [ImmediateWire() for _ in range(3)]
        wires.extend(mine)
        for _ in mine:
            await connected(manager, "room")
        stuck.block()
        slow.block()
        await manager.broadcast("x" * 1000)
        asyncio.get_running_loop().call_later(3, slow.unblock)
        await manager.drain(5)
        assert now() == pytest.approx(5, abs=0.05)
        assert [wire.aborts for wire in mine] == [1, 0, 0]
        assert [len(wire.written) for wire in mine] == [0, 1, 1]
        assert [[int(close.code) for close in wire.closes] for wire in mine] == [[], [1012], [1012]]
        assert (manager.stats().dropped["lost"], manager.stats().closed["stalled"]) == (1, 0)
        assert manager.stats().closed["restart"] == 3, "each is counted once"
        assert said(caplog)[-1] == "drained: 3 connections closed, 1 of them aborted, in 5.0 s"
        await manager.stop()
        assert now() < 5.1, "nobody is left to wait for"

    run_clocked(main)


def test_who_cannot_be_aborted_is_left_and_said_so(caplog, wires):
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=60))
        wires.append(stuck := WaitingWire())
        stuck.in_reach = False
        await connected(manager, "room")
        stuck.block()
        await manager.broadcast("x" * 1000)
        await manager.drain(5)
        assert "drained: 1 connections closed, 0 of them aborted, in 5.0 s" in caplog.text
        assert "1 connections take nothing and cannot be aborted: the server may wait for them" in caplog.text
        stuck.unblock()
        await manager.stop()
        assert [int(close.code) for close in stuck.closes] == [1012], "it took everything at last"

    run_clocked(main)


def test_bytes_that_the_server_holds_count_as_not_taken(wires):
    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=60))
        wire = ImmediateWire()
        wires.append(wire)
        await connected(manager)
        wire.held = 1
        await manager.drain(1)
        assert now() == pytest.approx(1, abs=0.05)
        assert (len(wire.closes), wire.aborts) == (1, 1)
        await manager.stop()

    run_clocked(main)


class Silent(ImmediateWire):
    """A peer that takes everything and never answers the close frame."""

    answered = False

    def has_left(self):
        return self.aborts > 0 or self.answered


@pytest.mark.parametrize("answers", [True, False])
def test_who_has_taken_everything_may_answer_the_close_frame_and_is_then_hung_up_on(caplog, wires, answers):
    async def main():
        manager = ConnectionManager()
        wire = Silent()
        wires.append(wire)
        await connected(manager)
        if answers:
            asyncio.get_running_loop().call_later(0.2, setattr, wire, "answered", True)  # noqa: FBT003
        await manager.drain(60)
        assert now() == pytest.approx(0.2 if answers else ANSWER_SECONDS, abs=0.05)
        assert wire.aborts == (0 if answers else 1)
        assert "0 of them aborted" in said(caplog)[-1], "it got everything"
        await manager.stop()

    run_clocked(main)


def test_a_loop_that_was_blocked_for_the_whole_time_costs_nobody_the_close_frame(caplog, wires):
    async def main():
        manager = ConnectionManager()
        healthy = [ImmediateWire() for _ in range(5 * MIN_BATCH)]
        wires.extend(healthy)
        for _ in healthy:
            await connected(manager)
        stuck = ImmediateWire()
        wires.append(stuck)
        await connected(manager)
        stuck.block()
        loop = asyncio.get_running_loop()

        def block():
            loop.now += 100

        loop.call_later(0.05, block)
        await manager.drain(2)
        assert now() - 100 == pytest.approx(0.05 + GRACE_SECONDS, abs=0.1)
        assert [(len(wire.closes), wire.aborts) for wire in healthy] == [(1, 0)] * len(healthy)
        assert stuck.aborts == 1
        await manager.stop()

    run_clocked(main)


# Who comes meanwhile


async def test_new_handshakes_are_refused_with_503_and_when_to_come_again(manager):
    peer, _ = await connected(manager)
    await manager.drain(8)
    assert manager.is_draining
    assert manager.active_connections == 0
    with pytest.raises(HandshakeRefused) as refused:
        await manager.connect(Peer().websocket)
    assert refused.value.status_code == 503
    assert refused.value.headers == {"Retry-After": "8"}
    accepted = Peer()
    await accepted.websocket.accept()
    with pytest.raises(WebSocketException) as closed:
        await manager.connect(accepted.websocket)
    assert closed.value.code == 1012
    assert peer.close_codes == [1012]
    assert manager.stats().refused["draining"] == 2


@pytest.mark.parametrize("seconds", [0.2, 5])
def test_whose_handshake_is_being_answered_gets_its_close_frame_behind_the_answer(seconds):
    async def main():
        manager = ConnectionManager()
        peer = Polite()
        peer.accepts.clear()
        connecting = asyncio.create_task(manager.connect(peer.websocket, "room"))
        await settled()
        draining = asyncio.create_task(manager.drain(seconds))
        await asyncio.sleep(1)
        assert draining.done() == (seconds < 1)
        assert peer.events == []
        peer.accepts.set()
        connection = await connecting
        await settled()
        assert [event["type"] for event in peer.events] == ["websocket.accept", "websocket.close"]
        assert peer.close_codes == [1012]
        assert connection._phase is Phase.ENDED
        await draining
        assert now() == pytest.approx(1, abs=0.2)
        await manager.stop()
        assert counted(manager.stats().closed) == {"restart": 1}
        assert counted(manager.stats().refused) == {}

    run_clocked(main)


@pytest.mark.parametrize("ending", ["drain", "stop"])
async def test_who_goes_during_its_handshake_while_a_node_is_stopped_was_not_closed(manager, ending):
    peer = Peer()
    peer.accepts.clear()
    peer.accept_error = OSError("the client went")
    connecting = asyncio.create_task(manager.connect(peer.websocket, "room"))
    await settled()
    ends = asyncio.create_task(manager.drain(5) if ending == "drain" else manager.stop())
    await until(lambda: manager.stats().connections == 0)
    peer.accepts.set()
    with pytest.raises(OSError, match="went"):
        await connecting
    await ends
    assert counted(manager.stats().closed) == {}


async def test_who_was_past_the_gate_when_it_began_is_refused_too():
    yes = asyncio.Event()

    async def authorize(connection, room):
        return await yes.wait()

    manager = ConnectionManager(authorize_join=authorize)
    connecting = asyncio.create_task(manager.connect(Peer().websocket, "room"))
    await settled()
    await manager.drain(1)
    yes.set()
    with pytest.raises(HandshakeRefused, match="503"):
        await connecting
    assert is_empty(manager)
    await manager.stop()


# Who calls, how often, and what comes after


def test_called_twice_at_once_both_wait_for_the_same_end(caplog):
    async def main():
        manager = ConnectionManager()
        peers = [(await connected(manager))[0] for _ in range(50)]
        await asyncio.gather(manager.drain(2), manager.drain(1000))
        assert now() < 2
        assert [peer.close_codes for peer in peers] == [[1012]] * 50
        ended = now()
        await manager.drain(1000)
        assert now() == ended, "it is over"
        assert len(said(caplog)) == 2
        await manager.stop()

    run_clocked(main)


def test_a_call_that_is_cancelled_leaves_the_drain_going_on():
    async def main():
        manager = ConnectionManager()
        peers = [(await connected(manager))[0] for _ in range(50)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.drain(2), 0.15)
        assert 0 < manager.active_connections < 50
        await manager.drain()
        assert now() < 2
        assert [peer.close_codes for peer in peers] == [[1012]] * 50
        await manager.stop()

    run_clocked(main)


def test_stop_ends_a_drain_and_closes_the_rest_and_the_manager_can_be_used_again(caplog):
    async def main():
        manager = ConnectionManager()
        peers = [(await connected(manager))[0] for _ in range(50)]
        draining = asyncio.create_task(manager.drain(60))
        await asyncio.sleep(0.15)
        await manager.stop()
        await draining
        assert now() < 0.5
        assert [peer.close_codes for peer in peers] == [[1012]] * 50
        assert len(said(caplog)) == 1, "it was not drained to the end"
        assert not manager.is_draining
        assert asyncio.all_tasks() == {asyncio.current_task()}

        peer, connection = await connected(manager, "room")
        assert await connection.send("again")
        await manager.drain(1)
        assert (peer.texts, peer.close_codes) == (["again"], [1012])
        await manager.stop()

    run_clocked(main)


def test_a_manager_that_outlives_its_loop_can_drain_on_the_next():
    manager = ConnectionManager()

    async def main():
        peer, _ = await connected(manager)
        await manager.drain(1)
        assert await asyncio.to_thread(lambda: manager.is_draining), "it may be asked in any thread"
        return peer.close_codes

    for _ in range(2):
        assert asyncio.run(main()) == [1012]
        assert not manager.is_draining, "nobody drains on a loop that is closed"
    asyncio.run(manager.stop())
    assert asyncio.run(main()) == [1012]


def test_a_drain_whose_loop_died_is_waited_for_by_nobody():
    manager = ConnectionManager()

    async def begin():
        peers = [(await connected(manager))[0] for _ in range(2 * MIN_BATCH)]
        draining = asyncio.create_task(manager.drain(30))
        await until(lambda: peers[0].close_codes)
        kept.append((draining, manager._parts.drain._task))

    kept = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()

    async def again():
        peer, _ = await connected(manager)
        async with asyncio.timeout(5):
            await manager.drain(0.5)
        assert peer.close_codes == [1012]
        await manager.stop()
        assert not manager.is_draining

    asyncio.run(again())
    for task in kept[0]:
        assert not task.done()
        task._log_destroy_pending = False


async def test_nothing_is_left_of_those_who_were_drained(manager):
    for _ in range(3):
        _, connection = await connected(manager, "room", "user")
        await manager.drain(1)
        manager.disconnect(connection)
        assert is_empty(manager)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await manager.stop()


async def test_a_node_among_many_drains_alone_and_is_subscribed_to_nothing_afterwards():
    backend = ScriptedBackend()
    manager = DistributedWebSocketManager(backend)
    await manager.start()
    before = set(backend.wanted)
    peer, connection = await connected(manager, "room", "user")
    assert isinstance(connection, Connection)
    assert len(backend.wanted) == len(before) + 2
    await manager.drain(1)
    assert peer.close_codes == [1012]
    assert backend.wanted == before
    assert backend.published == [], "other nodes go on"
    await manager.stop()


async def test_an_end_that_fails_costs_nobody_the_close_frame(caplog, monkeypatch):
    backend = ScriptedBackend()
    manager = DistributedWebSocketManager(backend)
    await manager.start()
    peers = [(await connected(manager, f"room {number}"))[0] for number in range(3 * MIN_BATCH)]
    unsubscribe, left = backend.unsubscribe, []

    def fail_once(targets):
        left.append(targets)
        if len(left) == 3:
            raise ZeroDivisionError
        return unsubscribe(targets)

    monkeypatch.setattr(backend, "unsubscribe", fail_once)
    await manager.drain(1)
    assert [peer.close_codes for peer in peers] == [[1012]] * len(peers)
    assert manager.active_connections == 0
    (failure,) = (record for record in caplog.records if record.exc_info is not None)
    assert failure.getMessage().startswith("closing <Connection ")
    assert failure.exc_info[0] is ZeroDivisionError
    await manager.stop()


async def test_it_does_not_run_in_the_context_of_the_request_that_asked_for_it(manager):
    request = ContextVar("request")
    seen = []
    await connected(manager)
    (connection,) = manager._registry.all()

    def close(_outboxes, _frame):
        seen.append(request.get(None))
        manager.disconnect(connection)
        return 1

    manager._parts.drain._close = close
    request.set("of somebody")
    await manager.drain(1)
    assert seen == [None]


async def test_a_start_that_has_nothing_to_do_does_not_end_a_drain(manager):
    peers = [(await connected(manager))[0] for _ in range(3 * MIN_BATCH)]
    draining = asyncio.create_task(manager.drain(1))
    await until(lambda: peers[0].close_codes)
    await manager.start()
    assert manager.is_draining
    await draining
    assert [peer.close_codes for peer in peers] == [[1012]] * len(peers)


async def test_after_a_stop_that_was_cancelled_a_start_lets_people_in_again(manager):
    peers = [(await connected(manager))[0] for _ in range(5)]
    stopping = asyncio.create_task(manager.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    assert manager.is_draining
    assert manager.stats().closed["restart"] == len(peers), "what was done is counted"
    await manager.start()
    assert not manager.is_draining
    await connected(manager)


async def test_a_start_during_a_stop_waits_for_it():
    manager = ConnectionManager(RoomsSettings(send_timeout=0.2, wire="asgi"))
    peer, connection = await connected(manager)
    peer.reads.clear()
    await connection.send("x")
    await settled()
    stopping = asyncio.create_task(manager.stop())
    await until(lambda: manager.is_draining)
    starting = asyncio.create_task(manager.start())
    await settled()
    assert manager.is_draining, "and nobody comes in between"
    assert not starting.done()
    await starting
    assert stopping.done()
    await connected(manager)
    await manager.stop()
