"""What can be wrong with how the server is started, uvicorn above all. Each check says one thing."""

from fastapi_rooms.doctor.checks_proxy import quiet_seconds, start_with
from fastapi_rooms.doctor.findings import Finding, error, note, warning
from fastapi_rooms.doctor.situation import Situation
from fastapi_rooms.doctor.versions import numbers
from fastapi_rooms.engine.outbound.uvicorn_wire import MODULE, NAME

VERIFIED_UVICORN = ("0.54.0", "0.54.0")
"""The oldest and the newest uvicorn that `engine/outbound/uvicorn_wire.py` was verified with; a test
compares it with the one in `tests/wire`."""

KIB = 1024
MUCH = 16
"""How many times what rooms take the server may read before it is worth a word."""
ADVISED_GRACEFUL_TIMEOUT = 30
SWEEP = 1.25
"""A stalled client is aborted after `send_timeout` and up to a quarter of it: that is how often somebody looks."""


_WORKERS_FROM = {
    "uvicorn": "--workers or from $WEB_CONCURRENCY, which some platforms set for you",
    "gunicorn": "--workers, from its file or from $WEB_CONCURRENCY, which some platforms set for you",
    "granian": "--workers or from $GRANIAN_WORKERS",
    "hypercorn": "--workers or from its file",
    "h2corn": "--workers, from $H2CORN_WORKERS or from its file",
}


def uvicorn_missing(situation: Situation) -> Finding | None:
    """Nothing is known of the server."""
    if situation.server is not None:
        return None
    return note(
        "uvicorn is not installed here, so nothing about the server was checked.",
        "Run this in the environment that the server runs in; if that is another server, name it: --server.",
    )


def workers_without_redis(situation: Situation) -> Finding | None:
    """Each worker has rooms of its own."""
    server, rooms = situation.server, situation.rooms
    if server is None or rooms is None or server.workers == 1 or rooms.joins_processes:
        return None
    joined = "no Redis" if rooms.backend is None else f"{rooms.backend}, which joins nodes of one process only"
    return error(
        f"{server.workers} workers and {joined}: each worker has rooms of its own, so that most users do not hear "
        "most others.",
        'Give the extension a Redis, `RoomsExtension("redis://…")`, or start one worker. The number comes from '
        f"{_WORKERS_FROM.get('gunicorn' if server.name.startswith('gunicorn') else server.kind, '--workers')}.",
    )


def lifespan_off(situation: Situation) -> Finding | None:
    """Nothing runs at the start."""
    server = situation.server
    if server is None or server.lifespan != "off":
        return None
    option = {"gunicorn": "--asgi-lifespan off", "granian": "--interface asginl"}.get(server.kind, "--lifespan off")
    return error(
        f"{option}: nothing that the app does at its start is run, so no manager is started.",
        "Give it --interface asgi." if server.kind == "granian" else "Leave the option out.",
    )


def websockets_missing(situation: Situation) -> Finding | None:
    """The server cannot speak WebSocket."""
    server = situation.server
    if server is not None and not server.serves_websockets:
        return error(f"{server.name} was told to refuse all WebSockets: --no-ws.", "Leave the option out.")
    if situation.uvicorn is None or situation.uvicorn.websockets is not None:
        return None
    return error(
        "uvicorn has nothing to serve WebSockets with, and refuses every one of them.",
        "Install `uvicorn[standard]`, or `websockets` beside uvicorn, and leave out --ws.",
    )


def stop_unlimited(situation: Situation) -> Finding | None:
    """A stop may take for ever."""
    uvicorn = situation.uvicorn
    if uvicorn is None or uvicorn.graceful_timeout is not None or uvicorn.killed_after is not None:
        return None
    return warning(
        "--timeout-graceful-shutdown is not set: one handler or one HTTP request that does not end holds up a stop of "
        "the server without limit, until somebody kills it, and with it all that was still to be sent.",
        f"Start uvicorn with --timeout-graceful-shutdown {ADVISED_GRACEFUL_TIMEOUT}, and let the orchestrator wait "
        "longer than that before it kills. `fastapi run` does not take it: use uvicorn, or "
        "`uvicorn.run(…, timeout_graceful_shutdown=…)`.",
    )


def stop_cut_short(situation: Situation) -> Finding | None:
    """A stop ends before rooms are done with it."""
    server, rooms = situation.uvicorn, situation.rooms
    if server is None or rooms is None:
        return None
    settings = rooms.settings
    needs = {
        "drain_timeout": settings.drain_timeout or 0.0,
        "send_timeout and a quarter of it": settings.send_timeout * SWEEP,
        "disconnect_grace": settings.disconnect_grace,
    }
    if server.killed_after is not None:
        return _killed(server.killed_after, needs)
    longest = max(needs, key=lambda label: needs[label])
    if server.graceful_timeout is None or server.graceful_timeout > needs[longest]:
        return None
    return warning(
        f"--timeout-graceful-shutdown {server.graceful_timeout:g} ends a stop before rooms are done with it: "
        f"{longest} is {needs[longest]:g} s. What is unsent then is lost, and clients see 1006.",
        f"Set it to {max(ADVISED_GRACEFUL_TIMEOUT, round(needs[longest]) + 5)}, or lower {longest.split()[0]}.",
    )


def _killed(seconds: float, needs: dict[str, float]) -> Finding | None:
    """Judge a time that counts from the signal on: the drain is a part of it."""
    drain, *others = needs.values()
    longest = drain + max(others)
    if seconds > longest:
        return None
    return warning(
        f"gunicorn kills a worker {seconds:g} s after it was told to stop (--graceful-timeout), and rooms may take "
        f"{longest:g} s: drain_timeout, and then the longer of send_timeout and a quarter, and disconnect_grace. What "
        "is unsent then is lost, and clients see 1006.",
        f"Set it to {round(longest) + 5}, or lower drain_timeout.",
    )


