"""What is measured, one function each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks import processes
from benchmarks.client.load import Client
from benchmarks.client.room import Latencies
from benchmarks.measuring import Bench
from benchmarks.results import BASELINE, Sample
from benchmarks.servers.options import Options
from benchmarks.servers.serving import COMPARED, OWN_SERVER, STEPS
from fastapi_rooms import RoomsSettings

OURS = "rooms"
FLUSH_INTERVALS = (0, 10, 30)
MAX_LATENCY_MS = 50.0
"""What a member of a chat does not notice."""
LARGE_BYTES = 4096
BURST = 100
ROOMS_OUTSTANDING = 100
"""With one message under way, a room of five would measure how long the two processes take to wake each other."""


def fan_out(bench: Bench) -> None:
    """One room; the steps to one write take part in the first round."""
    for number in range(bench.scale.rounds):
        steps = [name for name in STEPS if name not in COMPARED] if not number else []
        for server in (*bench.servers, *steps):
            with bench.turn(server, number, 1, bench.scale.members) as turn:
                turn.warm_up()
                turn.closed("one")
                turn.closed("four", outstanding=4)
                turn.closed("burst", burst=BURST)
                turn.closed("4kib", LARGE_BYTES)


def deflate(bench: Bench) -> None:
    """The same with members that offer compression, as browsers do, and a server that agrees."""
    for number in range(bench.scale.rounds):
        for server in bench.servers:
            with bench.turn(server, number, 1, bench.scale.members, Options(deflate=True)) as turn:
                turn.warm_up()
                turn.closed("deflate")


def many_rooms(bench: Bench) -> None:
    """Many small rooms; on the way, what a connection costs."""
    scale = bench.scale
    for number in range(scale.rounds):
        for server in bench.servers:
            with bench.turn(server, number, scale.rooms, scale.room_size) as turn:
                turn.idle()
                turn.client.begin(128)
                turn.client.closed_loop(scale.warm_up, outstanding=ROOMS_OUTSTANDING)
                turn.closed("rooms", outstanding=ROOMS_OUTSTANDING)


def large_room(bench: Bench) -> None:
    """One very large room."""
    for number in range(bench.scale.large_rounds):
        for server in bench.servers:
            with bench.turn(server, number, 1, bench.scale.large) as turn:
                turn.warm_up()
                turn.closed("large")


def rates(bench: Bench) -> None:
    """Messages that come at their time, whether the server keeps up or not."""
    for server, label, settings in _rate_variants(bench):
        for rate in bench.scale.rates:  # a server that did not keep up has work left, so each rate gets a new one
            with bench.turn(server, 0, 1, bench.scale.members, Options(settings=settings)) as turn:
                turn.name = label
                turn.warm_up()
                turn.open(f"rate-{rate}", rate)


def capacity(bench: Bench) -> None:
    """The highest rate at which every message arrives, 99 of 100 within `MAX_LATENCY_MS`; found by doubling."""
    for server, label, settings in _rate_variants(bench):
        highest = 0.0
        for rate in bench.scale.capacity_rates:
            with bench.turn(server, 0, 1, bench.scale.members, Options(settings=settings)) as turn:
                turn.name = label
                turn.warm_up()
                held = turn.holds(rate, MAX_LATENCY_MS)
            if not held:
                break
            highest = rate
        bench.results.samples.append(Sample("capacity", label, 0, {"per_second": highest}))


def _rate_variants(bench: Bench) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for server in (BASELINE, OWN_SERVER):
        if server in bench.servers:
            yield server, server, {}
    if "flush_interval" not in RoomsSettings.model_fields:
        yield OURS, OURS, {}
        return
    for interval in FLUSH_INTERVALS:
        yield OURS, f"{OURS}, flush_interval={interval}", {"flush_interval": interval}


def compression(bench: Bench) -> None:
    """What compression costs and saves, by size: done by the server for each member, or not at all."""
    variants: list[tuple[str, str, dict[str, Any]]] = [(BASELINE, BASELINE, {}), (OURS, f"{OURS}, never", {})]
    if "compress_min_bytes" in RoomsSettings.model_fields:
        variants[1:] = [
            (OURS, f"{OURS}, never", {"compress_min_bytes": None}),
            (OURS, f"{OURS}, by the server", {"compress_min_bytes": 1}),
        ]
    for number in range(bench.scale.large_rounds):
        for server, label, settings in variants:
            options = Options(deflate=True, settings=settings)
            with bench.turn(server, number, 1, bench.scale.members, options) as turn:
                turn.name = label
                turn.warm_up()
                for size in bench.scale.sizes:
                    turn.closed(f"size-{size}", size)


def slow_consumer(bench: Bench) -> None:
    """One member stops reading. What do the others notice?"""
    scale = bench.scale
    for server in (BASELINE, OURS):
        stuck = scale.slow_members // 2
        with bench.turn(server, 0, 1, scale.slow_members, slow=stuck) as turn:
            turn.warm_up()
            client = turn.client
            with turn.measured("slow", scale.slow_bytes) as values:
                client.stop_reading(stuck)
                before = turn.server.memory_bytes()
                published = client.open_loop(scale.slow_seconds, scale.slow_rate, scale.patience)
                values["published"] = published
                values["reached"] = client.tally.completed
                values["silence_s"] = client.silence()
                values["memory_mib"] = (turn.server.memory_bytes() - before) / 1024**2


def nodes(bench: Bench) -> None:
    """Two nodes and a broker: how long until members on this node and on the other have a message."""
    if bench.broker is None:
        bench.say("no Valkey or Redis here: two nodes are left out")
        return
    scale = bench.scale
    bench.say(f"two nodes, {scale.node_members} members")
    with ExitStack() as stack:
        options = Options(redis_url=stack.enter_context(processes.broker(bench.broker)))
        ports = [stack.enter_context(processes.running(OURS, options)).port for _ in range(2)]
        client = stack.enter_context(Client(ports))
        client.connect(1, scale.node_members)
        client.begin(128)
        client.closed_loop(scale.warm_up)
        client.begin(128)
        client.open_loop(scale.rate_seconds, scale.node_rate, scale.patience)
        latencies = Latencies()
        latencies.add(client.rooms[0])
        for node, row in enumerate(("local", "remote")):
            bench.results.samples.append(Sample(row, OURS, 0, latencies.summary(node)))


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "fan_out": fan_out,
    "deflate": deflate,
    "many_rooms": many_rooms,
    "large_room": large_room,
    "rates": rates,
    "capacity": capacity,
    "compression": compression,
    "slow_consumer": slow_consumer,
    "nodes": nodes,
}
