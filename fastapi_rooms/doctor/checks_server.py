"""What can be wrong with how the server is started, and with what stands before it. Each check says one thing."""

from fastapi_rooms.doctor.findings import Finding, error, note, warning
from fastapi_rooms.doctor.situation import Situation
from fastapi_rooms.doctor.versions import numbers
from fastapi_rooms.engine.outbound.uvicorn_wire import MODULE, NAME

VERIFIED_UVICORN = ("0.54.0", "0.54.0")
"""The oldest and the newest uvicorn that `engine/outbound/uvicorn_wire.py` was verified with; a test
compares it with the one in `tests/wire`."""

USUAL_PROXY_TIMEOUT = 60.0
"""`proxy_read_timeout` of nginx and the idle time-out of AWS' load balancers, when nobody has changed them."""

KIB = 1024
MUCH = 16
"""How many times what rooms take the server may read before it is worth a word."""
ADVISED_GRACEFUL_TIMEOUT = 30
SWEEP = 1.25
"""A stalled client is aborted after `send_timeout` and up to a quarter of it: that is how often somebody looks."""


def uvicorn_missing(situation: Situation) -> Finding | None:
    """Nothing is known of the server."""
    if situation.server is not None:
        return None
    return note(
        "uvicorn is not installed here, so nothing about the server was checked.",
        "Run this in the environment that the server runs in. Other servers work, too, through plain ASGI.",
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
        "--workers or from $WEB_CONCURRENCY, which some platforms set for you.",
    )


def lifespan_off(situation: Situation) -> Finding | None:
    """Nothing runs at the start."""
    if situation.server is None or situation.server.lifespan != "off":
        return None
    return error(
        "--lifespan off: nothing that the app does at its start is run, so no manager is started.",
        "Leave the option out.",
    )


def websockets_missing(situation: Situation) -> Finding | None:
    """The server cannot speak WebSocket."""
    if situation.server is None or situation.server.websockets is not None:
        return None
    return error(
        "uvicorn has nothing to serve WebSockets with, and refuses every one of them.",
        "Install `uvicorn[standard]`, or `websockets` beside uvicorn, and leave out --ws.",
    )


def stop_unlimited(situation: Situation) -> Finding | None:
    """A stop may take for ever."""
    if situation.server is None or situation.server.graceful_timeout is not None:
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
    server, rooms = situation.server, situation.rooms
    if server is None or server.graceful_timeout is None or rooms is None:
        return None
    settings = rooms.settings
    needs = {
        "drain_timeout": settings.drain_timeout or 0.0,
        "send_timeout and a quarter of it": settings.send_timeout * SWEEP,
        "disconnect_grace": settings.disconnect_grace,
    }
    longest = max(needs, key=lambda label: needs[label])
    if server.graceful_timeout > needs[longest]:
        return None
    return warning(
        f"--timeout-graceful-shutdown {server.graceful_timeout:g} ends a stop before rooms are done with it: "
        f"{longest} is {needs[longest]:g} s. What is unsent then is lost, and clients see 1006.",
        f"Set it to {max(ADVISED_GRACEFUL_TIMEOUT, round(needs[longest]) + 5)}, or lower {longest.split()[0]}.",
    )


def deflate_memory(situation: Situation) -> Finding | None:
    """Compressors that nobody uses."""
    server, rooms = situation.server, situation.rooms
    if server is None or rooms is None or not server.per_message_deflate:
        return None
    if rooms.settings.compress_min_bytes is not None:
        return None
    return note(
        "Browsers negotiate permessage-deflate, and each connection that does costs about twice the memory (31 → 65 "
        "KB). Frames of rooms are not compressed unless `compress_min_bytes` is set.",
        "Start uvicorn with --ws-per-message-deflate false; or set compress_min_bytes, if bandwidth is what you lack.",
    )


def compression_off(situation: Situation) -> Finding | None:
    """A setting has no effect."""
    server, rooms = situation.server, situation.rooms
    if server is None or rooms is None or server.per_message_deflate or rooms.settings.compress_min_bytes is None:
        return None
    return warning(
        f"compress_min_bytes={rooms.settings.compress_min_bytes} has no effect: --ws-per-message-deflate false lets no "
        "client negotiate compression.",
        "Leave out one of the two.",
    )


