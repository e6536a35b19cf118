"""A room as the client sees it: what was sent into it, and who has received how much."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.client.frames import client_frame, server_frame
from benchmarks.client.messages import payload

if TYPE_CHECKING:
    from benchmarks.client.member import Member


@dataclass
class Tally:
    """What all members of all rooms have received since the phase began."""

    opened: int = 0
    """Handshakes that were answered, since ever."""
    deliveries: int = 0
    completed: int = 0
    """Messages that everybody in their room has."""
    wire_bytes: int = 0
    last_arrival: float = 0.0
    longest_silence: float = 0.0
    """The longest time without a delivery while one was due, in seconds."""


class Room:
    """The stream that every member has to receive, byte for byte unless it is compressed.

    All messages of a phase have the same size, so a place in the stream says how many whole ones came before it.
    """

    def __init__(self, name: str, tally: Tally) -> None:
        self.name = name
        self.members: list[Member] = []
        self.stream = bytearray()
        self.frame_size = 1
        self.arrivals: list[tuple[int, float, int, int]] = []
        """Node, time, and the numbers of the first and the next message: what sampled members received."""
        self.sent_at: list[float] = []
        self._tally = tally
        self._size = 0
        self._done = 0  # messages that all have
        self._standing: list[int] = [0]  # how many members have exactly so many messages

    def begin(self, size: int) -> None:
        """Start a phase. Everybody has everything of the one before."""
        self._size = size
        self.frame_size = len(server_frame(payload(0, size)))
        self._done = 0
        self.stream, self.sent_at, self.arrivals = bytearray(), [], []
        for member in self.members:
            member.begin()
        self._standing = [len(self.members)]

    def publish(self, count: int = 1, at: float | None = None) -> None:
        """Have the first member send messages; `at` is when they were due."""
        payloads = [payload(len(self.sent_at) + extra, self._size) for extra in range(count)]
        self.stream += b"".join(map(server_frame, payloads))
        self.sent_at += [perf_counter() if at is None else at] * count
        self._standing += [0] * count
        self.members[0].send(b"".join(map(client_frame, payloads)))

    def expected(self, number: int) -> bytes | None:
        """Return a message, or None if there is no such one yet."""
        return payload(number, self._size) if number < len(self.sent_at) else None

    def ignore(self, member: "Member") -> None:
        """Count messages as complete without this member, which will receive no more."""
        self._standing[member.received] -= 1
        self._complete()

    def advance(self, member: "Member", received: int) -> None:
        """Note that a member has so many messages now."""
        before, tally, now = member.received, self._tally, perf_counter()
        member.received = received
        tally.deliveries += received - before
        silent = now - max(tally.last_arrival, self.sent_at[before])
        tally.longest_silence = max(tally.longest_silence, silent)
        tally.last_arrival = now
        if member.sampled:
            self.arrivals.append((member.node, now, before, received))
        self._standing[before] -= 1
        self._standing[received] += 1
        self._complete()

    def _complete(self) -> None:
        while self._done < len(self.sent_at) and not self._standing[self._done]:
            self._done += 1
            self._tally.completed += 1


@dataclass
class Latencies:
    """How long sampled deliveries took, in milliseconds, by the index of the member's node."""

    of_node: dict[int, list[float]] = field(default_factory=dict)

    def add(self, room: Room) -> None:
        """Take what a room has noted."""
        for node, at, first, following in room.arrivals:
            sent = room.sent_at[first:following]
            self.of_node.setdefault(node, []).extend((at - moment) * 1000 for moment in sent)

    def summary(self, node: int = 0) -> dict[str, float]:
        """Return median and 99th percentile; nothing if nothing arrived."""
        ordered = sorted(self.of_node.get(node, []))
        if not ordered:
            return {}
        return {name: ordered[int((len(ordered) - 1) * share)] for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))}
