"""Which wire a connection gets: found by looking at what is really there."""

import logging
from types import CellType
from typing import Any, Literal

from starlette.websockets import WebSocket

from fastapi_rooms.engine.outbound.uvicorn_wire import UvicornWire, is_known_protocol
from fastapi_rooms.engine.outbound.wire import AsgiWire, Wire, is_transport

logger = logging.getLogger("fastapi_rooms")

# Wrappers around a server's send that pass WebSocket messages through unchanged, whatever is in between otherwise may
# change them on purpose, and is not peeled.
_PEELED = frozenset(
    {
        # FastAPI's own, one per app and mount.
        ("starlette._exception_handler", "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"),
        # Which adds a cookie to HTTP responses.
        ("starlette.middleware.sessions", "SessionMiddleware.__call__.<locals>.send_wrapper"),
    }
)

_reported: set[str] = set()  # servers whose fallback was logged: one line per process is enough


def choose_wire(websocket: WebSocket, policy: Literal["auto", "asgi"], compress_min_bytes: int | None = None) -> Wire:
    """Return the best wire that is safe for this socket. Unknown things fall back to ASGI, never to an error."""
    protocol = getattr(peel(getattr(websocket, "_send", None)), "__self__", None)
    if policy == "auto" and is_known_protocol(protocol):
        return UvicornWire(websocket, protocol, compress_min_bytes)
    transport = getattr(protocol, "transport", None)
    if policy == "auto":
        _report_fallback(type(protocol))
    return AsgiWire(websocket, transport if is_transport(transport) else None)


def peel(send: Any) -> Any:
    """Return the ASGI `send` below wrappers that pass all of a WebSocket through: the server's, or a middleware's."""
    while (getattr(send, "__module__", None), getattr(send, "__qualname__", None)) in _PEELED:
        below = _closure(send).get("send")
        if below is None:
            break  # its inside has changed: it is a wrapper like any other
        send = below.cell_contents
    return send


def _closure(function: Any) -> dict[str, CellType]:
    """Return the variables that a function has from around it; none of what is no function of Python's own."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return dict(zip(names, getattr(function, "__closure__", None) or (), strict=False))


def _report_fallback(kind: type) -> None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name.startswith("uvicorn.") and name not in _reported:
        _reported.add(name)
        logger.info("%s is not known here: frames go through ASGI, which costs more CPU per message", name)
