"""What the sweep, a drain and a stop ask of an outbox: how far its peer is, and whether its socket is still there.

Nothing here changes anything: see `Outbox`, which is one of these, and its base, for what waits.
"""

from typing import TYPE_CHECKING

from starlette.websockets import WebSocketState

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.outbound.bounded_queue import DONE, BoundedQueue, Flushes
from fastapi_rooms.engine.outbound.stall import Behind

if TYPE_CHECKING:
    import asyncio

    from fastapi_rooms.engine.outbound.wire import Wire


class Watched(BoundedQueue):
    """A bounded queue that knows its connection, the way to its socket, and who writes to it."""

    __slots__ = ("_task", "_wire", "connection", "is_writing")

    def __init__(self, connection: Connection, settings: RoomsSettings, counters: Counters, flusher: Flushes) -> None:
        super().__init__(settings, counters, flusher)
        self.connection = connection
        self._wire: Wire | None = None  # None until `open`: offers wait for the handshake
        self.is_writing = False  # `write_rest` is due or at work
        self._task: asyncio.Task[object] | None = None  # runs `write_rest`; owned by the writers

    @property
    def is_open(self) -> bool:
        """Whether the handshake was answered."""
        return self._wire is not None

    def is_written(self) -> bool:
        """Return whether nothing waits any more, neither here nor in the server's buffer."""
        return self.life is DONE and (self._wire is None or not self._wire.buffered())

    def has_left(self) -> bool:
        """Return whether the server is done with the socket too: until then a peer can fill its buffer with pongs."""
        return self.life is DONE and not self.is_pending and (self._wire is None or self._wire.has_left())

    @property
    def can_abort(self) -> bool:
        """Whether `abort` would end the socket."""
        return self._wire is not None and self._wire.can_abort()

    @property
    def is_pending(self) -> bool:
        """Whether it is done, and the server has not let go of what it was passed last."""
        return self.life is DONE and self._task is not None

    @property
    def is_said_gone(self) -> bool:
        """Whether the server has said that the peer has gone."""
        return self.connection.websocket.client_state is WebSocketState.DISCONNECTED

    @property
    def is_lost_to_us(self) -> bool:
        """Whether the server has said that the peer has gone, and nobody can look for himself."""
        return not self.can_abort and self.is_said_gone

    @property
    def awaits_word(self) -> bool:
        """Whether nobody but the server knows when the peer goes, and it has not gone."""
        return self.is_open and self.life is not DONE and not self.can_abort

    @property
    def awaits_turn(self) -> bool:
        """Whether something waits for a task to write it: then it is this node that is behind, and not the peer."""
        return self.is_writing and self._task is None

    def behind(self) -> Behind | None:
        """Return how far the peer is with what it is being sent; None if nobody waits for it.

        That is so while a write to this peer is under way, or the server holds something for it. An outbox that has
        not had its turn says nothing of its peer.
        """
        wire = self._wire
        if wire is None:
            return None
        held = wire.buffered()
        if not held and (self._task is None or self.life is DONE):
            return None
        return Behind(wire.taken(), held, wire.is_closing())
