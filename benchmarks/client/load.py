"""Drives many members from one thread."""

import selectors
import socket
from collections.abc import Sequence
from itertools import cycle
from time import perf_counter
from typing import Self

from benchmarks.client.frames import handshake
from benchmarks.client.member import Member
from benchmarks.client.room import Room, Tally

AT_ONCE = 64
"""Handshakes under way."""
PORTS = 20_000
"""Connections from one source address; the kernel has about 28,000 ports for each."""
PATIENCE = 10.0
SAMPLED = 100
"""Members whose latencies are kept; those of all would be millions."""


class NotDelivered(Exception):  # noqa: N818 - it says what happened
    """A server took too long; its figures would mean nothing."""


class Client:
    """Members of many rooms, on one node or in turn on several."""

    def __init__(self, ports: Sequence[int], *, deflate: bool = False) -> None:
        self.tally = Tally()
        self.rooms: list[Room] = []
        self.members: list[Member] = []
        self._ports = ports
        self._deflate = deflate
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for member in self.members:
            member.socket.close()

    def connect(self, rooms: int, members: int, *, slow: int | None = None) -> float:
        """Connect `members` to each room; return how many seconds it took. Member `slow` gets a small buffer."""
        self.rooms = [Room(f"r{number}", self.tally) for number in range(rooms)]
        total = rooms * members
        every = max(1, total // SAMPLED)
        started = deadline = perf_counter()
        opened = -1
        while self.tally.opened < total:
            while len(self.members) < total and len(self.members) - self.tally.opened < AT_ONCE:
                number = len(self.members)
                self._dial(
                    self.rooms[number // members],
                    sampled=not number // len(self._ports) % every,
                    is_slow=number == slow,
                )
            self.poll(1.0)
            if self.tally.opened != opened:
                opened, deadline = self.tally.opened, perf_counter() + PATIENCE
            if perf_counter() > deadline:
                raise NotDelivered(f"{opened} of {total} connections were accepted")
        return perf_counter() - started

    def _dial(self, room: Room, *, sampled: bool, is_slow: bool) -> None:
        number = len(self.members)
        node = number % len(self._ports)
        sock = socket.socket()
        if is_slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if number >= PORTS:  # all of 127.0.0.0/8 is loopback, on Linux
            sock.bind((f"127.0.0.{1 + number // PORTS}", 0))
        sock.connect(("127.0.0.1", self._ports[node]))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(0)
        member = Member(sock, room, self.tally, node=node, sampled=sampled)
        self.members.append(member)
        room.members.append(member)
        self._selector.register(sock, selectors.EVENT_READ, member)
        member.send(handshake(self._ports[node], f"/ws/{room.name}", deflate=self._deflate))

    def stop_reading(self, number: int) -> None:
        """Leave a member alone: its connection stays, nothing is taken from it."""
        member = self.members[number]
        self._selector.unregister(member.socket)
        member.room.ignore(member)

    def poll(self, timeout: float) -> None:
        """Take what has arrived, waiting for it for a while."""
        for key, _ in self._selector.select(timeout):
            member: Member = key.data
            if not member.on_readable():
                self._selector.unregister(member.socket)

    def begin(self, size: int) -> None:
        """Start a phase with messages of this size. Everything of the one before has arrived."""
        tally = self.tally
        tally.deliveries = tally.completed = tally.wire_bytes = 0
        tally.last_arrival, tally.longest_silence = perf_counter(), 0.0
        for room in self.rooms:
            room.begin(size)

    def closed_loop(self, seconds: float, *, outstanding: int = 1, burst: int = 1) -> int:
        """Keep so many bursts under way, room after room: a new one as soon as all have an old one; return messages."""
        turns = cycle(self.rooms)
        published = 0
        end = perf_counter() + seconds
        while not published or perf_counter() < end:
            while published - self.tally.completed < outstanding * burst:
                next(turns).publish(burst)
                published += burst
            self.poll(0.1)
            self._check_progress()
        while self.tally.completed < published:
            self.poll(0.1)
            self._check_progress()
        return published

    def open_loop(self, seconds: float, rate: float, patience: float) -> int:
        """Publish at a fixed rate, whatever the server does, then wait for the rest; return messages.

        Latency counts from when a message was due, so that a late client or a server that does not read is not excused.
        """
        room = self.rooms[0]
        started = perf_counter()
        published = 0
        while (now := perf_counter()) < started + seconds:
            while (due := started + published / rate) <= now:
                room.publish(at=due)
                published += 1
            room.members[0].resume()
            # The selector counts in milliseconds. What is due sooner is waited for in a busy loop.
            self.poll(0.001 if due - now > 0.002 else 0.0)
        end = perf_counter() + patience
        while self.tally.completed < published and perf_counter() < end:
            room.members[0].resume()
            self.poll(0.01)
        return published

    def silence(self) -> float:
        """Return the longest time in this phase without a delivery while one was due, in seconds, up to now."""
        room = self.rooms[0]
        if self.tally.completed == len(room.sent_at):
            return self.tally.longest_silence
        return max(self.tally.longest_silence, perf_counter() - self.tally.last_arrival)

    def _check_progress(self) -> None:
        if len(self.rooms) == 1:  # what goes to many rooms is one small message at a time
            self.rooms[0].members[0].resume()
        if perf_counter() - self.tally.last_arrival > PATIENCE:
            raise NotDelivered(f"nothing arrived for {PATIENCE:g} s after {self.tally.deliveries} deliveries")
