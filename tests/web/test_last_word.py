"""What an endpoint says past the outbox of a connection that was given up: never that all is well."""

import asyncio

import pytest
from engine.fakes import Peer, run_clocked, settled

from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.outcome import close_and_wait


async def out_of_reach():
    manager = ConnectionManager(RoomsSettings(send_timeout=8))
    peer = Peer()
    peer.transport = None
    connection = await manager.connect(peer.websocket, "a")
    return manager, peer, connection


@pytest.mark.parametrize(("code", "said"), [(1000, 1013), (1011, 1011), (4000, 4000)])
def test_who_was_lost_to_an_error_that_seemed_to_be_its_end(code, said):
    async def main():
        manager, peer, connection = await out_of_reach()
        peer.send_error = OSError("of something in between")
        await connection.send("hi")
        await settled()
        assert connection.close_code == 1006
        peer.send_error = None
        await close_and_wait(peer.websocket, manager, connection, code)
        assert peer.close_codes == [said]
        await manager.stop()

    run_clocked(main)


@pytest.mark.parametrize(("code", "said"), [(1000, 1013), (4000, 4000)])
def test_who_had_not_taken_all_when_a_stop_gave_it_up(code, said):
    async def main():
        manager, peer, connection = await out_of_reach()
        peer.reads.clear()
        await manager.send_personal(connection, "hi")
        await settled()
        ending = asyncio.create_task(close_and_wait(peer.websocket, manager, connection, code))
        await settled()
        connection._outbox.abort()  # as the end of a stop does
        peer.reads.set()
        await ending
        assert (peer.texts, peer.close_codes) == ([], [said])
        await manager.stop()

    run_clocked(main)


def test_who_was_forgotten_and_had_not_taken_all_is_not_told_that_all_is_well():
    async def main():
        manager, peer, connection = await out_of_reach()
        peer.reads.clear()
        await manager.send_personal(connection, "hi")
        await settled()
        manager.disconnect(connection)
        ending = asyncio.create_task(close_and_wait(peer.websocket, manager, connection, 1000))
        await asyncio.sleep(14)
        peer.reads.set()
        await ending
        assert peer.close_codes == [1013]
        await manager.stop()

    run_clocked(main)


def test_who_was_forgotten_by_its_endpoint_is_closed_as_that_says():
    async def main():
        manager, peer, connection = await out_of_reach()
        manager.disconnect(connection)
        await close_and_wait(peer.websocket, manager, connection, 1000)
        assert peer.close_codes == [1000]
        await manager.stop()

    run_clocked(main)
