"""Peers whose socket is out of reach: those that take nothing, and those that the server says are gone."""

import asyncio

import pytest

from engine.fakes import Peer, is_empty, only_this_task, run_clocked, settled
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound.flusher import GONE_SECONDS, WORD_SECONDS
from fastapi_rooms.engine.sessions import sessions_of

EITHER = "does not take its close frame either"


def now():
    return asyncio.get_running_loop().time()


async def out_of_reach(*, reads=True, **limits):
    """A manager, and a peer that takes nothing."""
    manager = ConnectionManager(RoomsSettings(send_timeout=8, **limits))
    peer = Peer()
    peer.transport = None
    connection = await manager.connect(peer.websocket, "a")
    peer.events.clear()
    if reads:
        sessions_of(manager).reader(connection).start()
    peer.reads.clear()
    return manager, peer, connection


def sockets(manager):
    return manager._parts.flusher.sockets


async def given_up(connection):
    """Wait until a peer took neither what it was sent nor its close frame."""
    await connection.send("hi")
    await connection.wait_until_closed()
    assert 16 <= now() <= 24


@pytest.mark.parametrize("reads", [True, False])
def test_who_takes_no_close_frame_either_finds_it_whenever_it_wakes(caplog, reads):
    async def main():
        manager, peer, connection = await out_of_reach(reads=reads)
        await given_up(connection)
        assert caplog.text.count(EITHER) == 1
        await asyncio.sleep(3600)
        assert caplog.text.count(EITHER) == 1, "it is said once"
        assert (sockets(manager), manager.stats().closing) == (1, 1), "its socket is still there"
        manager.disconnect(connection)
        peer.reads.set()
        await settled()
        assert peer.close_codes == [1013]
        await asyncio.sleep(3)
        assert sockets(manager) == 0
        assert is_empty(manager)
        assert only_this_task()

    run_clocked(main)


def test_who_was_given_up_keeps_its_place_until_its_socket_has_left():
    async def main():
        manager, peer, connection = await out_of_reach(max_connections=1)
        await given_up(connection)
        lacking = manager._parts.admission._places.lacking
        assert lacking(connection) is not None
        peer.reads.set()
        await settled()
        assert lacking(connection) is None
        await manager.stop()

    run_clocked(main)


def test_who_was_given_up_and_is_gone_then_is_let_go_of():
    async def main():
        manager, peer, connection = await out_of_reach()
        await given_up(connection)
        peer.go()
        await asyncio.sleep(3)
        assert sockets(manager) == 0
        assert only_this_task()
        assert peer.close_codes == []

    run_clocked(main)


def test_a_stop_waits_for_nobody_who_was_given_up():
    async def main():
        manager, _, connection = await out_of_reach()
        await given_up(connection)
        began = now()
        await manager.stop()
        assert now() == began
        assert sockets(manager) == 0
        assert only_this_task()

    run_clocked(main)


def test_a_drain_says_who_was_given_up(caplog):
    async def main():
        manager, _, connection = await out_of_reach()
        await given_up(connection)
        await manager.drain(5)
        assert "1 connections take nothing and cannot be aborted" in caplog.text
        await manager.stop()

    run_clocked(main)


def test_who_was_forgotten_and_takes_nothing_is_left_to_the_server(caplog):
    caplog.set_level("INFO", "fastapi_rooms")

    async def main():
        manager, peer, connection = await out_of_reach(reads=False)
        await manager.send_personal(connection, "hi")
        await settled()
        manager.disconnect(connection)
        await asyncio.sleep(20)
        assert only_this_task()
        assert sockets(manager) == 0
        assert connection.close_code == 1006
        assert EITHER not in caplog.text, "there was none"
        assert f"{connection!r} was forgotten, and does not take what it was sent before" in caplog.text
        peer.reads.set()
        await settled()
        assert peer.events == []

    run_clocked(main)


@pytest.mark.parametrize(("code", "told", "counted"), [(1000, 1013, 1), (4000, 4000, 0)])
def test_who_was_closed_by_the_app_and_is_told_that_it_is_slow_is_counted_as_that(code, told, counted):
    async def main():
        manager, peer, connection = await out_of_reach()
        await manager.send_personal(connection, "hi")
        await settled()
        await manager.send_personal(connection, "there")
        await connection.close(code)
        await asyncio.sleep(14)
        peer.reads.set()
        await settled()
        assert peer.close_codes == [told]
        assert manager.stats().closed["slow_consumer"] == counted
        await manager.stop()

    run_clocked(main)