def deflate_memory(situation: Situation) -> Finding | None:
    """Compressors that nobody uses."""
    server, rooms = situation.uvicorn, situation.rooms
    if server is None or rooms is None or not server.per_message_deflate:
        return None
    if rooms.settings.compress_min_bytes is not None:
        return None
    return note(
        "Browsers negotiate permessage-deflate, and each connection that does costs about twice the memory (31 → 65 "
        "KB). Frames of rooms are not compressed unless `compress_min_bytes` is set.",
        f"{start_with(server, '--ws-per-message-deflate false')}; or set compress_min_bytes, if bandwidth is what you "
        "lack.",
    )


def compression_off(situation: Situation) -> Finding | None:
    """A setting has no effect."""
    server, rooms = situation.uvicorn, situation.rooms
    if server is None or rooms is None or server.per_message_deflate or rooms.settings.compress_min_bytes is None:
        return None
    return warning(
        f"compress_min_bytes={rooms.settings.compress_min_bytes} has no effect: --ws-per-message-deflate false lets no "
        "client negotiate compression.",
        "Leave out one of the two.",
    )


def max_size(situation: Situation) -> Finding | None:
    """The server and the rooms disagree about what is too large."""
    server, rooms = situation.uvicorn, situation.rooms
    if server is None or rooms is None:
        return None
    limits = {"max_message_bytes": rooms.settings.max_message_bytes} | {
        f"max_message_bytes of {path}": limit for path, limit in rooms.message_bytes_of_routes
    }
    known = {label: limit for label, limit in limits.items() if limit is not None}
    if not known:
        return None
    label, largest = max(known.items(), key=lambda one: one[1])
    if server.max_size < largest:
        return warning(
            f"uvicorn takes messages up to {_size(server.max_size)} (--ws-max-size), so that {label}, "
            f"{_size(largest)}, is never reached.",
            f"{start_with(server, f'--ws-max-size {largest}')}, or lower {label}.",
        )
    # Who lets clients send what they like leaves it to the server.
    if known == limits and server.max_size >= MUCH * largest:
        return note(
            f"uvicorn reads messages up to {_size(server.max_size)} (--ws-max-size) into memory before anybody can "
            f"refuse what is above {label}, {_size(largest)}.",
            f"{start_with(server, f'--ws-max-size {largest}')}.",
        )
    return None


def inbox_outlives_ping(situation: Situation) -> Finding | None:
    """A busy client is taken for a dead one."""
    server, rooms = situation.uvicorn, situation.rooms
    if server is None or rooms is None or server.ping_interval is None or server.ping_timeout is None:
        return None
    if rooms.settings.inbox_timeout < server.ping_timeout:
        return None
    return warning(
        f"inbox_timeout ({rooms.settings.inbox_timeout:g} s) is not below --ws-ping-timeout ({server.ping_timeout:g} "
        "s). While an inbox is full no pong is read, so a client that sends too fast is closed with 1011, as if it "
        "were dead, and not with 1013, which says why.",
        "Keep inbox_timeout below --ws-ping-timeout.",
    )


def no_pings(situation: Situation) -> Finding | None:
    """Nobody notices clients that vanished."""
    if situation.uvicorn is None or quiet_seconds(situation) is not None:
        return None
    return warning(
        "--ws-ping-interval 0: nobody notices a client that vanished without a word, and proxies close connections "
        "on which nothing is said.",
        "Leave the option out, or set heartbeat_interval.",
    )


def wire_unknown(situation: Situation) -> Finding | None:
    """Frames take the long way."""
    server, rooms = situation.uvicorn, situation.rooms
    if server is None or server.websockets is None or (rooms is not None and rooms.settings.wire == "asgi"):
        return None
    if server.websockets != f"{MODULE}.{NAME}":
        return note(
            f"Frames go through ASGI with {server.websockets}: it works, with more CPU per message and member.",
            "Leave out --ws, and install `websockets`.",
        )
    oldest, newest = map(numbers, VERIFIED_UVICORN)
    if oldest <= numbers(server.version) <= newest:
        return None
    return note(
        f"uvicorn {server.version} was not verified with this version of fastapi-rooms, which writes below its "
        f"WebSocket protocol; verified: {' to '.join(dict.fromkeys(VERIFIED_UVICORN))}. What is not as it was there "
        "falls back to ASGI.",
        'Pin a verified version, update fastapi-rooms, or set RoomsSettings(wire="asgi") to be on the safe side.',
    )


def too_old(situation: Situation) -> Finding | None:
    """Something is older than what was tested."""
    old = [
        f"{package} {version} (needs {situation.required[package]})"
        for package, version in situation.versions.items()
        if package in situation.required and numbers(version) < numbers(situation.required[package])
    ]
    if not old:
        return None
    return error(f"Too old for fastapi-rooms: {', '.join(old)}.", "Install newer versions.")


def _size(count: int) -> str:
    if count < KIB:
        return f"{count} bytes"
    return f"{count / KIB:.4g} KiB" if count < KIB**2 else f"{count / KIB**2:.4g} MiB"


CHECKS = (
    uvicorn_missing,
    workers_without_redis,
    lifespan_off,
    websockets_missing,
    stop_unlimited,
    stop_cut_short,
    deflate_memory,
    compression_off,
    max_size,
    inbox_outlives_ping,
    no_pings,
    wire_unknown,
    too_old,
)
