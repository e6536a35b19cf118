"""Says what of a history must not be. Knows nothing but the history.

What is promised, and to whom:

- Nothing twice, nothing changed, nothing to whom is not in the room.
- From its own node a connection hears all that is said in its rooms, in the order of the calls, whatever becomes of
  Redis.
- From another node it hears what is said in a room in the order of the calls, and all of it whose call returned without
  an error, unless its node has reported a gap for that time and that room. What failed may arrive nevertheless, at any
  time: a Redis that stood still may deliver much later what it had taken.
- A client's messages are handled one by one, in their order, as long as it is connected.
- A connection of a client that behaves well ends with its node alone; with 1012 if that is told to stop.

A client knows for certain that it is a member from the answer to its join until it sends its leave. When a connection
is ended for it, or a message is on its way from another node, the end is not certain. So what was said in the last
`patience` seconds is only promised if something was heard that was said later.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from soak.history import OK, Fault, Hearing, History, Life, Message, Session

PATIENCE = 8.0
SHOWN = 3  # lost messages of one kind, in a complaint


@dataclass
class Verdict:
    """What was found."""

    complaints: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Deliveries: `here` and `there` (promised, and made); `in gaps`, `unavailable` and `uncertain` (excused);
    `late` (what had failed and arrived nevertheless)."""


def judge(history: History, patience: float = PATIENCE) -> Verdict:
    """Judge a chapter at whose end all talk was over and everybody had time to hear it."""
    verdict = Verdict(complaints=list(history.oddities))
    said: dict[tuple[str, str], list[Message]] = defaultdict(list)
    for message in sorted(history.messages.values(), key=lambda one: one.number):
        said[message.life, message.room].append(message)
    for session in history.sessions:
        who = f"{session.client} on {session.life}"
        verdict.complaints += [f"{who}: {one}" for one in session.oddities]
        verdict.complaints += [f"{who}: {one}" for one in _wrong_answers(session)]
        verdict.complaints += [f"{who}: {one}" for one in _wrong_end(session, history.lives.get(session.life))]
        verdict.complaints += [f"{who}: {one}" for one in _wrong_order(session, verdict.counts)]
        for (life, room), messages in said.items():
            _judge_stream(history, session, life, room, messages, patience, verdict)
    verdict.complaints += _wrong_sequences(history)
    return verdict


def _wrong_answers(session: Session) -> Iterator[str]:
    answered = session.answered
    if answered != session.said[: len(answered)]:
        yield f"the answers came in another order than the questions: {answered} to {session.said}"
    elif session.close_code is None and len(answered) < len(session.said):
        yield f"these were never answered, although it is connected: {session.said[len(answered) :]}"


def _wrong_end(session: Session, life: Life | None) -> Iterator[str]:
    code = session.close_code
    if code is None:
        return
    ended_by = None if life is None else life.ended_by
    if ended_by is None:
        yield f"closed with {code}, although nobody stopped the node"
    elif ended_by == "SIGTERM" and code != 1012:
        yield f"closed with {code} instead of 1012 by a node that was told to stop"


def _wrong_order(session: Session, counts: Counter[str]) -> Iterator[str]:
    seen: set[Message] = set()
    last: dict[object, Message] = {}
    for message, _ in session.heard:
        if message in seen:
            yield f"heard twice: {_name(message)}"
            continue
        seen.add(message)
        is_here = message.life == session.life
        if not is_here and message.outcome != OK:
            counts["late"] += 1
            continue
        stream = message.life if is_here else (message.life, message.room)
        before = last.get(stream)
        if before is not None and before.number > message.number:
            yield f"heard {_name(message)} after {_name(before)}"
        last[stream] = message


