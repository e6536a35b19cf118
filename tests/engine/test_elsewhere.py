"""A manager that is called from another event loop than its own, or from a thread that has none."""

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import DEADLINE

from engine.fakes import Peer, connected, texts
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.testing import LocalCluster

REMEDY = r"not the event loop that it lives on.*anyio\.from_thread\.run\(manager\.broadcast.*SyncPublisher"

EVERY_CALL = {
    "start": lambda manager, _: manager.start(),
    "connect": lambda manager, _: manager.connect(Peer().websocket, "kitchen", "bob"),
    "join_room": lambda manager, ann: manager.join_room(ann, "hall"),
    "leave_room": lambda manager, ann: manager.leave_room(ann, "kitchen"),
    "refresh": lambda manager, ann: manager.refresh(ann, None),
    "send_personal": lambda manager, ann: manager.send_personal(ann, "hi"),
    "send_personal by id": lambda manager, ann: manager.send_personal(ann.connection_id, "hi"),
    "send_to_user": lambda manager, _: manager.send_to_user("ann", "hi"),
    "broadcast": lambda manager, _: manager.broadcast("hi"),
    "broadcast_to_room": lambda manager, _: manager.broadcast_to_room("kitchen", "hi"),
    "close": lambda manager, ann: manager.close(ann),
    "close by id": lambda manager, ann: manager.close(ann.connection_id),
    "close_user": lambda manager, _: manager.close_user("ann"),
    "close_room": lambda manager, _: manager.close_room("kitchen"),
    "start_task": lambda _, ann: ann.start_task(asyncio.sleep(0)),
    "drain": lambda manager, _: manager.drain(0.01),
    "stop": lambda manager, _: manager.stop(),
}


@pytest.fixture(params=["one node", "many nodes"])
async def manager(request):
    manager = (
        ConnectionManager() if request.param == "one node" else DistributedWebSocketManager(LocalCluster(1).backends[0])
    )
    await manager.start()
    yield manager
    await manager.stop()


async def in_a_thread(function):
    """Call a function in a thread without a loop, while this one goes on."""
    with ThreadPoolExecutor(1) as threads:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(threads, function), DEADLINE)


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
async def test_another_loop_is_refused_at_once_and_told_what_to_do(manager, call):
    peer, ann = await connected(manager, "kitchen", "ann")

    async def main():
        await call(manager, ann)

    with pytest.raises(ConfigurationError, match=REMEDY):
        await in_a_thread(lambda: asyncio.run(main()))
    assert await manager.broadcast_to_room("kitchen", "still here") == 1
    assert await texts(peer) == [["still here"]]
    assert manager.active_rooms == ["kitchen"]


async def test_a_thread_without_a_loop_is_refused_too(manager):
    _, ann = await connected(manager, "kitchen", "ann")
    with pytest.raises(ConfigurationError, match=REMEDY):
        await in_a_thread(lambda: manager.disconnect(ann))
    with pytest.raises(ConfigurationError, match=REMEDY):
        await in_a_thread(lambda: ann.messages(str))
    with pytest.raises(ConfigurationError, match=REMEDY):
        await in_a_thread(lambda: manager.broadcast("hi").send(None))
    assert manager.get_room_members("kitchen") == [ann]


async def test_a_thread_may_look_and_may_have_the_loop_send(manager):
    peer, ann = await connected(manager, "kitchen", "ann")
    loop = asyncio.get_running_loop()

    def work():
        assert manager.get_room_members("kitchen") == [ann]
        assert manager.stats().connections == 1
        assert asyncio.run_coroutine_threadsafe(manager.broadcast("one"), loop).result(DEADLINE) == 1
        sent = threading.Event()
        loop.call_soon_threadsafe(
            lambda: loop.create_task(manager.broadcast("two")).add_done_callback(lambda _: sent.set())
        )
        assert sent.wait(DEADLINE)

    await in_a_thread(work)
    assert await texts(peer) == [["one", "two"]]


def test_a_loop_may_be_run_by_one_thread_after_the_other():
    manager, loop = ConnectionManager(), asyncio.new_event_loop()

    async def main():
        return await manager.broadcast("hi")

    loop.run_until_complete(manager.start())
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(loop.run_until_complete, main()).result(DEADLINE) == 0
    loop.run_until_complete(manager.stop())
    loop.close()


def test_it_may_go_on_on_another_loop_when_its_own_has_ended():
    manager = ConnectionManager()

    async def main():
        peer, connection = await connected(manager, "kitchen")
        assert await manager.broadcast("hi") == 1
        assert await texts(peer) == [["hi"]]
        manager.disconnect(connection)

    for _ in range(2):
        asyncio.run(main())
    manager.disconnect(Peer().websocket)  # after the last loop
    asyncio.run(manager.stop())


async def test_once_stopped_it_may_be_started_on_another_loop_while_the_first_goes_on(manager):
    await manager.stop()

    async def main():
        await manager.start()
        assert await manager.broadcast("hi") == 0
        await manager.stop()

    await in_a_thread(lambda: asyncio.run(main()))
    await manager.start()
    assert await manager.broadcast("hi") == 0


async def test_a_start_that_waits_for_a_stop_makes_its_loop_the_home_again(manager):
    await asyncio.gather(manager.stop(), manager.start())
    with pytest.raises(ConfigurationError, match=REMEDY):
        await in_a_thread(lambda: asyncio.run(manager.broadcast("hi")))


async def test_who_was_never_used_can_be_told_something_anywhere_but_lives_where_the_first_connects():
    manager = ConnectionManager()
    assert await in_a_thread(lambda: asyncio.run(manager.broadcast("hi"))) == 0
    await connected(manager)
    with pytest.raises(ConfigurationError, match=re.escape("asyncio.run(manager.broadcast(message))")):
        await in_a_thread(lambda: asyncio.run(manager.broadcast("hi")))
    await manager.stop()
