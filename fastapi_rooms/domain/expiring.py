"""What is kept for a time, in memory."""

from collections import OrderedDict
from collections.abc import Sequence

MIN_SWEEP = 64


class Expiring:
    """Values with a time to live. Time is an argument, in seconds, and never goes back.

    Values whose time is over are swept out when there are twice as many values as the last sweep has left. So a put is
    cheap, and what is over takes no more room than what is not.

    Args:
        max_values: How many may be kept; beyond that the one that was put first is forgotten. None: time alone decides.
    """

    def __init__(self, max_values: int | None = None) -> None:
        self._max_values = max_values
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # until when, and what; last put last
        self._sweep_at = MIN_SWEEP

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: str, value: bytes, seconds: float, now: float) -> None:
        """Keep a value for so long, in place of the one that the key had."""
        self._kept[key] = (now + seconds, value)
        self._kept.move_to_end(key)
        if len(self._kept) > self._sweep_at:
            self._sweep(now)
        if self._max_values is not None and len(self._kept) > self._max_values:
            self._kept.popitem(last=False)

    def take(self, key: str, now: float) -> bytes | None:
        """Return a value and forget it; None if there is none."""
        until, value = self._kept.pop(key, (now, None))
        return value if now < until else None

    def peek(self, keys: Sequence[str], now: float) -> list[bytes | None]:
        """Return the values of keys, in their order."""
        found = (self._kept.get(key, (now, None)) for key in keys)
        return [value if now < until else None for until, value in found]

    def _sweep(self, now: float) -> None:
        for key in [key for key, (until, _) in self._kept.items() if until <= now]:
            del self._kept[key]
        self._sweep_at = max(MIN_SWEEP, 2 * len(self._kept))