def max_size(situation: Situation) -> Finding | None:
    """The server and the rooms disagree about what is too large."""
    server, rooms = situation.server, situation.rooms
    if server is None or rooms is None or rooms.settings.max_message_bytes is None:
        return None
    largest = rooms.settings.max_message_bytes
    if server.max_size < largest:
        return warning(
            f"uvicorn takes messages up to {_size(server.max_size)} (--ws-max-size), so that max_message_bytes, "
            f"{_size(largest)}, is never reached.",
            f"Set --ws-max-size {largest}, or lower max_message_bytes.",
        )
    if server.max_size >= MUCH * largest:
        return note(
            f"uvicorn reads messages up to {_size(server.max_size)} (--ws-max-size) into memory before anybody can "
            f"refuse what is above max_message_bytes, {_size(largest)}.",
            f"Set --ws-max-size {largest}.",
        )
    return None


def inbox_outlives_ping(situation: Situation) -> Finding | None:
    """A busy client is taken for a dead one."""
    server, rooms = situation.server, situation.rooms
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
    if situation.server is None or _quiet_seconds(situation) is not None:
        return None
    return warning(
        "--ws-ping-interval 0: nobody notices a client that vanished without a word, and proxies close connections "
        "on which nothing is said.",
        "Leave the option out, or set heartbeat_interval.",
    )


def proxy_closes_idle(situation: Situation) -> Finding | None:
    """A proxy closes what is only quiet."""
    quiet = _quiet_seconds(situation)
    if quiet is None:
        return None
    if situation.proxy_timeout is None and quiet >= USUAL_PROXY_TIMEOUT:
        return warning(
            f"A quiet connection is pinged every {quiet:g} s only, and most proxies close after "
            f"{USUAL_PROXY_TIMEOUT:g} s of silence unless they were told otherwise (nginx, AWS load balancers).",
            "Lower --ws-ping-interval, or say what your proxy does: --proxy-timeout SECONDS.",
        )
    if situation.proxy_timeout is not None and quiet >= situation.proxy_timeout:
        return error(
            f"The proxy closes connections after {situation.proxy_timeout:g} s of silence, and a quiet one is pinged "
            f"every {quiet:g} s only: clients lose their connection although nothing is wrong with it.",
            f"Raise the proxy's time-out (nginx: proxy_read_timeout), or start uvicorn with --ws-ping-interval "
            f"{max(1, int(situation.proxy_timeout / 3))}.",
        )
    return None


def proxy_not_trusted(situation: Situation) -> Finding | None:
    """Behind a proxy, all clients look alike."""
    server = situation.server
    if server is None or situation.proxy_timeout is None:
        return None
    if server.proxy_headers and not set(server.trusted_proxies) <= {"127.0.0.1", "::1"}:
        return None
    consequence = (
        "The address of every client is then the proxy's, so that limits per address count all of them as one; and "
        "behind TLS the scheme is `http`, so that pages of your own host count as foreign and are refused with 403."
    )
    if not server.proxy_headers:
        return warning(
            f"--no-proxy-headers: what the proxy says about clients is not read. {consequence}",
            "Leave the option out, and name the proxy with --forwarded-allow-ips.",
        )
    return note(
        f"Only a proxy on this machine is believed what it says about clients. {consequence}",
        "If the proxy runs elsewhere, name its address or network: --forwarded-allow-ips 10.0.0.0/8.",
    )


def forwarded_from_anyone(situation: Situation) -> Finding | None:
    """Clients choose their address."""
    server = situation.server
    if server is None or not server.proxy_headers or "*" not in server.trusted_proxies:
        return None
    return warning(
        "--forwarded-allow-ips '*': whoever reaches this server directly chooses the address and scheme that it sees, "
        "and so gets around limits per address.",
        "Name the proxy's address or network, or make sure that nobody but the proxy can reach the server.",
    )


def wire_unknown(situation: Situation) -> Finding | None:
    """Frames take the long way."""
    server, rooms = situation.server, situation.rooms
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


def _quiet_seconds(situation: Situation) -> float | None:
    """Return after how many seconds at most something is said on a connection; None: nobody says anything."""
    server, rooms = situation.server, situation.rooms
    pings = (
        None if server is None else server.ping_interval,
        None if rooms is None else rooms.settings.heartbeat_interval,
    )
    return min((seconds for seconds in pings if seconds is not None), default=None)


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
    proxy_closes_idle,
    proxy_not_trusted,
    forwarded_from_anyone,
    wire_unknown,
    too_old,
)
