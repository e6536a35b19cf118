"""Saying something now and then that happens all the time."""


class Seldom:
    """Decides whether it is time to say it again.

    Args:
        seconds: How much time passes at least between two times.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._next = float("-inf")

    def is_due(self, now: float) -> bool:
        """Return whether to say it now; if so, it is not due again for a while."""
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
