"""What was said, heard and broken in one chapter: plain values, written by the clients, read by the judge.

All times are `time.time()`, the wall clock, since that is what gaps are told in; all processes share one machine.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

OK, UNAVAILABLE, UNKNOWN = "ok", "unavailable", "unknown"


@dataclass(slots=True, eq=False)
class Message:
    """One call of `broadcast_to_room`."""

    life: str
    """Of which node, in which of its lives (`a1`: the first process of node a)."""
    number: int
    """How many such calls there were in that life before: the order of the calls."""
    room: str
    talker: str
    sequence: int
    """How many messages its talker had sent before."""
    called: float
    returned: float | None = None
    """None: the talker never learned."""
    outcome: str = UNKNOWN
    """What the call returned or raised, as the talker was told."""

    @property
    def latest(self) -> float:
        """When it was with Redis at the latest, if it succeeded."""
        return self.called if self.returned is None else self.returned


@dataclass(slots=True, eq=False)
class Hearing:
    """A membership, as its client can be certain of it."""

    room: str
    since: float
    """When the handshake, or the join, had been answered."""
    until: float | None = None
    """When the leave was sent, or the connection was found to have ended; None: it goes on."""
    is_cut: bool = False
    """The connection ended, and nobody but the node knows when exactly."""


@dataclass(slots=True, eq=False)
class Session:
    """One connection of a client that behaves well."""

    client: str
    life: str
    hearings: list[Hearing] = field(default_factory=list)
    heard: list[tuple[Message, float]] = field(default_factory=list)
    """What it heard, and when."""
    said: list[int] = field(default_factory=list)
    """What it sent, by its own count."""
    answered: list[int] = field(default_factory=list)
    """What was answered."""
    oddities: list[str] = field(default_factory=list)
    """What no client should ever get."""
    close_code: int | None = None
    """None: it is open."""
    closed_at: float | None = None


@dataclass(slots=True, eq=False)
class Life:
    """One process of a node."""

    name: str
    node: str
    ended_by: str | None = None
    """SIGTERM or SIGKILL; None: it lives."""


@dataclass(slots=True, eq=False)
class HeardGap:
    """What a node has reported as a gap; also a node that was stopped before it heard again."""

    life: str
    since: float
    until: float
    rooms: Collection[str] | None
    """None: all."""


@dataclass(slots=True, eq=False)
class Fault:
    """Something that was broken."""

    what: str
    since: float
    until: float | None = None
    """None: not mended yet."""


@dataclass(slots=True, eq=False)
class History:
    """One chapter."""

    began: float
    lives: dict[str, Life] = field(default_factory=dict)
    messages: dict[tuple[str, int], Message] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    gaps: list[HeardGap] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)
    """What else must not happen, in the words of whoever saw it."""

    def message(self, life: str, number: int, room: str, talker: str, sequence: int, called: float) -> Message:
        """Return the one message that is meant, which all who hear it share.

        Raises:
            ValueError: It is told differently from before.
        """
        known = self.messages.get((life, number))
        if known is None:
            known = self.messages[life, number] = Message(life, number, room, talker, sequence, called)
        elif (known.room, known.talker, known.sequence, known.called) != (room, talker, sequence, called):
            raise ValueError(f"{(room, talker, sequence, called)} instead of {known}")
        return known

    def is_troubled(self, since: float) -> bool:
        """Whether anything has been broken since then."""
        return any(fault.until is None or fault.until >= since for fault in self.faults)
