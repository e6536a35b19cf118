"""How many messages a connection may send: so many a second, and some at once."""


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
