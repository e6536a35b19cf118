"""What a connection has in place of an outbox that is done, so that the outbox can be freed."""

from fastapi_rooms.domain.connection import Connection, Verdict
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.engine.outbound.batch import REFUSING


class _Ended:
    """Answers as an outbox that is done does."""

    pending = REFUSING
    is_writing = is_over = False
    connection: Connection  # never asked for: who has ended is in no registry

    def offer(self, message: Message) -> Verdict:  # noqa: ARG002
        return Verdict.GONE

    def write_at_once(self) -> None:
        """Do nothing: there is nothing to write."""

    def queued(self) -> None:
        """Return None: nothing waits."""

    def close(self, close: Close | None) -> None:
        """Do nothing: it is closed."""

    def lose_peer(self) -> None:
        """Do nothing: it is done."""

    def note_close_by_server(self) -> None:
        """Do nothing: it was looked at when the outbox was done."""

    async def wait_for_space(self) -> None:
        """Return: nobody will write any more."""

    async def wait_until_done(self) -> None:
        """Return: it is done."""


ENDED = _Ended()
"""The outbox of every connection that has ended."""