# Of whom the server says that they have gone


def test_what_is_written_to_who_has_gone_ends_although_the_server_does_not_end_it(caplog):
    async def main():
        manager, peer, connection = await out_of_reach()
        sending = asyncio.create_task(connection.send("hi"))
        await settled()
        began = now()
        peer.go(1001)
        await sending
        await connection.wait_until_closed()
        assert now() == began, "whoever waits learns it at once"
        assert (connection.close_code, manager.stats().dropped["lost"]) == (1001, 1)
        await asyncio.sleep(3)
        assert sockets(manager) == 0
        assert only_this_task(), "what the server was passed is cancelled"
        assert "does not take" not in caplog.text

    run_clocked(main)


@pytest.mark.parametrize("closes", [True, False])
def test_what_is_written_to_who_has_gone_ends_where_the_socket_is_within_reach_too(caplog, closes):
    """gunicorn's own worker never ends it."""
    caplog.set_level("INFO", "fastapi_rooms")

    async def main():
        manager = ConnectionManager(RoomsSettings(send_timeout=8))
        peer = Peer()
        connection = await manager.connect(peer.websocket, "a")
        sessions_of(manager).reader(connection).start()
        peer.reads.clear()
        if closes:
            await connection.close(4000)
        else:
            await manager.send_personal(connection, "hi")
        await settled()
        peer.transport.closing = True
        peer.go(1006)
        await settled()
        assert connection._outbox.queued() is None
        await asyncio.sleep(3)
        assert (sockets(manager), only_this_task()) == (0, True)
        assert (caplog.text, manager.stats().closed["stalled"]) == ("", 0), "it is no news"

    run_clocked(main)


def test_what_ends_with_the_peer_by_itself_is_not_cancelled():
    async def main():
        manager, peer, connection = await out_of_reach()
        await manager.send_personal(connection, "hi")
        await settled()
        peer.go()
        await settled()
        assert sockets(manager) == 1
        peer.reads.set()
        await settled()
        assert peer.texts == ["hi"]
        assert only_this_task()
        await manager.stop()

    run_clocked(main)


def test_who_is_said_to_be_gone_because_it_is_closed_gets_its_close_frame(caplog):
    """granian says so as soon as the app closes."""

    async def main():
        _, peer, connection = await out_of_reach()
        await connection.close(4000)
        await settled()
        peer.go()
        await asyncio.sleep(6)
        peer.reads.set()
        await connection.wait_until_closed()
        assert peer.close_codes == [4000]
        await asyncio.sleep(3)
        assert only_this_task()
        assert caplog.text == ""

    run_clocked(main)


def test_who_is_said_to_be_gone_and_took_no_close_frame_is_no_news(caplog):
    async def main():
        manager, peer, connection = await out_of_reach()
        await connection.close(4000)
        await settled()
        peer.go()
        await connection.wait_until_closed()
        assert 8 <= now() <= 12
        assert "does not take" not in caplog.text
        await asyncio.sleep(3)
        assert (sockets(manager), only_this_task()) == (0, True)

    run_clocked(main)


def test_a_stop_does_not_wait_long_for_who_is_said_to_be_gone():
    """granian never ends a close that comes when it has stopped, and never says that the client has not gone."""

    async def main():
        manager, peer, connection = await out_of_reach()
        stopping = asyncio.create_task(manager.stop())
        await asyncio.sleep(WORD_SECONDS + 0.05)
        assert connection.close_code == 1012
        peer.go()
        began = now()
        await stopping
        assert now() - began <= GONE_SECONDS + 0.1
        assert only_this_task()

    run_clocked(main)


def test_a_stop_waits_for_word_of_who_went_with_the_server():
    async def main():
        manager, peer, connection = await out_of_reach()
        began = now()
        asyncio.get_running_loop().call_later(WORD_SECONDS / 2, peer.go, 1006)
        await manager.stop()
        assert now() - began <= WORD_SECONDS + 0.1
        assert connection.close_code == 1006, "it was not closed by us"
        assert manager.stats().closed["restart"] == 0
        assert only_this_task()

    run_clocked(main)


def test_a_stop_waits_for_no_word_where_sockets_are_within_reach():
    async def main():
        manager = ConnectionManager()
        peer = Peer()
        await manager.connect(peer.websocket, "a")
        began = now()
        await manager.stop()
        assert now() == began
        assert peer.close_codes == [1012]

    run_clocked(main)
