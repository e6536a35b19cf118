"""What a load balancer or Kubernetes asks: is the process alive, and is it ready for clients?"""

from datetime import datetime
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from pydantic import BaseModel

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of

if TYPE_CHECKING:
    from fastapi_rooms.web.extension import RoomsExtension


class Live(BaseModel):
    """The answer of `/live`."""

    alive: bool = True


class Ready(BaseModel):
    """The answer of `/ready`: whether it is, and why not."""

    ready: bool
    started: bool
    """The lifespan of the extension has begun; without it every handshake fails."""
    draining: bool
    """The node is being stopped, or its app has ended."""
    connected: bool | None
    """It hears the other nodes and is heard; None: it has none."""
    degraded_since: datetime | None
    """Since when it does not."""
    connections: int


def health_router(rooms: "RoomsExtension | ConnectionManager", *, prefix: str = "") -> APIRouter:
    """Return a router with `GET /live` and `GET /ready`, which answer with 200 or 503.

    Alive is a node whose event loop runs, unless its app has ended and only the server goes on. Not ready is a node
    whose server runs no lifespan (daphne, `--lifespan off`), so that the extension was never started, one that drains,
    and one that does not hear the others: its clients would miss what is said there.
    Point liveness probes at `/live` alone: a restart brings back neither Redis nor those who were thrown out.

    Args:
        rooms: The extension or the manager that is asked.
        prefix: What the two paths begin with, such as `/health`.

    Raises:
        ConfigurationError: `rooms` is something else.
    """
    extension = None if isinstance(rooms, ConnectionManager) else rooms
    manager = rooms if isinstance(rooms, ConnectionManager) else getattr(rooms, "manager", None)
    if not isinstance(manager, ConnectionManager):
        raise ConfigurationError(
            f"health_router takes a RoomsExtension or its manager, not {type(rooms).__name__}: make "
            "`rooms = RoomsExtension()` and write app.include_router(health_router(rooms))"
        )
    router = APIRouter(prefix=prefix, tags=["health"])

    @router.get("/live", responses={503: {"model": Live}})
    async def live(response: Response) -> Live:
        sessions = sessions_of(manager)
        sessions.report_ended()
        answer = Live(alive=not sessions.has_ended)
        if not answer.alive:
            response.status_code = 503
        return answer

    @router.get("/ready", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        backend = sessions_of(manager).backend_status()
        is_connected = None if backend is None else backend.connected
        has_ended = sessions_of(manager).has_ended
        is_draining = manager.is_draining or has_ended
        is_started = extension is None or extension.is_attached or has_ended
        answer = Ready(
            ready=is_started and not is_draining and is_connected is not False,
            started=is_started,
            draining=is_draining,
            connected=is_connected,
            degraded_since=None if backend is None else backend.degraded_since,
            connections=manager.active_connections,
        )
        response.headers["Cache-Control"] = "no-store"
        if not answer.ready:
            response.status_code = 503
        return answer

    return router
