"""Sends a made-up handshake through an app, and looks at what of the server arrives below: its own `send`, or another.

While it does, the app has one route that takes everything, so that none of its handlers and dependencies can be called.
What stands between the server and the routes is called, as by a real handshake: what it passes on can be seen in no
other way, since it may be a middleware, a wrapper around the app, or an instrumentation that has patched either. If
that sends WebSockets to another app, they go where that leads them.

That is somebody else's code, which may wait for what is not there, even without letting anything else run. So it runs
in a thread and a loop of its own, and is left alone if it does not come to an end.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match

from fastapi_rooms.engine.outbound.wire_choice import code_name, peel, server_of
from fastapi_rooms.tasks import end_tasks

PATIENCE_SECONDS = 1.0
"""How long a handshake may take to come through."""
GIVE_UP_SECONDS = 3.0
"""After how long it is left alone if it has not come to an end; for all middleware that is asked alone, together."""

_THREAD = "fastapi_rooms doctor's handshake"

_TRACE, _SPAN = b"d0c" * 10 + b"d0", b"d0c" * 5 + b"d"
_HEADERS = [
    (b"host", b"localhost"),
    (b"user-agent", b"fastapi_rooms doctor"),
    # Nobody is to record this: it is a part of traces that are not sampled, as W3C Trace Context has it, and Sentry.
    (b"traceparent", b"00-%b-%b-00" % (_TRACE, _SPAN)),
    (b"sentry-trace", b"%b-%b-0" % (_TRACE, _SPAN)),
]

Passed = tuple[Any, Any]
"""The `receive` and the `send` that came through."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a WebSocket route is given."""

    send: str | None
    """Who wrote the `send` that it is given; None: the server, or nobody who matters."""
    leads_back: bool
    """The server's socket can be found behind its `receive`."""


def arrival_of(outermost: Any, app: Starlette, path: str) -> Arrival | None:
    """Send a handshake through a whole app; None if it was refused, or not passed on in time.

    The app is as it was afterwards, so that middleware can still be added. Only if something does not come to an end,
    it stays without its routes, to which that may still lead.

    Args:
        outermost: What the server calls: the app, or what is wrapped around it.
        app: The app.
        path: Where the handshake goes, which decides what some middleware does.
    """
    server, passed = _Server(), list[Passed]()
    routes, stack = app.router.routes, app.middleware_stack
    app.router.routes = [_Probe(passed)]
    is_over = True
    try:
        is_over = _pass_through(lambda: outermost, server, scope_of(path))
    finally:
        if is_over:
            app.router.routes, app.middleware_stack = routes, stack
    if not passed:
        return None
    receive, send = passed[0]
    author = None if server.sends(send) else code_name(peel(send)).partition(".<locals>")[0]
    return Arrival(author, server_of(receive) is server)


def wrappers_of_send(app: Starlette, path: str) -> Iterator[Middleware]:
    """Ask each middleware of an app alone; who is not reached within `GIVE_UP_SECONDS` is not asked."""
    end = monotonic() + GIVE_UP_SECONDS
    for middleware in app.user_middleware:
        seconds = end - monotonic()
        if seconds > 0 and wraps_send(middleware, app, path, seconds):
            yield middleware


def wraps_send(middleware: Middleware, app: Starlette, path: str = "/", seconds: float | None = None) -> bool:
    """Return whether a middleware alone stands between us and the server's `send`; False if it cannot be seen in time.

    Args:
        middleware: It, as it was added.
        app: The app that it was added to.
        path: Where the handshake goes.
        seconds: After how long it is left alone; None: `GIVE_UP_SECONDS`.
    """
    server, passed = _Server(), list[Passed]()

    async def below(_scope: Any, receive: Any, send: Any) -> None:
        passed.append((receive, send))

    _pass_through(
        lambda: middleware.cls(below, *middleware.args, **middleware.kwargs),
        server,
        scope_of(path) | {"app": app},
        seconds,
    )
    return any(not server.sends(send) for _, send in passed)


def goes_on() -> bool:
    """Return whether a handshake that was left alone has still not come to an end."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def scope_of(path: str) -> dict[str, Any]:
    """Return the scope of a handshake."""
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(_HEADERS),
        "subprotocols": [],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
        "extensions": {},
    }


class _Server:
    """A client that wants to come in, and goes."""

    def __init__(self) -> None:
        self._has_gone = False

    async def receive(self) -> dict[str, Any]:
        if self._has_gone:
            return {"type": "websocket.disconnect", "code": 1006}
        self._has_gone = True
        return {"type": "websocket.connect"}

    async def send(self, _event: Any) -> None:
        """Let a refusal vanish."""

    def sends(self, send: Any) -> bool:
        return getattr(peel(send), "__self__", None) is self


class _Probe(BaseRoute):
    """Takes whatever comes, and does nothing but remember it."""

    def __init__(self, passed: list[Passed]) -> None:
        self._passed = passed

    def matches(self, scope: Any) -> tuple[Match, Any]:  # noqa: ARG002 - Starlette passes it
        return Match.FULL, {}

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        self._passed.append((receive, send))


def _pass_through(
    make: Callable[[], Any], server: _Server, scope: dict[str, Any], seconds: float | None = None
) -> bool:
    """Call what is made with a handshake; return whether that, and all that it has begun, has come to an end."""
    thread = threading.Thread(target=lambda: asyncio.run(_call(make, server, scope)), name=_THREAD, daemon=True)
    thread.start()
    thread.join(GIVE_UP_SECONDS if seconds is None else seconds)
    return not thread.is_alive()


async def _call(make: Callable[[], Any], server: _Server, scope: dict[str, Any]) -> None:
    async def call() -> None:
        # It was not made for this: what it has passed on before it failed is all that counts.
        with suppress(Exception):
            await make()(scope, server.receive, server.send)

    await asyncio.wait([asyncio.create_task(call())], timeout=PATIENCE_SECONDS)
    await end_tasks(asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())})
