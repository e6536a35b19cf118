"""`manager.users`: all connections of a user join and leave a room, on all nodes."""

import asyncio

import pytest
from support import until

from engine.distributed.calls import ANN, KITCHEN, LOG
from engine.fakes import Peer, connected, settled, texts
from engine.scripted import OTHER_NODE
from fastapi_rooms.domain.envelope import Envelope
from fastapi_rooms.domain.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidName,
    ManagerNotStarted,
    MessageError,
)
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.manager import ConnectionManager


async def hears(node, room, *peers):
    """Wait until all of them hear what is said there on this node."""

    async def heard():
        await node.broadcast_to_room(room, "hello")
        await settled()
        return all(peer.texts for peer in peers)

    await until(heard)


async def test_all_connections_of_a_user_join_and_leave_on_all_nodes(nodes):
    ann = [await connected(node, user_id="ann") for node in nodes for _ in range(2)]
    bob = [await connected(node, user_id="bob") for node in nodes]
    assert await nodes[0].users.join_room("ann", "kitchen") == 2, "of this node"
    await hears(nodes[0], "kitchen", *(peer for peer, _ in ann))
    assert [set(connection.rooms) for _, connection in ann] == [{"kitchen"}] * 6
    assert [set(connection.rooms) for _, connection in bob] == [set()] * 3
    assert await nodes[1].users.leave_room("ann", "kitchen") == 2
    await until(lambda: not any(connection.rooms for _, connection in ann))
    assert [node.active_rooms for node in nodes] == [[]] * 3


async def test_who_decides_need_not_have_the_user(nodes):
    peer, connection = await connected(nodes[1], user_id="ann")
    assert await nodes[0].users.join_room("ann", "kitchen") == 0
    await hears(nodes[2], "kitchen", peer)
    assert await nodes[2].users.leave_room("ann", "kitchen") == 0
    await until(lambda: not connection.rooms)


async def test_what_this_node_says_next_is_heard_by_those_here(nodes):
    peer, _ = await connected(nodes[0], user_id="ann")
    await nodes[0].users.join_room("ann", "kitchen")
    await nodes[1].broadcast_to_room("kitchen", "from elsewhere")
    await until(lambda: peer.texts)
    await nodes[0].broadcast_to_room("kitchen", "from here")
    assert await texts(peer) == [["from elsewhere", "from here"]]


async def test_it_is_told_at_the_call_and_the_room_is_wanted(manager, backend):
    _, connection = await connected(manager, user_id="ann")
    backend.answers = backend.confirms = False
    joining = asyncio.create_task(manager.users.join_room("ann", "kitchen"))
    await settled()
    assert [(one.target, one.content) for one in backend.published] == [(ANN, Move("kitchen", joins=True))]
    assert KITCHEN in backend.wanted
    backend.answer()
    await settled()
    assert not joining.done(), "those here are to hear the others first"
    backend.confirm()
    assert await joining == 1
    leaving = asyncio.create_task(manager.users.leave_room("ann", "kitchen"))
    await settled()
    assert backend.published[-1].content == Move("kitchen", joins=False)
    assert (connection.rooms, KITCHEN in backend.wanted) == (frozenset(), False)
    backend.answer()
    assert await leaving == 1


async def test_who_leaves_while_others_are_told_leaves_nothing_wanted(manager, backend):
    _, connection = await connected(manager, user_id="ann")
    backend.answers = False
    joining = asyncio.create_task(manager.users.join_room("ann", "kitchen"))
    await settled()
    await manager.leave_room(connection, "kitchen")
    backend.answer()
    assert await joining == 1
    assert KITCHEN not in backend.wanted


async def test_who_joins_where_somebody_is_about_to_waits_as_well(manager, backend):
    await connected(manager, user_id="ann")
    backend.confirms = False
    joins = [asyncio.create_task(manager.users.join_room("ann", "kitchen")) for _ in range(2)]
    await settled()
    assert not any(join.done() for join in joins)
    backend.confirm()
    assert [await join for join in joins] == [1, 0]


async def test_what_is_too_large_for_others_moves_nobody(backend):
    manager = DistributedWebSocketManager(backend, settings=RoomsSettings(max_envelope_bytes=100))
    await manager.start()
    _, connection = await connected(manager, user_id="a" * 60)
    for move in (manager.users.join_room, manager.users.leave_room):
        with pytest.raises(MessageError, match="max_envelope_bytes"):
            await move("a" * 60, "r" * 60)
    assert (connection.rooms, backend.published) == (frozenset(), [])
    await manager.stop()


async def test_that_others_were_not_told_is_raised_and_those_here_have_moved(manager, backend):
    _, connection = await connected(manager, user_id="ann")
    backend.answers = False
    for move, rooms in ((manager.users.join_room, {"kitchen"}), (manager.users.leave_room, set())):
        moving = asyncio.create_task(move("ann", "kitchen"))
        await settled()
        backend.answer("away")
        with pytest.raises(BackendUnavailable, match="other nodes were not told"):
            await moving
        assert connection.rooms == rooms


