"""Serves one app under one package's middleware, and prints which way the bytes take as JSON.

Run by `test_middleware_facts.py` in a process of its own, since some of these packages change Starlette for good.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from support import live, until

from fastapi_rooms import Incoming, RoomsExtension


def nothing(_: FastAPI) -> None:
    """Leave the app alone."""


def asgi_correlation_id(app: FastAPI) -> None:
    from asgi_correlation_id import CorrelationIdMiddleware

    app.add_middleware(CorrelationIdMiddleware)


def starsessions(app: FastAPI) -> None:
    from starsessions import InMemoryStore, SessionMiddleware

    app.add_middleware(SessionMiddleware, store=InMemoryStore())


def starlette_sessions(app: FastAPI) -> None:
    from starlette.middleware.sessions import SessionMiddleware

    app.add_middleware(SessionMiddleware, secret_key="secret")


def opentelemetry(app: FastAPI) -> None:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider

    FastAPIInstrumentor.instrument_app(app, tracer_provider=TracerProvider())


def starlette_context(app: FastAPI) -> None:
    from starlette_context.middleware import RawContextMiddleware

    app.add_middleware(RawContextMiddleware)


def starlette_context_with_plugins(app: FastAPI) -> None:
    from starlette_context.middleware import RawContextMiddleware
    from starlette_context.plugins import RequestIdPlugin

    app.add_middleware(RawContextMiddleware, plugins=[RequestIdPlugin()])


def sentry(_: FastAPI, **options: Any) -> None:
    import sentry_sdk
    from sentry_sdk.integrations.fastapi import FastApiIntegration
    from sentry_sdk.integrations.starlette import StarletteIntegration
    from sentry_sdk.transport import Transport

    class Nowhere(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            """Drop what would go to a server."""

    integrations = [kind(**options) for kind in (StarletteIntegration, FastApiIntegration)]
    sentry_sdk.init("http://key@localhost/1", transport=Nowhere, traces_sample_rate=1.0, integrations=integrations)


def sentry_with_spans(app: FastAPI) -> None:
    sentry(app, middleware_spans=True)


async def look(wrap: Callable[[FastAPI], None]) -> dict[str, Any]:
    """Connect to a wrapped app, be sent a message, and be aborted."""
    rooms = RoomsExtension()

    @rooms.ws_route("/ws", room="r")
    async def chat(message: Incoming[str]) -> None:
        await rooms.manager.broadcast_to_room("r", message)

    app = FastAPI(lifespan=rooms.lifespan)
    app.include_router(rooms.router)
    wrap(app)
    with live(app) as server:
        async with server.client("/ws") as client:
            await client.send("hi")
            heard = await client.receive()
            [connection] = await until(lambda: rooms.manager.get_room_members("r"))
            outbox = connection._outbox
            wire = type(outbox._wire).__name__
            is_ended = await server.call(outbox.abort)
            return {"heard": heard, "wire": wire, "is_ended": is_ended, "closed": await client.closed()}


if __name__ == "__main__":
    json.dump(asyncio.run(look(globals()[sys.argv[1]])), sys.stdout)
