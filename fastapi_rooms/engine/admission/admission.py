"""Who is let in, and how much anyone may take: decided before anything is registered."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal, NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.errors import ConfigurationError, InvalidName, JoinRefused, RefusedError, TooManyRooms
from fastapi_rooms.domain.functions import check_takes
from fastapi_rooms.domain.http_origin import check_allowed, is_allowed, likely_cause
from fastapi_rooms.domain.names import check_name
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.admission.handshake_refused import REFUSE_BY_CLOSE_KEY, refuse
from fastapi_rooms.engine.admission.places import Places
from fastapi_rooms.engine.admission.questions import check_answers
from fastapi_rooms.engine.hooks import Announcer, Hooks, Refused

logger = logging.getLogger("fastapi_rooms")

AuthorizeJoin = Callable[[Connection, str], Awaitable[object] | object]
"""Asked whether a connection may join a room; `async`, or a function that runs in a thread. What is false, and any
exception, means no."""

Limiter = Callable[[Connection, Literal["connect", "message"]], Awaitable[bool] | bool]
"""Asked whether a connection may do something, for limits that count on all nodes; `async`, or a plain function that
must not block."""

RETRY_SECONDS = 5.0
"""When to come again where nobody knows when there will be room."""


def in_a_loop() -> bool:
    """Return whether an event loop is running here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Admission:
    """Says yes by returning, and no by raising; whatever is refused is counted and told to the app.

    Args:
        settings: The limits.
        counters: Where refusals are counted.
        places: How many may be here, and who is.
        hooks: What the app wants to be told.
        announcer: Who tells it.
        authorize_join: The app's word on joins, where a connection has none of its own.
        limiter: The app's word on everything else.
        drains_for: Returns for how long the node still drains, in seconds; None: it does not.
    """

    def __init__(
        self,
        settings: RoomsSettings,
        counters: Counters,
        places: Places,
        hooks: Hooks,
        announcer: Announcer,
        authorize_join: AuthorizeJoin | None,
        limiter: Limiter | None,
        drains_for: Callable[[], float | None],
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._places = places
        self._registry = places.registry
        self._hooks = hooks
        self._announcer = announcer
        if authorize_join is not None:
            check_answers(authorize_join, "authorize_join")
            check_takes(
                authorize_join,
                (None, ""),
                "authorize_join is called with a connection and a room",
                ". Only that of a route, `ws_route(authorize_join=...)`, may take dependencies beside them",
            )
        if limiter is not None:
            check_answers(limiter, "limiter")
            check_takes(limiter, (None, ""), 'limiter is called with a connection and "connect" or "message"')
        self._authorize_join = authorize_join
        self._limiter = limiter
        self._drains_for = drains_for
        self._allowed_origins = check_allowed(settings.allowed_origins)
        self._origins_said = Seldom()
        self._limiter_said = Seldom()
        self._join_said = Seldom()
        self._names_said = Seldom()
        self._none_said = False
        self._limiter_none_said = False
        # About whom the app is asked before they connect. The event, if somebody waits for it, is set afterwards.
        self._asking: dict[Connection, asyncio.Event | None] = {}

    def check_handshake(self, websocket: WebSocket) -> None:
        """Refuse foreign pages, and everybody while the node is being stopped.

        Raises:
            HandshakeRefused: It is refused.
            WebSocketException: It is refused, but the app has accepted it.
            ConfigurationError: It was called in a thread, as a dependency without `async` is.
        """
        if not in_a_loop():
            raise ConfigurationError("check_handshake was called in a thread: write `async def` for the dependency")
        headers = websocket.headers
        origins = headers.getlist("origin")
        hosts = headers.getlist("host")
        is_secure = websocket.scope.get("scheme", "ws") in ("wss", "https")
        if not is_allowed(
            origins,
            hosts,
            is_secure=is_secure,
            allowed=self._allowed_origins,
            required=self._settings.require_origin,
        ):
            if self._origins_said.is_due(asyncio.get_running_loop().time()):
                logger.warning(
                    "refused the HTTP origin %.200r for the host %.200r over %s: %.400s (said once a minute)",
                    origins,
                    hosts,
                    "TLS" if is_secure else "plain HTTP",
                    likely_cause(origins, hosts, is_secure=is_secure),
                )
            self._refuse(websocket, Refusal.HTTP_ORIGIN)
        if self._settings.refuse_by_close != "never":  # not before: no foreign page is let in
            websocket.scope[REFUSE_BY_CLOSE_KEY] = self._settings.refuse_by_close
        self._check_drain(websocket)

    def refuse_credentials(self, websocket: WebSocket, challenge: str) -> NoReturn:
        """Refuse who does not prove who it is. Raises as `check_handshake` does."""
        self._refuse(websocket, Refusal.CREDENTIALS, challenge=challenge)

    async def ask_limiter(self, connection: Connection, action: Literal["connect", "message"]) -> bool:
        """Return what the app's limiter says, which there is. One that fails is logged, and says yes.

        Limits are there for the app's good: while what they are counted in is away, its users are let in.
        """
        assert self._limiter is not None, "whoever calls has seen that there is one"
        try:
            answer: object = self._limiter(connection, action)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception:
            if self._limiter_said.is_due(asyncio.get_running_loop().time()):
                logger.exception("the limiter failed: %s was let through (said once a minute)", action)
            return True
        if answer is None and not self._limiter_none_said:
            self._limiter_none_said = True
            logger.warning("the limiter returned None, which means no: return True to let somebody through (said once)")
        return bool(answer)

    def is_asked_about(self, connection: Connection) -> bool:
        """Return whether the app is being asked about a connection, which is in no registry yet."""
        return connection in self._asking

    async def wait_while_asked(self, connection: Connection) -> None:
        """Wait while `check_connect` asks the app about a connection for somebody else."""
        while connection in self._asking:
            asked = self._asking[connection] = self._asking[connection] or asyncio.Event()
            await asked.wait()

    async def check_connect(self, connection: Connection, room: str | None) -> None:
        """Refuse what the app says no to: the connection, or its first room. The limits: see `check_limits`.

        Raises:
            HandshakeRefused: It is refused.
            WebSocketException: It is refused, but the app has accepted it.
        """
        websocket = connection.websocket
        try:
            if connection.user_id is not None:
                check_name("user_id", connection.user_id)
            if room is not None:
                check_name("room", room)
        except InvalidName as error:
            if self._names_said.is_due(asyncio.get_running_loop().time()):
                logger.info("%s: refused (said once a minute)", error)
            self._refuse(websocket, Refusal.INVALID_NAME)  # and the name is not passed on
        if connection.expires_at is not None and connection.expires_at <= datetime.now(UTC):
            self._refuse(websocket, Refusal.EXPIRED, user_id=connection.user_id)
        if self._limiter is None and (room is None or not self._asks(connection)):
            return
        self._asking[connection] = None
        try:
            with self._places.kept_for(connection):
                await self._ask_to_connect(connection, room)
        finally:
            asked = self._asking.pop(connection)
            if asked is not None:
                asked.set()
        self._check_drain(websocket)  # it may have begun meanwhile

    async def _ask_to_connect(self, connection: Connection, room: str | None) -> None:
        """Ask the app about a connection, and about its first room. Raises as `check_connect` does."""
        websocket, user_id = connection.websocket, connection.user_id
        if self._limiter is not None and not await self.ask_limiter(connection, "connect"):
            self._refuse(websocket, Refusal.LIMITER, user_id=user_id, retry_after=RETRY_SECONDS)
        if room is not None and self._asks(connection):
            try:
                await self._ask_to_join(connection, room)
            except JoinRefused:
                self._refuse(websocket, Refusal.JOIN, user_id=user_id, room=room)

    def check_limits(self, connection: Connection) -> str | None:
        """Refuse who would be one too many; return what counts as the address of the connection, if that counts.

        Raises:
            HandshakeRefused: It is refused.
            WebSocketException: It is refused, but the app has accepted it.
        """
        lacking = self._places.lacking(connection)
        if lacking is not None:
            self._refuse(connection.websocket, lacking, user_id=connection.user_id, retry_after=RETRY_SECONDS)
        return self._places.address_of(connection)

    def giving_way(self, connection: Connection) -> list[Connection]:
        """Return which others of its user have to be closed now for a connection. See `Places.giving_way`."""
        return self._places.giving_way(connection)

    def refuse_stopped(self, connection: Connection) -> NoReturn:
        """Refuse who was let in and comes to the end of the handshake when the node has been stopped.

        Raises as `check_handshake` does.
        """
        left = self._drains_for()
        self._refuse(
            connection.websocket,
            Refusal.DRAINING,
            user_id=connection.user_id,
            retry_after=RETRY_SECONDS if left is None else left,
        )

    def check_room_name(self, connection: Connection | None, room: str) -> None:
        """Refuse a room that cannot be called that; counted if it is known who wants to join it.

        Raises:
            InvalidName: It is empty, too long, holds a control character, or could be spelt in two ways.
        """
        try:
            check_name("room", room)
        except InvalidName:
            if connection is not None:
                self.note_refusal(connection.websocket, Refusal.INVALID_NAME, connection.user_id, None)
            raise

    async def check_join(self, connection: Connection, room: str) -> None:
        """Ask whether a connection may join another room. Changes nothing, and whoever asks looks again afterwards.

        Raises:
            JoinRefused: The app said no.
        """
        if connection not in self._registry.members(room) and self._asks(connection):
            try:
                await self._ask_to_join(connection, room)
            except JoinRefused:
                self.note_refusal(connection.websocket, Refusal.JOIN, connection.user_id, room)
                raise

    def check_room_limit(self, connection: Connection, room: str) -> None:
        """Refuse one room too many.

        Raises:
            TooManyRooms: It is in as many as it may be.
        """
        limit = self._settings.max_rooms_per_connection
        if limit is not None and len(connection._rooms) >= limit and room not in connection._rooms:
            self.note_refusal(connection.websocket, Refusal.MAX_ROOMS, connection.user_id, room)
            raise TooManyRooms(
                f"the connection is in {limit} rooms: leave one first, or raise "
                "RoomsSettings(max_rooms_per_connection=...)",
                room=room,
            )

    def _check_drain(self, websocket: WebSocket) -> None:
        left = self._drains_for()
        if left is not None:
            self._refuse(websocket, Refusal.DRAINING, retry_after=left)

    def _asks(self, connection: Connection) -> bool:
        return connection._authorize_join is not None or self._authorize_join is not None

    async def _ask_to_join(self, connection: Connection, room: str) -> None:
        """Ask the app.

        Raises:
            JoinRefused: It said no, or failed.
        """
        ask = connection._authorize_join or self._authorize_join
        assert ask is not None, "whoever calls has seen that there is one"
        try:
            if inspect.iscoroutinefunction(ask):
                answer = await ask(connection, room)
            else:
                answer = await run_in_threadpool(ask, connection, room)
                if inspect.isawaitable(answer):
                    answer = await answer
        except RefusedError as error:
            raise JoinRefused("authorize_join said no", room=room) from error
        except Exception as error:
            if self._join_said.is_due(asyncio.get_running_loop().time()):
                logger.warning("authorize_join failed, which means no (said once a minute)", exc_info=error)
            raise JoinRefused("authorize_join failed, which means no", room=room) from error
        if answer is None and not self._none_said:
            self._none_said = True
            logger.warning("authorize_join returned None, which means no: return True to let somebody in (said once)")
        if not answer:
            raise JoinRefused("authorize_join said no", room=room)

    def _refuse(
        self,
        websocket: WebSocket,
        reason: Refusal,
        *,
        user_id: str | None = None,
        room: str | None = None,
        retry_after: float | None = None,
        challenge: str | None = None,
    ) -> NoReturn:
        self.note_refusal(websocket, reason, user_id, room)
        refuse(websocket, reason, retry_after, challenge)

    def note_refusal(
        self, websocket: WebSocket, reason: Refusal, user_id: str | None = None, room: str | None = None
    ) -> None:
        """Count a refusal, and tell the app."""
        self._counters.refused[reason] += 1
        logger.debug("refused: %s", reason)
        if self._hooks.refused is not None:
            self._announcer.tell(self._hooks.refused, Refused(reason, websocket, user_id, room))