async def test_failures_may_be_logged_instead(backend, caplog):
    manager = DistributedWebSocketManager(backend, settings=LOG)
    await manager.start()
    backend.answers = False
    assert await manager.users.leave_room("ann", "kitchen") == 0
    backend.answer("away")
    await settled()
    assert "other nodes were not told: away" in caplog.text
    await manager.stop()


async def test_what_others_decide_is_done_and_told(backend):
    joined, left = [], []
    hooks = Hooks(joined=lambda *told: joined.append(told), left=lambda *told: left.append(told))
    manager = DistributedWebSocketManager(backend, hooks=hooks)
    await manager.start()
    _, connection = await connected(manager, user_id="ann")
    for _ in range(2):
        backend.receiver.receive(Envelope(OTHER_NODE, ANN, Move("kitchen", joins=True)))
    await settled()
    assert (connection.rooms, KITCHEN in backend.wanted) == ({"kitchen"}, True)
    for _ in range(2):
        backend.receiver.receive(Envelope(OTHER_NODE, ANN, Move("kitchen", joins=False)))
    await settled()
    assert (connection.rooms, KITCHEN in backend.wanted) == (frozenset(), False)
    assert joined == left == [(connection, "kitchen")]
    await manager.stop()


async def test_a_manager_that_was_not_started_says_so(backend):
    manager = DistributedWebSocketManager(backend)
    with pytest.raises(ManagerNotStarted):
        await manager.users.join_room("ann", "kitchen")


async def test_one_node_does_the_same(manager_of_one):
    ann = [await connected(manager_of_one, user_id="ann") for _ in range(2)]
    await connected(manager_of_one, "kitchen", "bob")
    assert await manager_of_one.users.join_room("ann", "kitchen") == 2
    assert await manager_of_one.users.join_room("ann", "kitchen") == 0, "they are there"
    assert await manager_of_one.broadcast_to_room("kitchen", "hi") == 3
    assert await manager_of_one.users.leave_room("ann", "kitchen") == 2
    assert await manager_of_one.users.leave_room("ann", "kitchen") == 0
    assert [set(connection.rooms) for _, connection in ann] == [set()] * 2


async def test_nobody_is_asked(manager_of_one):
    manager_of_one = ConnectionManager(authorize_join=lambda connection, room: False)
    _, connection = await connected(manager_of_one, user_id="ann")
    assert await manager_of_one.users.join_room("ann", "kitchen") == 1
    assert connection.rooms == {"kitchen"}
    await manager_of_one.stop()


async def test_who_is_in_too_many_rooms_stays_out_and_that_is_counted(caplog):
    caplog.set_level("INFO", "fastapi_rooms")
    manager = ConnectionManager(RoomsSettings(max_rooms_per_connection=1))
    _, full = await connected(manager, "attic", "ann")
    _, free = await connected(manager, user_id="ann")
    assert await manager.users.join_room("ann", "kitchen") == 1
    assert (full.rooms, free.rooms) == ({"attic"}, {"kitchen"})
    assert manager.stats().refused[Refusal.MAX_ROOMS] == 1
    assert f"{full!r} does not join: the connection is in 1 rooms" in caplog.text
    await manager.stop()


async def test_who_is_only_connecting_moves_and_is_told_of_it_as_of_any_room():
    told = []
    manager = ConnectionManager(hooks=Hooks(joined=lambda connection, room: told.append(room)))
    peer = Peer()
    peer.accepts.clear()
    connecting = asyncio.create_task(manager.connect(peer.websocket, "attic", "ann"))
    await settled()
    await manager.users.join_room("ann", "kitchen")
    await manager.users.leave_room("ann", "attic")
    await settled()
    assert told == [], "nobody is there yet"
    peer.accepts.set()
    connection = await connecting
    await settled()
    assert (connection.rooms, told) == ({"kitchen"}, ["kitchen"])
    await manager.stop()


@pytest.mark.parametrize(
    ("user_id", "room", "error"),
    [("", "kitchen", InvalidName), ("ann", "", InvalidName), (7, "kitchen", ConfigurationError)],
)
async def test_names_are_checked(manager_of_one, user_id, room, error):
    for move in (manager_of_one.users.join_room, manager_of_one.users.leave_room):
        with pytest.raises(error):
            await move(user_id, room)


async def test_it_says_when_it_is_called_elsewhere(manager_of_one):
    await connected(manager_of_one, user_id="ann")
    with pytest.raises(ConfigurationError, match="event loop"):
        await asyncio.to_thread(asyncio.run, manager_of_one.users.join_room("ann", "kitchen"))


@pytest.fixture
async def manager_of_one():
    manager = ConnectionManager()
    yield manager
    await manager.stop()
