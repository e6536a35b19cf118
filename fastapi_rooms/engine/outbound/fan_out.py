"""One message to many outboxes: the loop in which a broadcast spends its time."""

from collections.abc import Collection, Iterable

from fastapi_rooms.domain.connection import Outbox as AnyOutbox
from fastapi_rooms.domain.connection import Verdict
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.engine.outbound.batch import EMPTY, REFUSING, Batch
from fastapi_rooms.engine.outbound.flusher import Flusher
from fastapi_rooms.engine.outbound.outbox import Outbox


def fan_out(
    outboxes: Iterable[AnyOutbox], message: Message, excluded: Collection[AnyOutbox], flusher: Flusher
) -> tuple[int, list[Outbox]]:
    """Offer a message to all outboxes but the excluded ones.

    This is what `Outbox.offer` does, spelt out: a call per member would cost as much as everything else here. Members
    that have been offered the same before, nearly all of them, get the same longer batch.

    Returns:
        To how many the message was handed, and those whose connection is to be closed since they are full.
    """
    handed = 0
    overflowed: list[Outbox] = []
    dirty: list[Outbox] = []
    before: Batch | None = None
    after = EMPTY
    made: dict[Batch, Batch] = {}
    outbox: Outbox
    for outbox in outboxes:  # type: ignore[assignment] # the domain knows less of them
        if excluded and outbox in excluded:
            continue
        pending = outbox.pending
        if pending is not before:
            if pending is REFUSING:
                verdict = outbox.offer(message)
                if verdict is Verdict.ACCEPTED:
                    handed += 1
                elif verdict is Verdict.OVERFLOW:
                    overflowed.append(outbox)
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
    return handed, overflowed
