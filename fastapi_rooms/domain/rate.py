"""How many messages a connection may send: so many a second, and some at once."""

import math


class Rate:
    """A token bucket that fills by `per_second` up to `burst`; a message takes one token.

    The bucket itself is one number, the time at which it will be full (the "virtual scheduling" form of the generic
    cell rate algorithm, ITU-T I.371 annex A), so that each connection keeps just that. Time is an argument, in seconds,
    and never goes back.
    """

    __slots__ = ("_burst_seconds", "_token_seconds")

    FULL = float("-inf")
    """The bucket of who has sent nothing."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._token_seconds = 1 / per_second
        self._burst_seconds = (burst + 1e-6) / per_second  # sums of fractions come out a little too large

    def take(self, full_at: float, now: float) -> float | None:
        """Take a token; return when the bucket will be full now, or None if it was empty."""
        full_at = max(full_at, now) + self._token_seconds
        return None if full_at - now > self._burst_seconds else full_at


PAUSE_SECONDS = 1.0
"""After how long without a dropped message the next one begins a row anew."""


class Allowance:
    """What one client may send at the moment. Time is an argument.

    Args:
        rate: How fast it may send; None: somebody else says what is dropped.
    """

    __slots__ = ("_dropped", "_dropped_at", "_full_at", "_owed", "_rate")

    def __init__(self, rate: Rate | None) -> None:
        self._rate = rate
        self._full_at = Rate.FULL  # when its bucket of tokens will be full
        self._owed = 0.0  # messages that it may send above the rate: it was kept from sending them, see `credit`
        self._dropped = 0  # messages above the rate, in a row
        self._dropped_at = -math.inf  # when the last of them came

    def take(self, now: float) -> bool:
        """Take note of a message; return whether it is within the rate."""
        assert self._rate is not None, "whoever asks has seen that there is one"
        full_at = self._rate.take(self._full_at, now)
        if full_at is not None:
            self._full_at = full_at
        elif self._owed >= 1:
            self._owed -= 1
        else:
            return False
        return True

    def credit(self, since: float, now: float, per_second: float, longest: float) -> None:
        """Owe the client what it could have sent while it was held up, since it comes all at once now.

        That is what flowed over the rim of its bucket meanwhile: more than its rate it never gets, on the whole.

        Args:
            since: Since when it was held up.
            now: Until when.
            per_second: Its rate.
            longest: How long a single pause can be, in seconds.
        """
        seconds = max(0.0, now - max(since, self._full_at))
        self._owed = min(self._owed + seconds * per_second, longest * per_second)

    def drop(self, now: float) -> int:
        """Take note of a message that is dropped; return which it is in a row, from 1. A pause begins a row anew."""
        is_first = now - self._dropped_at > PAUSE_SECONDS
        self._dropped_at = now
        self._dropped = 1 if is_first else self._dropped + 1
        return self._dropped