def _judge_stream(
    history: History, session: Session, life: str, room: str, messages: list[Message], patience: float, verdict: Verdict
) -> None:
    """Judge what one connection heard of what one node said in one room."""
    hearings = [one for one in session.hearings if one.room == room]
    if not hearings:
        return
    heard = {one: at for one, at in session.heard if one.life == life and one.room == room}
    is_here = life == session.life
    lost = []
    times = [message.called for message in messages]  # in order, but for a wall clock that is set back
    for hearing in hearings:
        until = inf if hearing.until is None else hearing.until
        during = messages[bisect_left(times, hearing.since) : bisect_right(times, until)]
        # What came while it had left, and what came when it was there again, says nothing about this membership.
        last = max((message.number for message in during if heard.get(message, inf) <= until), default=-1)
        for message in during:
            if message in heard:
                verdict.counts["here" if is_here else "there"] += 1
                continue
            if not (message.number < last or _is_over(hearing, message, patience, is_here=is_here)):
                excuse = "uncertain"
            elif is_here:
                excuse = ""
            elif message.outcome != OK:
                excuse = "unavailable"
            else:
                excuse = "in gaps" if _is_in_gap(history, session.life, hearing, message, patience) else ""
            if excuse:
                verdict.counts[excuse] += 1
            else:
                lost.append((hearing, message))
    if lost:
        verdict.complaints.append(_lament(history, session, lost))


def _is_over(hearing: Hearing, message: Message, patience: float, *, is_here: bool) -> bool:
    """Return whether the message had time enough to be heard before the end."""
    if hearing.until is None or (is_here and not hearing.is_cut):
        return True
    return message.latest <= hearing.until - patience


def _is_in_gap(history: History, life: str, hearing: Hearing, message: Message, patience: float) -> bool:
    for gap in history.gaps:
        if gap.life != life or not (gap.since <= message.latest and message.called <= gap.until):
            continue
        if gap.rooms is None or message.room in gap.rooms:
            return True
        # Who had left when the node heard again has nobody to be told of a gap.
        if hearing.until is not None and hearing.until - (patience if hearing.is_cut else 0) < gap.until:
            return True
    return False


def _wrong_sequences(history: History) -> Iterator[str]:
    """Yield what a talker said first and a node called later."""
    last: dict[tuple[str, str], Message] = {}
    for message in sorted(history.messages.values(), key=lambda one: one.number):
        before = last.get((message.life, message.talker))
        if before is not None and before.sequence >= message.sequence:
            yield f"{_name(message)} was handled after {_name(before)}"
        last[message.life, message.talker] = message


# In words


def _name(message: Message) -> str:
    return f"{message.life}#{message.number} ({message.talker}'s {message.sequence} in {message.room})"


def _lament(history: History, session: Session, lost: list[tuple[Hearing, Message]]) -> str:
    def at(moment: float | None) -> str:
        return "the end" if moment is None else f"{moment - history.began:.3f}"

    first = lost[0][1]
    lines = [f"{session.client} on {session.life} lost {len(lost)} messages of {first.life} in {first.room}:"]
    for hearing, message in lost[:SHOWN]:
        lines.append(
            f"  {_name(message)}, called at {at(message.called)}, {message.outcome} at {at(message.returned)}; "
            f"it was a member from {at(hearing.since)} to {at(hearing.until)}{' (cut off)' if hearing.is_cut else ''}"
        )
        faults = [fault for fault in history.faults if _is_near(fault, message)]
        lines += [f"    then: {fault.what}, from {at(fault.since)} to {at(fault.until)}" for fault in faults]
        gaps = [gap for gap in history.gaps if gap.life == session.life and gap.until > message.called - 10]
        lines += [
            f"    gap: {at(gap.since)} to {at(gap.until)}, "
            f"{'with' if gap.rooms is None or message.room in gap.rooms else 'without'} the room"
            for gap in gaps[:SHOWN]
        ]
    return "\n".join(lines)


def _is_near(fault: Fault, message: Message) -> bool:
    return fault.since - 1 <= message.latest and (fault.until is None or message.called <= fault.until + 5)
