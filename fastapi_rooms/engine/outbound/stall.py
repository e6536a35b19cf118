"""Whether a peer has stopped taking what it is sent."""

from typing import NamedTuple

from fastapi_rooms.domain.settings import RoomsSettings

LINGER_SECONDS = 1.0
"""How long a peer may take nothing of what the server holds for it when the server has closed the socket: this is all
that its shutdown waits for."""
MARK = 64 * 1024
"""Up to how much a server's buffer is written to: the high-water mark of asyncio's and uvloop's transports."""
MAX_LOOK_SECONDS = 2.0
"""How much of a peer's time passes at most between two looks: after more than that this node was behind itself."""
GROWING_SWEEPS = 2
"""After how many sweeps that found more in a server's buffer than we can have written a peer is given up."""


class Behind(NamedTuple):
    """How far a peer has come for whom something waits."""

    taken: int
    """Another number when it has taken something."""
    held: int
    """The bytes that the server holds for it."""
    is_closing: bool
    """Whether the server has closed the socket, and merely waits for the peer to take what it holds."""


class Stall:
    """What the sweep remembers of a peer that is behind, from one look to the next.

    Args:
        settings: How much patience there is.
        now: Loop time of the first look.
        first: What it found.
    """

    __slots__ = ("_growing", "_held", "_limit", "_looked_at", "_patience", "_taken", "_waited")

    def __init__(self, settings: RoomsSettings, now: float, first: Behind) -> None:
        self._patience = settings.send_timeout
        self._limit = max(settings.outbox_bytes, MARK)  # more than that is nothing of ours
        self._looked_at = now
        self._waited = 0.0  # for how long nothing was taken
        self._taken = first.taken  # when that last moved
        self._held = first.held  # at the last look
        self._growing = 0  # looks in a row that found more than the one before, above all limits

    def look_again(self, now: float, found: Behind) -> bool:
        """Take note of how far it is now; return whether to give it up.

        That is so when it took nothing for `send_timeout`, or asks for pongs faster than it takes them.
        """
        passed, self._looked_at = now - self._looked_at, now
        if self._asks_for_more_than_it_takes(found):
            return True
        if found.taken != self._taken:
            self._waited, self._taken = 0.0, found.taken
            return False
        self._waited += min(passed, MAX_LOOK_SECONDS, self._patience / 2)
        patience = min(LINGER_SECONDS, self._patience) if found.is_closing else self._patience
        return self._waited >= patience

    def _asks_for_more_than_it_takes(self, found: Behind) -> bool:
        """Notice a buffer that grows above the mark, where we write nothing: those are pongs.

        Twice in a row, since the kernel may have taken much at once, and a large message may have followed.
        """
        before, self._held = self._held, found.held
        is_growing = found.held > before > self._limit and found.taken - self._taken < before - self._limit
        self._growing = self._growing + 1 if is_growing else 0
        return self._growing == GROWING_SWEEPS
