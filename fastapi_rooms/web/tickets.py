"""One-time tickets: what lets a browser in whose page cannot send a header with the handshake.

The page asks for a ticket by an HTTP request, in which it proves who it is in whatever way the app has, and opens the
WebSocket with the ticket in the query string. That URL ends up in logs; the ticket in it is spent by then.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from secrets import token_urlsafe

from fastapi import HTTPException
from starlette.requests import HTTPConnection

from fastapi_rooms.backends.contract import SupportsStore
from fastapi_rooms.backends.memory import LocalStore
from fastapi_rooms.domain.errors import BackendUnavailable, ConfigurationError
from fastapi_rooms.domain.http_origin import sole
from fastapi_rooms.domain.names import check_name
from fastapi_rooms.domain.revocation import UnreadableError, decode_revocations, revocation_keys
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.settings import are_seconds
from fastapi_rooms.domain.tickets import TICKET_BYTES, Claim, claim, claim_in, key_of
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.endings.timekeeper import Expiry, as_datetime
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.credentials import refuse_credentials
from fastapi_rooms.web.dependencies import get_manager
from fastapi_rooms.web.identity import Identity

logger = logging.getLogger("fastapi_rooms")

PARAMETER = "ticket"
MAX_LOCAL_TICKETS = 100_000
"""How many tickets one process keeps, about 50 MB. Beyond that the oldest is void."""
MAX_SECONDS = 3600.0


class Tickets:
    """Issues tickets, each of which lets one user in once.

    ```python
    tickets = Tickets()

    @app.post("/ticket")
    async def ticket(request: Request, user_id: Annotated[str, Depends(logged_in)]) -> str:
        return await tickets.issue(request, user_id)

    @rooms.ws_route("/ws", user_id=tickets.redeem)      # new WebSocket("/ws?ticket=" + ticket)
    async def chat(message: Incoming[Say]) -> None: ...
    ```

    A ticket is good for the user, for the HTTP origin from which it was asked for, and for `seconds`. The first who
    shows it has used it up, also if that was at the wrong place. Of two who show it at once, one is let in.

    Kept where all nodes find them if the manager has a backend with a store, as it has with Redis, and there only by
    hash; otherwise in this process.

    `close_user` also ends the tickets that its user was issued before. That is kept where the tickets are, for
    `revocation_seconds`, and nodes compare times that each took from its own clock. Where many nodes have no store,
    only a call on the node that issued a ticket ends it for certain. With `revocation_seconds=None` a ticket lets its
    user in as if nothing had happened.

    Args:
        seconds: How long a ticket is good for.
        purpose: What it is good for: objects that differ in this do not take each other's tickets.
        manager: Whose backend keeps the tickets; that of the app by default.
        clock: Tells the time, in seconds, where tickets are kept in this process. For tests.

    Raises:
        ConfigurationError: `seconds` is not more than 0, or more than an hour.
    """

    def __init__(
        self,
        *,
        seconds: float = 30.0,
        purpose: str = "ws",
        manager: ConnectionManager | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not are_seconds(seconds) or seconds > MAX_SECONDS:
            raise ConfigurationError(
                f"a ticket cannot be good for {seconds!r} seconds: it ends up in logs, so leave it at half a minute, "
                "and at most an hour"
            )
        self._seconds = seconds
        self._purpose = purpose
        self._manager = manager
        self._here = LocalStore(MAX_LOCAL_TICKETS, clock)
        self._is_warned = False  # that a manager of many nodes keeps them in this process
        self._failures_said = Seldom()
        self._unreadable_said = Seldom()

    def __repr__(self) -> str:
        return f"<Tickets seconds={self._seconds:g} purpose={self._purpose!r}>"

    async def issue(self, request: HTTPConnection, user_id: str, expires_at: Expiry | None = None) -> str:
        """Return a new ticket for a user, 43 letters that need no quoting in a URL.

        Call it only where you know that it is this user who asks. There is no limit to how many a user may have.

        Args:
            request: The request in which it is asked for; its `Origin` is where the ticket will be good. Without one,
                that is the app's own.
            user_id: Whom it lets in.
            expires_at: When the login by which it is asked for expires: the ticket is good for nothing then, and a
                connection that was opened with it is closed.

        Raises:
            ConfigurationError: `expires_at` has no zone, or is no time.
            HTTPException: 403, the `Origin` is `null` or none at all; 503, the tickets cannot be kept at the moment.
            InvalidName: A user cannot be called that.
        """
        headers = request.headers
        is_secure = request.scope.get("scheme") in ("https", "wss")
        user_id = check_name("user_id", user_id)
        kept = claim(
            user_id,
            sole(headers.getlist("origin")),
            sole(headers.getlist("host")),
            is_secure=is_secure,
            issued_at=datetime.now(UTC),
            expires_at=as_datetime(expires_at),
        )
        if kept is None:
            raise HTTPException(403, "this page cannot be given a ticket: it has no HTTP origin")
        ticket = token_urlsafe(TICKET_BYTES)
        key = key_of(self._purpose, ticket)
        assert key is not None, "what we made is a ticket"
        store = self._store(await self._manager_of(request))
        try:
            await store.put(key, kept.model_dump_json().encode(), self._seconds)
        except BackendUnavailable as error:
            raise self._unavailable(error) from error
        return ticket

    async def redeem(self, connection: HTTPConnection) -> Identity:
        """Return whom the ticket in the query string lets in, and until when. A dependency, made for `user_id=`.

        Raises:
            HTTPException: 401 without a ticket that is good here and now, and whatever is wrong with it, the answer is
                the same; 503, the tickets are out of reach at the moment, and this one may be lost.
        """
        kept = await self._take(connection)
        if kept is None:
            refuse_credentials(connection, "Ticket", "a fresh ticket is needed", self._manager)
        return Identity(kept.user_id, kept.expires_at)

    async def _take(self, connection: HTTPConnection) -> Claim | None:
        """Use up the ticket in the query string; return what was kept of it, or None if it is not good here and now."""
        key = key_of(self._purpose, connection.query_params.get(PARAMETER, ""))
        if key is None:
            return None
        manager = await self._manager_of(connection)
        try:
            data = await self._store(manager).take(key)
            kept = None if data is None else claim_in(data)
            origin = sole(connection.headers.getlist("origin"))
            if kept is None or not kept.fits(origin) or kept.has_expired(datetime.now(UTC)):
                return None
            return None if await self._is_revoked(kept, manager) else kept
        except BackendUnavailable as error:
            raise self._unavailable(error) from error

    async def _manager_of(self, connection: HTTPConnection) -> ConnectionManager:
        return await get_manager(connection) if self._manager is None else self._manager

    def _store(self, manager: ConnectionManager) -> SupportsStore:
        if not isinstance(manager, DistributedWebSocketManager):
            return self._here
        if manager.store is not None:
            return manager.store
        if not self._is_warned:
            self._is_warned = True
            logger.warning("tickets are good only on the node that issued them: %r has no store", manager)
        return self._here

    def _unavailable(self, error: BackendUnavailable) -> HTTPException:
        if self._failures_said.is_due(time.monotonic()):
            logger.warning("tickets are out of reach, which is answered with 503: %s (said once a minute)", error)
        return HTTPException(503, "tickets are out of reach at the moment", {"Retry-After": "1"})

    async def _is_revoked(self, kept: Claim, manager: ConnectionManager) -> bool:
        """Return whether the user was closed since the ticket was issued, as far as this node and the store know."""
        if sessions_of(manager).is_revoked(kept.user_id, kept.issued_at):
            return True
        store = manager.store if isinstance(manager, DistributedWebSocketManager) else None
        if store is None or manager.settings.revocation_seconds is None:
            return False
        values = await store.peek(revocation_keys(kept.user_id))
        try:
            return any(map(kept.is_revoked, decode_revocations(values)))
        except UnreadableError as error:
            if self._unreadable_said.is_due(time.monotonic()):
                logger.warning(
                    "a ticket was refused, since what is kept about its user's close cannot be read: %s (said once a "
                    "minute)",
                    error,
                )
            return True
