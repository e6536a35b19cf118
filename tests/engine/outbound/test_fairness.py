"""A broadcast to a large room keeps neither the loop nor a small room waiting: on a real server, with real sockets.

What the slices are made of is tested in `test_fan_out.py`, on a clock of its own. Here time is measured, and compared
with the time of the whole broadcast: what the server's thread has of the processor, so that nothing depends on who else
wants it. The best of some rounds counts.
"""

import asyncio
import contextlib
import logging
import resource
import select
import socket
import time

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect
from support import DEADLINE, live, until

from fastapi_rooms import ConnectionManager

MEMBERS = 3_000
ROUNDS = 20
WATCHED = 100
"""Every how many-th member of the large room is looked at while a broadcast is under way."""
AT_ONCE = 100
"""How many clients knock at the same time."""


@pytest.fixture(scope="module")
def many_files():
    """Allow two descriptors per member, and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MEMBERS + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} open files are needed, and {hard} are allowed")
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Hall:
    """A server with a large room and a small one, and their members, who do nothing but read when they are told to."""

    def __init__(self):
        self.manager = ConnectionManager()
        self.server = None
        self.large: list[socket.socket] = []
        self.small: list[socket.socket] = []
        self._small_poll = select.poll()

    async def __call__(self, scope, receive, send):
        websocket = WebSocket(scope, receive, send)
        await self.manager.connect(websocket, websocket.url.path[1:])
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()
        self.manager.disconnect(websocket)

    def fill(self):
        for begin in range(0, MEMBERS, AT_ONCE):
            self._knock(self.large, "large", min(AT_ONCE, MEMBERS - begin))
        self._knock(self.small, "small", 1)
        self._small_poll.register(self.small[0], select.POLLIN)

    def _knock(self, into, room, count):
        clients = [socket.create_connection(("127.0.0.1", self.server.port), DEADLINE) for _ in range(count)]
        into += clients
        for client in clients:
            client.sendall(
                f"GET /{room} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
        for client in clients:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                chunk = client.recv(1000)
                assert chunk, head
                head += chunk

    def empty(self):
        for client in self.large + self.small:
            client.close()

    async def broadcast(self, *messages):
        """Broadcast to the large room, and to the small one as soon as anybody else has a turn."""
        measured = Measured()
        watched = select.poll()
        waiting = {client.fileno() for client in [*self.large[::WATCHED], self.large[-1]]}
        for descriptor in waiting:
            watched.register(descriptor, select.POLLIN)
        begin = turn = time.thread_time()
        deadline = time.monotonic() + DEADLINE
        for message in messages:
            await self.manager.broadcast_to_room("large", message)
        is_small_told = False
        while waiting:
            await asyncio.sleep(0)  # a callback that is scheduled again and again
            now = time.thread_time()
            measured.longest = max(measured.longest, now - turn)
            measured.turns += 1
            turn = now
            if is_small_told and measured.small is None and self._small_poll.poll(0):
                measured.small = now - begin
            for descriptor, _ in watched.poll(0):
                watched.unregister(descriptor)
                waiting.discard(descriptor)
            assert time.monotonic() < deadline, f"{len(waiting)} of those who are watched have not got it"
            if not is_small_told and waiting:
                is_small_told = True
                await self.manager.broadcast_to_room("small", "small")
        measured.whole = turn - begin
        return measured

    def heard(self, clients, size):
        """Read so many bytes from each."""
        return {self._read(client, size) for client in clients}

    def _read(self, client, size):
        data = b""
        while len(data) < size:
            chunk = client.recv(size - len(data))
            assert chunk, "the server has ended the connection"
            data += chunk
        return data


class Measured:
    """One broadcast, in seconds of the processor."""

    def __init__(self):
        self.whole = 0.0
        self.longest = 0.0  # that somebody else was kept waiting
        self.turns = 0  # of somebody else
        self.small: float | None = None  # when the message to the small room was there; None: not before the end

    def __repr__(self):
        small = "not before" if self.small is None else f"{1000 * self.small:.1f} ms"
        return f"{1000 * self.longest:.1f} of {1000 * self.whole:.1f} ms in {self.turns} turns, small room: {small}"


@pytest.fixture(params=["asyncio", "uvloop"], scope="module")
def hall(request, many_files):
    made = Hall()
    with live(made, request.param, lifespan="off", ws_per_message_deflate=False, backlog=4096) as server:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # a line per member is of use to nobody
        made.server = server
        try:
            made.fill()
            yield made
        finally:
            made.empty()
        end = time.monotonic() + DEADLINE
        while made.manager.active_connections:
            assert time.monotonic() < end
            time.sleep(0.01)


async def test_a_large_broadcast_leaves_turns_to_others_and_a_small_room_does_not_wait_for_it(hall):
    await until(lambda: len(hall.manager.get_room_members("large")) == MEMBERS)
    rounds = []
    for number in range(ROUNDS):
        measured = await hall.server.call(hall.broadcast, f"{number:04}")
        rounds.append(measured)
        frame = b"\x81\x04%04d" % number
        assert hall.heard(hall.large, len(frame)) == {frame}
        if measured.turns > 1:
            assert hall.heard(hall.small, 7) == {b"\x81\x05small"}
        is_fair = measured.longest < min(0.7 * measured.whole, 0.03)  # a slice takes 5 ms
        if is_fair and measured.small is not None and measured.small < 0.8 * measured.whole:
            return
    raise AssertionError(f"others were kept waiting in each of {ROUNDS} rounds: {rounds}")


async def test_each_member_gets_all_in_order_although_broadcasts_overtake_each_other_in_the_room(hall):
    frames = b""

    async def broadcast():
        """One broadcast of three messages, and another one after each turn that it leaves."""
        nonlocal frames
        for number in range(30):
            for more in range(3 if number % 10 == 0 else 1):
                text = f"{number:03}.{more}"
                frames += b"\x81\x05" + text.encode()
                assert await hall.manager.broadcast_to_room("large", text) == MEMBERS
            await asyncio.sleep(0)

    await hall.server.call(broadcast)
    assert hall.heard(hall.large, len(frames)) == {frames}
