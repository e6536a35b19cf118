"""How many messages a connection may send: so many a second, and some at once."""


class TokenBucket:
    """A bucket that fills by `rate` tokens a second up to `burst`; a message takes one.

    Kept as one number: the time at which the bucket will be full (the "virtual scheduling" form of the generic cell
    rate algorithm, ITU-T I.371 annex A). Time is an argument.
    """

    __slots__ = ("_burst_seconds", "_full_at", "_token_seconds")

    def __init__(self, rate: float, burst: int) -> None:
        self._token_seconds = 1 / rate
        self._burst_seconds = (burst + 1e-6) / rate  # sums of fractions come out a little too large
        self._full_at = 0.0  # in the past: full from the beginning

    def take(self, now: float) -> bool:
        """Take a token; False if there is none. `now` never goes back."""
        full_at = max(self._full_at, now) + self._token_seconds
        if full_at - now > self._burst_seconds:
            return False
        self._full_at = full_at
        return True
