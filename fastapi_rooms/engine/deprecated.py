"""Names that the manager had once. They go with the next release, and this file with them."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.websockets import WebSocket
from typing_extensions import deprecated

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters

if TYPE_CHECKING:
    from fastapi_rooms.engine.parts import Parts
    from fastapi_rooms.engine.sessions import Sessions


class DeprecatedNames:
    """What is not the manager's business any more, under its old names."""

    _parts: "Parts"
    _sessions: "Sessions"

    @property
    @deprecated("manager.counters goes with the next release: read manager.stats()")
    def counters(self) -> Counters:
        """What was lost and who was refused since the manager was made: a copy. Deprecated: see `stats`."""
        return self._parts.counters.copy()

    @deprecated("manager.check_handshake goes with the next release: use the dependency fastapi_rooms.check_handshake")
    def check_handshake(self, websocket: WebSocket) -> None:
        """Refuse foreign HTTP origins. Deprecated: see `fastapi_rooms.check_handshake`."""
        self._sessions.check_handshake(websocket)

    @deprecated("manager.refuse_credentials goes with the next release: call fastapi_rooms.refuse_credentials")
    def refuse_credentials(self, websocket: WebSocket, challenge: str = "Bearer") -> NoReturn:
        """Refuse a client that does not prove who it is. Deprecated: see `fastapi_rooms.refuse_credentials`."""
        self._sessions.refuse_credentials(websocket, challenge)

    @deprecated("manager.caught_up goes with the next release: await connection.wait_until_caught_up()")
    async def caught_up(self, connection: Connection) -> None:
        """Wait while a connection is behind. Deprecated: see `Connection.wait_until_caught_up`."""
        await connection.wait_until_caught_up()

    @deprecated("manager.closed goes with the next release: await connection.wait_until_closed()")
    async def closed(self, connection: Connection) -> None:
        """Wait until a closed connection is done. Deprecated: see `Connection.wait_until_closed`."""
        await connection.wait_until_closed()

    @deprecated("manager.messages goes with the next release: iterate over connection.messages(...)")
    def messages(self, connection: Connection, message_type: Any) -> AsyncIterator[Any]:
        """Iterate over what a client sends. Deprecated: see `Connection.messages`."""
        return connection.messages(message_type)
