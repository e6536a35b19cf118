"""What a listener may have missed, and since when: the arithmetic behind every gap.

A lapse is a time in which something may be missed. It begins

- when the listening connection is lost; it ends when the next connection has every channel that it began with,
- when somebody wants a channel and does not wait for it, since Redis is in doubt; it ends when no such channel is left,
- when something fails before the first probe was heard, since nobody waits for Redis from then on; it is over at once.

Only a probe proves that a lapse is over. What Redis had published before it took the probe comes before the probe, so
whoever hears the probe has heard all of that. So the gap of a lapse reaches from the sending of the last probe that was
heard before the lapse to the hearing of the first probe that was sent after it:

    what happens      wanted made    confirmed  probe 1    probe 1   LOST   made   confirmed  probe 2      probe 2
                                                is sent    is heard                           is sent      is heard
    ─────────────────●──────●───────●──────────●──────────●─────────●──────●──────●──────────●────────────●─────────▶
    is_hearing        no.....no......YES........YES........YES.......no.....no.....YES........YES..........YES
    lapses: begun     0                                              1
            over      0                                              0             1
            proved    0                                    0                                               1
    heard_since       start                                probe 1                                         probe 2
                                                           was sent                                        was sent
    gap                                        ├── from probe 1 sent ─────────────────── to probe 2 heard ─┤ reported

A probe that was sent while somebody is late proves that the server works, but not that everything is heard. It moves
`heard_since` only if it ends another lapse, whose gap is then reported and covers the late ones up to now:

    what happens      probe 1    DOUBT   x is wanted,       probe 2   probe 2    x is        probe 3    probe 3
                      was sent           nobody waits       is sent   is heard   confirmed   is sent    is heard
    ─────────────────●──────────●───────●──────────────────●─────────●──────────●───────────●──────────●────────────▶
    lapses: begun     0                  1
            over      0                  0                                       1
            proved    0                                               0                                1
    heard_since       probe 1 ....................................... still probe 1................... probe 3
    gap              ├── from probe 1 sent ─────────────────────────────────────── to probe 3 heard ───┤ reported
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Proof:
    """What it proves if a probe is heard."""

    sent: datetime
    """What was published before that has been heard."""
    over: int
    """How many lapses were over by then."""


class Lapses:
    """What one listener may have missed. The listener and its link tell; nobody else writes.

    Args:
        now: Nothing that was published before that was promised to anybody.
    """

    def __init__(self, now: datetime) -> None:
        self._heard_since = now
        self._begun = 0  # how many lapses there were
        self._proved = 0  # how many of them were over when a probe was sent that was heard
        self._was_proved = False  # a probe was heard once
        self._is_connected = False
        self._catching_up: set[bytes] = set()  # wanted when the connection was made, and not confirmed since
        self._late: set[bytes] = set()  # nobody waits for them, and they are not confirmed

    @property
    def heard_since(self) -> datetime:
        """What was published before that has been heard, or lies in a gap that was reported."""
        return self._heard_since

    @property
    def is_hearing(self) -> bool:
        """Whether there is a connection that has every channel that it began with."""
        return self._is_connected and not self._catching_up

    @property
    def are_over(self) -> bool:
        """Whether it hears, and nobody is late."""
        return self.is_hearing and not self._late

    # What the listener tells

    def begin(self, wanted: Iterable[bytes]) -> None:
        """Take note that a connection was made, and of what it is to have."""
        self._is_connected = True
        self._catching_up = set(wanted)

    def lose(self) -> None:
        """Take note that the connection was lost. Who was late is one of those who catch up with the next."""
        self._is_connected = False
        self._begun += 1
        self._catching_up.clear()
        self._late.clear()

    def let_go(self, channels: Collection[bytes]) -> None:
        """Take note that nobody waits for channels that are wanted and not confirmed."""
        if channels and not self._late:
            self._begun += 1
        self._late.update(channels)

    def catch_up(self, channel: bytes) -> bool:
        """Take note that a channel was confirmed, or is not wanted any more.

        Returns whether it was the last of those who were catching up, or of those who were late.
        """
        was_last = False
        for behind in (self._catching_up, self._late):
            if channel in behind:
                behind.discard(channel)
                was_last |= not behind
        return was_last

    # What the link tells

    def fail(self) -> None:
        """Take note that a connection could not be made, or was lost."""
        if not self._was_proved:
            self._begun += 1

    def probe(self, now: datetime) -> Proof:
        """Return what a probe proves that is sent now. It proves nothing before it is heard."""
        return Proof(now, self._begun - bool(self._late))

    def prove(self, proof: Proof) -> datetime | None:
        """Take note that a probe was heard.

        Returns since when something may have been missed, if the probe proves that a lapse is over; else None.
        """
        self._was_proved = True
        over = self._begun if self.are_over else proof.over  # what came while the probe was under way is over, too
        if over == self._proved:
            if self.are_over:
                self._heard_since = proof.sent
            return None
        since, self._heard_since = self._heard_since, proof.sent
        self._proved = over
        return since
