"""Whatever mix of connects, refusals, floods and ends: nobody is counted who is not there."""

import asyncio
import contextlib
import functools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fakes import Peer, is_empty, run_clocked, ticks
from fastapi_rooms.domain.errors import JoinRefused, NotConnectedError
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.hooks import Hooks
from fastapi_rooms.engine.manager import ConnectionManager

LIMITS = RoomsSettings(
    max_connections=5,
    max_connections_per_user=2,
    max_connections_per_address=3,
    max_rooms_per_connection=2,
    max_message_bytes=20,
    messages_per_second=1,
    messages_burst=2,
    outbox_messages=2,
    send_timeout=2,
    inbox_messages=2,
    inbox_timeout=1,
    first_message_timeout=20,
    max_connection_seconds=50,
    heartbeat_interval=5,
    heartbeat_timeout=5,
)


class Books:
    """Every beginning and every end that was told."""

    def __init__(self) -> None:
        self.connected = Counter()
        self.in_rooms = Counter()
        self.hooks = Hooks(
            connected=lambda connection: self.connected.update({connection: 1}),
            disconnected=lambda end: self.connected.subtract({end.connection: 1}),
            joined=lambda connection, room: self.in_rooms.update({(connection, room): 1}),
            left=lambda connection, room: self.in_rooms.subtract({(connection, room): 1}),
        )


class House:
    """A manager, an app that asks and limits, and clients that do what comes to hypothesis' mind."""

    def __init__(self) -> None:
        self.books = Books()
        self.manager = ConnectionManager(
            LIMITS, authorize_join=self._authorize, limiter=self._limit, hooks=self.books.hooks
        )
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task] = set()
        self._opened = asyncio.Event()

    async def _authorize(self, connection, room):
        if room == "guarded":
            await self._opened.wait()
        if room == "broken":
            raise RuntimeError(room)
        return room != "forbidden"

    def _limit(self, connection, action):
        return connection.user_id != "banned" or action == "message"

    def do(self, coroutine):
        async def run():
            with contextlib.suppress(HandshakeRefused, JoinRefused, NotConnectedError, OSError):
                await coroutine

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def connect(self, room, user, address, trouble):
        peer = Peer()
        headers = [(b"host", b"a.example")]
        if trouble == "foreign":
            headers.append((b"origin", b"https://b.example"))
        peer.websocket.scope.update(client=address and (address, 1), headers=headers)
        if trouble == "hangs":
            peer.accepts.clear()
        if trouble == "fails":
            peer.accept_error = OSError("gone")
        self.peers.append(peer)
        task = self.do(self._serve(peer, room, user, 0 if trouble == "expired" else None))
        if trouble == "cancelled":
            self.do(self._cancel(task))

    async def _serve(self, peer, room, user, expires_at):
        connection = await self.manager.connect(peer.websocket, room, user, expires_at=expires_at)
        try:
            async for _ in connection.messages(str):
                await asyncio.sleep(0.3)
        finally:
            self.manager.disconnect(connection)

    async def _cancel(self, task):
        await ticks(3)
        task.cancel()

    async def act(self, who, what):
        if self.peers:
            self.do(getattr(self, what, functools.partial(self.join, what))(self.peers[who % len(self.peers)]))
            await ticks(2)

    async def join(self, room, peer):
        await self.manager.join_room(peer.websocket, room)

    async def again(self, peer):
        await self.manager.connect(peer.websocket, "again", "somebody else")

    async def leave(self, peer):
        await self.manager.leave_room(peer.websocket, "a")

    async def close(self, peer):
        await self.manager.close(peer.websocket)

    async def disconnect(self, peer):
        self.manager.disconnect(peer.websocket)

    async def go(self, peer):
        peer.go()

    async def flood(self, peer):
        for number in range(120):
            peer.say(str(number))

    async def shout(self, peer):
        peer.say("x" * 21)

    async def block(self, peer):
        peer.reads.clear()

    async def unblock(self, peer):
        peer.reads.set()
        peer.accepts.set()

    async def lose(self, peer):
        peer.send_error = OSError("gone")

    async def broadcast(self, peer):
        await self.manager.broadcast("x")

    async def open(self, peer):
        self._opened.set()

    async def end(self):
        self._opened.set()
        for peer in self.peers:
            peer.accepts.set()
            peer.go()
            peer.transport.closing = True  # as the server does when the task of the route has ended
        await asyncio.sleep(120)
        assert not self.tasks
        assert is_empty(self.manager)
        stats = self.manager.stats()
        assert (stats.connections, stats.users, stats.rooms) == (0, 0, 0)
        assert (stats.queued_messages, stats.queued_bytes) == (0, 0)
        assert not self.manager._parts.admission._asking
        assert not self.manager._parts.readers.tasks
        assert not self.manager._parts.lifecycle.flusher._watched
        assert set(self.books.connected.values()) <= {0}, "whoever was said to come was said to go, once"
        assert set(self.books.in_rooms.values()) <= {0}
        await self.manager.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}


ROOMS = st.sampled_from([None, "a", "a", "b", "guarded", "forbidden", "broken", "bad\n"])
CONNECTS = st.tuples(
    ROOMS,
    st.sampled_from([None, None, "ann", "ann", "bob", "banned", ""]),
    st.sampled_from([None, "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2"]),
    st.sampled_from([*[None] * 9, "hangs", "fails", "cancelled", "foreign", "expired"]),
)
WHATS = (
    "a b c guarded forbidden broken again leave close disconnect go flood flood flood shout block unblock lose "
    "broadcast broadcast broadcast open"
)
ACTS = st.tuples(st.integers(0, 9), st.sampled_from(WHATS.split()))
PAUSES = st.tuples(st.sampled_from([0.1, 1, 3, 10]))


@settings(max_examples=60, deadline=None)
@given(st.lists(CONNECTS | ACTS | ACTS | PAUSES, min_size=30, max_size=80))
def test_whatever_happens_in_the_end_nothing_is_left(script):
    async def main():
        house = House()
        for step in script:
            match step:
                case (seconds,):
                    await asyncio.sleep(seconds)
                case (who, what):
                    await house.act(who, what)
                case _:
                    house.connect(*step)
                    await ticks(2)
        await house.end()

    run_clocked(main)
