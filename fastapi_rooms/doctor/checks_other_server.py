"""What can be wrong with a server that is not uvicorn. Each check says one thing, or nothing."""

from dataclasses import dataclass

from fastapi_rooms.doctor.findings import Finding, error, note, warning
from fastapi_rooms.doctor.situation import Interface, Server, Situation, Uvicorn
from fastapi_rooms.engine.outbound.wire_choice import WITHOUT_SOCKET

ADVISED_HEARTBEAT = 30


@dataclass(frozen=True, slots=True)
class _Known:
    """What a server does with WebSockets, as far as it is not said on its command line."""

    reaches_sockets: bool
    """Its sockets can be reached from its `send` or its `receive`, so that a client can be aborted."""
    at_a_stop: str
    """What it does with clients. Nothing of ours runs before: it is told by its event loop."""


# Each was tried: gunicorn 27.0, granian 2.8, hypercorn 0.18, h2corn 2.0.
_KNOWN = {
    "gunicorn": _Known(
        reaches_sockets=True,
        at_a_stop="leaves clients open until --graceful-timeout, 30 s by default, and then cuts off all of them "
        "without a close frame (1006)",
    ),
    "granian": _Known(reaches_sockets=False, at_a_stop="cuts off all clients without a close frame (1006)"),
    "hypercorn": _Known(
        reaches_sockets=False,
        at_a_stop="ends all clients at once, with 1012 after its --graceful-timeout or without a close frame (1006)",
    ),
    "h2corn": _Known(reaches_sockets=False, at_a_stop="closes all clients at once with 1001"),
}

_DRAIN = "call `manager.drain()` before the signal comes, as from a preStop hook"


def server_lacks(situation: Situation) -> Finding | None:
    """The server does less than uvicorn does."""
    server, rooms = situation.server, situation.rooms
    if server is None or rooms is None or isinstance(server, Uvicorn):
        return None
    if server.interface is not Interface.ASGI or not server.serves_websockets:
        return None
    is_noticed = rooms.settings.heartbeat_interval is not None or _gives_up_who_is_silent(server)
    known = _KNOWN.get(server.kind)
    if known is None:
        return _unknown(server, is_noticed=is_noticed)
    lost = [] if known.reaches_sockets else [WITHOUT_SOCKET]
    if not is_noticed:
        pings = "the server sends no pings" if server.ping_interval is None else "the server waits for no pong"
        lost.append(f"a client that vanished without a word is not noticed, since {pings}")
    lost.append(f"a stop {known.at_a_stop}, and they all come back at the same time")
    return (note if is_noticed else warning)(
        f"{server.name} works, but does less than uvicorn: {'; '.join(lost)}.",
        f"{'' if is_noticed else f'{_HEARTBEAT}. '}To let clients go a few at a time, {_DRAIN}.",
    )


_HEARTBEAT = (
    f"Set RoomsSettings(heartbeat_interval={ADVISED_HEARTBEAT}): your clients then have to answer "
    '`{"type":"ping"}` with `{"type":"pong"}`'
)


def _unknown(server: Server, *, is_noticed: bool) -> Finding:
    heartbeat = "" if is_noticed else f"{_HEARTBEAT}, unless it pings clients and gives up who does not answer. "
    return note(
        f"What {server.name} does with WebSockets is not known here. Where its sockets cannot be reached, "
        f"{WITHOUT_SOCKET}; an INFO line of the logger `fastapi_rooms` says so when the first client comes. Where it "
        "is told of a signal by its event loop, it closes all clients at once before they can be drained.",
        f"{heartbeat}If a stop logs no `draining`, {_DRAIN}.",
    )


def _gives_up_who_is_silent(server: Server) -> bool:
    return server.ping_interval is not None and server.ping_timeout is not None


def no_asgi(situation: Situation) -> Finding | None:
    """The server cannot serve this app at all."""
    server = situation.server
    if server is None or server.interface is Interface.ASGI:
        return None
    if server.interface is Interface.TRIO:
        return error(
            f"{server.name} runs the app on trio here, and rooms are made for asyncio.",
            "Leave out -k, or take -k uvloop.",
        )
    if server.kind == "granian":
        default = ", as it does unless it is told otherwise" if server.interface is Interface.RSGI else ""
        return error(
            f"granian speaks {server.interface.upper()} with the app here{default}, which FastAPI does not understand: "
            "every request fails.",
            "Start it with --interface asgi.",
        )
    return error(
        f"{server.name} speaks {server.interface.upper()} with the app, which FastAPI does not understand: every "
        "request fails.",
        "Give it workers that speak ASGI: -k uvicorn_worker.UvicornWorker, of the package uvicorn-worker.",
    )


def not_understood(situation: Situation) -> Finding | None:
    """Something that the server is told was not read."""
    server = situation.server
    if server is None or not server.not_understood:
        return None
    return note(
        f"Not understood of what {server.name} is told: {', '.join(server.not_understood)}. Whatever it says is not "
        "taken into account.",
        "If it says how many workers there are, where they listen, or whom they trust, write that as options behind "
        "the app: they count more than files and variables.",
    )


CHECKS = (no_asgi, server_lacks, not_understood)
