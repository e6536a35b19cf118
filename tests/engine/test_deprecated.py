"""Old names of the manager: each still works, and says what to write instead."""

import pytest

from engine.fakes import Peer, connected
from fastapi_rooms import ConnectionManager, HandshakeRefused, RoomsSettings


async def test_counters_are_a_copy_and_point_to_stats(manager):
    with pytest.deprecated_call(match=r"manager\.stats\(\)"):
        counters = manager.counters
    counters.lost_messages = 7
    assert manager.stats().dropped["lost"] == 0


async def test_a_handshake_is_checked():
    manager = ConnectionManager(RoomsSettings(require_origin=True))
    with (
        pytest.deprecated_call(match=r"fastapi_rooms\.check_handshake"),
        pytest.raises(HandshakeRefused) as refused,
    ):
        manager.check_handshake(Peer().websocket)
    assert refused.value.status_code == 403


async def test_credentials_are_refused(manager):
    with (
        pytest.deprecated_call(match=r"fastapi_rooms\.refuse_credentials"),
        pytest.raises(HandshakeRefused) as refused,
    ):
        manager.refuse_credentials(Peer().websocket)
    assert (refused.value.status_code, refused.value.headers) == (401, {"WWW-Authenticate": "Bearer"})


async def test_one_can_wait_until_a_connection_has_caught_up_and_until_it_is_closed(manager):
    peer, connection = await connected(manager)
    with pytest.deprecated_call(match=r"connection\.wait_until_caught_up\(\)"):
        await manager.caught_up(connection)
    await connection.close(4000)
    with pytest.deprecated_call(match=r"connection\.wait_until_closed\(\)"):
        await manager.closed(connection)
    assert peer.close_codes == [4000]


async def test_messages_are_read(manager):
    peer, connection = await connected(manager)
    with pytest.deprecated_call(match=r"connection\.messages"):
        messages = manager.messages(connection, str)
    peer.say("hello")
    assert await anext(messages) == "hello"
    await manager.stop()
