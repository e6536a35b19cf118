"""One server's turn: start it, connect to it, measure phases, end it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from benchmarks import processes
from benchmarks.client.load import Client
from benchmarks.client.room import Latencies
from benchmarks.processes import Server
from benchmarks.results import Results, Sample
from benchmarks.scale import Scale
from benchmarks.servers.options import Options

SMALL = 128


@dataclass
class Bench:
    """What all scenarios need."""

    scale: Scale
    results: Results
    servers: tuple[str, ...]
    say: Callable[[str], object]
    broker: str | None = None
    """Where a broker can be started from; None: what needs one is left out."""

    @contextmanager
    def turn(
        self,
        server: str,
        number: int,
        rooms: int,
        members: int,
        options: Options | None = None,
        slow: int | None = None,
    ) -> Iterator["Turn"]:
        """Start a server and connect members to it."""
        options = options or Options()
        self.say(f"round {number + 1}: {server}, {rooms} x {members} members")
        with processes.running(server, options) as running:
            _touch(running, deflate=options.deflate)
            before = running.memory_bytes()
            with Client([running.port], deflate=options.deflate) as client:
                turn = Turn(self, server, number, running, client, before)
                turn.connected_in = client.connect(rooms, members, slow=slow)
                yield turn


@dataclass
class Turn:
    """A server that runs, and members that are connected to it."""

    bench: Bench
    name: str
    round: int
    server: Server
    client: Client
    memory_before: int
    """In bytes, before the members came but after a first one, for whom the rest was imported."""
    connected_in: float = 0.0

    def note(self, row: str, values: dict[str, float]) -> None:
        """Keep a sample."""
        self.bench.results.samples.append(Sample(row, self.name, self.round, values))

    def idle(self) -> None:
        """Note how fast the members came, and what each costs while nothing happens."""
        members = len(self.client.members)
        time.sleep(self.bench.scale.settle)
        grown = self.server.memory_bytes() - self.memory_before
        self.note("idle", {"kib_per_connection": grown / 1024 / members})
        self.note("connects", {"per_second": members / self.connected_in})

    def warm_up(self, size: int = SMALL) -> None:
        """Send for a while without looking."""
        self.client.begin(size)
        self.client.closed_loop(self.bench.scale.warm_up)

    def closed(self, row: str, size: int = SMALL, *, outstanding: int = 1, burst: int = 1) -> None:
        """Measure a phase in which the next message waits for the one before."""
        with self.measured(row, size):
            self.client.closed_loop(self.bench.scale.seconds, outstanding=outstanding, burst=burst)

    def open(self, row: str, rate: float, size: int = SMALL) -> None:
        """Measure a phase in which messages come at their time, with latencies."""
        scale = self.bench.scale
        with self.measured(row, size) as values:
            published = self.client.open_loop(scale.rate_seconds, rate, scale.patience)
            values["delivered"] = self.client.tally.deliveries / (published * len(self.client.members))
            latencies = Latencies()
            latencies.add(self.client.rooms[0])
            values.update(latencies.summary())

    def holds(self, rate: float, max_ms: float) -> bool:
        """Return whether all messages of a rate arrive, and 99 of 100 in time."""
        self.client.begin(SMALL)
        published = self.client.open_loop(self.bench.scale.capacity_seconds, rate, self.bench.scale.patience)
        latencies = Latencies()
        latencies.add(self.client.rooms[0])
        everything = published * len(self.client.members)
        return self.client.tally.deliveries == everything and latencies.summary()["p99_ms"] <= max_ms

    @contextmanager
    def measured(self, row: str, size: int) -> Iterator[dict[str, float]]:
        """Note the CPU time and the bytes per delivery of a phase, beside what the caller adds."""
        tally = self.client.tally
        self.client.begin(size)
        values: dict[str, float] = {}
        cpu, client_cpu, started = self.server.cpu_seconds(), time.process_time(), perf_counter()
        yield values
        seconds = perf_counter() - started
        values["cpu_us"] = (self.server.cpu_seconds() - cpu) * 1e6 / max(1, tally.deliveries)
        values["bytes"] = tally.wire_bytes / max(1, tally.deliveries)
        values["per_second"] = tally.deliveries / seconds
        values["client_share"] = (time.process_time() - client_cpu) / seconds
        self.note(row, values)


def _touch(server: Server, *, deflate: bool) -> None:
    """Connect once and send once, so that what is made once is not counted as memory of the first member."""
    with Client([server.port], deflate=deflate) as client:
        client.connect(1, 1)
        client.begin(SMALL)
        client.closed_loop(0.0)
