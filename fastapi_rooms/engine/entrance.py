"""From a WebSocket to a connection that is open: who is let in is asked first, and looked at again afterwards."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import Connection, Owner, Phase
from fastapi_rooms.domain.errors import ConfigurationError, NotConnectedError
from fastapi_rooms.engine.admission.admission import Admission, AuthorizeJoin
from fastapi_rooms.engine.admission.revoked_users import RevokedUsers
from fastapi_rooms.engine.lifecycle import Cause, Lifecycle
from fastapi_rooms.engine.outbound.ended import ENDED
from fastapi_rooms.engine.references import SCOPE_KEY, connection_of


class Entrance:
    """Decides at each step with what is true by then: every question to the app takes time.

    Args:
        admission: Who is let in.
        revoked: Who was closed everywhere.
        lifecycle: Who opens connections.
    """

    def __init__(self, admission: Admission, revoked: RevokedUsers, lifecycle: Lifecycle) -> None:
        self._admission = admission
        self._revoked = revoked
        self._lifecycle = lifecycle

    async def connect(
        self,
        owner: Owner,
        websocket: WebSocket,
        room: str | None,
        user_id: str | None,
        metadata: Mapping[str, Any] | None,
        expires_at: datetime | None,
        authorize_join: AuthorizeJoin | None,
        answer_handshake: Callable[[], Awaitable[None]],
    ) -> tuple[Connection, bool]:
        """Connect a WebSocket, or find that this has happened; return the connection, and whether it is new.

        Raises: see `ConnectionManager.connect`.
        """
        connection = connection_of(websocket)
        if connection._owner not in (None, owner):
            raise ConfigurationError("this WebSocket is connected to another manager: use one manager for a socket")
        await self._admission.wait_while_asked(connection)
        if connection._phase is Phase.NEW:
            self._admission.check_handshake(websocket)
            connection._user_id = user_id
            connection.metadata.update(metadata or {})
            connection._expires_at = expires_at
            connection._authorize_join = authorize_join
            self._admission.check_limits(connection)  # before the app is asked, which may cost it something
            await self._admission.check_connect(connection, room)
        if connection._phase is Phase.NEW:  # nobody has forgotten it meanwhile
            self.check_not_revoked(connection)
            address = self._admission.check_limits(connection)
            await self._lifecycle.open(
                connection,
                owner,
                room,
                address,
                lambda: self._answer(connection, answer_handshake),
                lambda: self._admission.giving_way(connection),
            )
            return connection, True
        await self._lifecycle.wait_until_opened(connection)
        if connection._phase is not Phase.OPEN:
            raise NotConnectedError("this WebSocket has ended: a client that comes again is a new WebSocket")
        if user_id is not None and user_id != connection.user_id:
            whose = "of nobody" if connection.user_id is None else "of another user"
            raise ConfigurationError(
                f"this connection is open already, and {whose}: a user_id is given at the first connect, and stays. In "
                "a ws_route that is its `user_id=`"
            )
        return connection, False

    def forget(self, connection: Connection, owner: Owner) -> Connection | None:
        """Forget a connection that the owner holds, or that is being connected; return it, None if it is neither."""
        if connection._phase is Phase.NEW and self._admission.is_asked_about(connection):
            self._lifecycle.forget_unconnected(connection)
        if connection._owner is not owner or connection._phase is Phase.GONE:
            return None
        self._lifecycle.end(connection, Cause.FORGOTTEN)
        # No cycle keeps it, and the server's protocol object with it, until the garbage collector comes.
        connection.websocket.scope[SCOPE_KEY] = None
        connection._reader = connection._authorize_join = None
        return connection

    async def _answer(self, connection: Connection, answer_handshake: Callable[[], Awaitable[None]]) -> None:
        if connection._phase is Phase.ENDED and connection._outbox is ENDED:  # the manager was stopped meanwhile
            self._admission.refuse_stopped(connection)
        await answer_handshake()

    def check_not_revoked(self, connection: Connection) -> None:
        """Refuse whose user was closed since the connection was made. Raises as `Admission.refuse_credentials` does."""
        user_id = connection.user_id
        if user_id is not None and self._revoked.is_revoked(user_id, connection._made_at, connection.connection_id):
            self._admission.refuse_credentials(connection.websocket, "Bearer")
