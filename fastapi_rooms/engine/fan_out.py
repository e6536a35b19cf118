"""One message to many outboxes: the loop in which a broadcast spends its time."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from fastapi_rooms.domain.connection import Connection, Verdict
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.engine.batch import EMPTY, REFUSING, Batch
from fastapi_rooms.engine.flusher import Flusher

if TYPE_CHECKING:
    from fastapi_rooms.engine.outbox import Outbox


class FannedOut(NamedTuple):
    """What became of a message."""

    handed: int
    """To how many connections it was handed."""
    overflowed: list[Connection]
    """Those to be closed, since their outbox is full."""


def fan_out(
    connections: Iterable[Connection], message: Message, excluded: Collection[Connection], flusher: Flusher
) -> FannedOut:
    """Offer a message to all outboxes but the excluded ones.

    This is what `Outbox.offer` does, spelt out: a call per member would cost as much as everything else here. Members
    that have been offered the same before, nearly all of them, get the same longer batch.
    """
    handed = 0
    overflowed: list[Connection] = []
    dirty: list[Outbox] = []
    before: Batch | None = None
    after = EMPTY
    made: dict[Batch, Batch] = {}
    for connection in connections:
        if excluded and connection in excluded:
            continue
        outbox: Outbox = connection._outbox  # type: ignore[assignment] # the domain knows less of it
        pending = outbox.pending
        if pending is not before:
            if pending is REFUSING:
                verdict = outbox.offer(message)
                if verdict is Verdict.ACCEPTED:
                    handed += 1
                elif verdict is Verdict.OVERFLOW:
                    overflowed.append(connection)
                continue
            before = pending
            known = made.get(pending)
            after = made[pending] = pending.then(message) if known is None else known
        if pending is EMPTY:
            dirty.append(outbox)
        outbox.pending = after
        handed += 1
    if dirty:
        flusher.add_all(dirty)
    return FannedOut(handed, overflowed)
