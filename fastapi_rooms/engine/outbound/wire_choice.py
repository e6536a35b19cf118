"""Which wire a connection gets: found by looking at what is really there."""

import logging
from types import CellType
from typing import Any, Literal, Protocol, TypeGuard

from starlette.websockets import WebSocket

from fastapi_rooms.engine.outbound.closing_handshake import limit_reading
from fastapi_rooms.engine.outbound.transport import Transport, is_transport
from fastapi_rooms.engine.outbound.unsent import bound_unsent
from fastapi_rooms.engine.outbound.uvicorn_wire import UvicornWire, is_known_protocol
from fastapi_rooms.engine.outbound.wire import AsgiWire, Wire

logger = logging.getLogger("fastapi_rooms")


class HasTransport(Protocol):
    """What we use of a server's object of which nothing else is known."""

    transport: Transport


# Wrappers around a server's send that pass WebSocket messages through unchanged, whatever is in between otherwise may
# change them on purpose, and is not peeled. tests/facts/test_middleware_facts.py looks at the packages themselves.
_SENDS = frozenset(
    {
        # FastAPI's own, one per app and mount.
        ("starlette._exception_handler", "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"),
        # These look at http.response.start alone: for a cookie, a header, or the status of a span.
        ("starlette.middleware.sessions", "SessionMiddleware.__call__.<locals>.send_wrapper"),
        ("starsessions.middleware", "SessionMiddleware.__call__.<locals>.send_wrapper"),
        ("asgi_correlation_id.middleware", "CorrelationIdMiddleware.__call__.<locals>.handle_outgoing_request"),
        ("sentry_sdk.integrations.asgi", "SentryAsgiMiddleware._run_app.<locals>._sentry_wrapped_send"),
    }
)

# Wrappers around a server's receive that do not say what they wrap. Nothing is received past them: they are looked
# through to find the socket.
_RECEIVES = frozenset(
    {
        (
            "sentry_sdk.integrations.starlette",
            "_enable_span_for_middleware.<locals>._create_span_call.<locals>._sentry_receive",
        ),
    }
)

WITHOUT_SOCKET = (
    "a client that takes nothing cannot be aborted but is closed with 1013 when it goes on, and one that was closed "
    "may go on sending for as long as the server lets it"
)
"""What is lost where the server's socket cannot be reached. The doctor says the same before the app runs."""

_TEST_CLIENT = "testclient"  # the address of Starlette's, which is no server: what is missing is so on purpose
_reported: set[str] = set()  # what stands between us and uvicorn, and was logged: one line per process is enough


def choose_wire(
    websocket: WebSocket,
    policy: Literal["auto", "asgi"],
    compress_min_bytes: int | None = None,
    *,
    newest_counts: bool = False,
) -> Wire:
    """Return the best wire that is safe for this socket. Unknown things fall back to ASGI, never to an error.

    Args:
        websocket: The socket.
        policy: "asgi" has nothing but ASGI be used.
        compress_min_bytes: From which size on messages are compressed, where that was negotiated; None: from none.
        newest_counts: Have little wait below the wire, where the transport is within reach.
    """
    send = peel(getattr(websocket, "_send", None))
    protocol = getattr(send, "__self__", None)
    if policy == "auto" and is_known_protocol(protocol):
        if newest_counts:
            bound_unsent(protocol.transport)
        return UvicornWire(websocket, protocol, compress_min_bytes)
    server = _server_behind(websocket, protocol)
    if policy == "auto":
        _report_fallback(websocket, send, server)
    transport = server.transport if has_transport(server) else None
    if newest_counts:
        bound_unsent(transport)
    return AsgiWire(websocket, transport)


def limit_reading_of(websocket: WebSocket) -> None:
    """Read no more of a WebSocket that the app has closed by itself than its closing handshake needs: see there."""
    server = _server_behind(websocket, getattr(peel(getattr(websocket, "_send", None)), "__self__", None))
    if has_transport(server):
        limit_reading(server.transport)


def _server_behind(websocket: WebSocket, sender: object) -> Any:
    """Return the server's object for a socket: whose `send` it is if it has the transport, or else whose `receive`."""
    return sender if has_transport(sender) else server_of(getattr(websocket, "_receive", None))


def peel(send: Any) -> Any:
    """Return the ASGI `send` below wrappers that pass all of a WebSocket through: the server's, or a middleware's."""
    return _below(send, _SENDS, "send")


def server_of(receive: Any) -> Any:
    """Return the server's object to which a socket's `receive` leads; None if it leads nowhere.

    Fewer wrap `receive` than `send`, and those who do mostly leave a mark, as `functools.wraps` does.
    """
    while True:
        receive = _below(receive, _RECEIVES, "receive")
        below = getattr(receive, "__wrapped__", None)
        if below is None:
            return getattr(receive, "__self__", None)
        receive = below


def has_transport(server: object) -> TypeGuard[HasTransport]:
    """Return whether an object has the transport of a socket, as asyncio's and uvicorn's protocols do."""
    return is_transport(getattr(server, "transport", None))


def _below(function: Any, known: frozenset[tuple[str, str]], variable: str) -> Any:
    """Return what is below known wrappers; they keep it in a variable from around them."""
    while _name(function) in known and not hasattr(function, "__wrapped__"):  # else it goes by the name of another
        below = _closure(function).get(variable)
        if below is None:
            break  # its inside has changed: it is a wrapper like any other
        function = below.cell_contents
    return function


def _name(function: Any) -> tuple[Any, Any]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)


def code_name(function: Any) -> str:
    """Return where a function is written, whatever name it took over from what it wraps."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(type(function))
    return f"{function.__globals__['__name__']}.{code.co_qualname}"


def _closure(function: Any) -> dict[str, CellType]:
    """Return the variables that a function has from around it; none of what is no function of Python's own."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return dict(zip(names, getattr(function, "__closure__", None) or (), strict=False))


def _report_fallback(websocket: WebSocket, send: Any, server: object) -> None:
    """Say once what keeps us from writing ready-made frames to uvicorn, or from the socket of another server."""
    kind = type(server)
    if has_transport(server):
        if not kind.__module__.startswith("uvicorn."):
            return
        name = code_name(send) if is_known_protocol(server) else f"{kind.__module__}.{kind.__qualname__}"
        what = "is not known here: frames go through ASGI, which costs more CPU per message"
    else:
        if (websocket.scope.get("client") or ("",))[0] == _TEST_CLIENT:
            return
        name = code_name(send)
        what = (
            f"leads to no socket: frames go through ASGI, {WITHOUT_SOCKET}. Unless the server pings its clients and "
            "gives up who does not answer, set RoomsSettings(heartbeat_interval=...). Its stop may close everybody at "
            "once: await manager.drain() before"
        )
    if name not in _reported:
        _reported.add(name)
        logger.info("%s %s", name, what)
