"""A deadline that does not mistake a blocked event loop for a silent peer."""

import asyncio
from collections.abc import Callable

LATE_SECONDS = 0.1
"""When a timer fires this much late, the loop was blocked, and nothing was read meanwhile."""
GRACE_SECONDS = 0.05
"""How long the loop may read what has arrived, between the first look at what is due and the ringing."""
MAX_GRACES = 10


class Alarm:
    """Rings when something is due that has not happened.

    Args:
        due: Returns when something is due, in the loop's time; None if nothing is. It may return a later time than
            before without telling the alarm.
        ring: Called when something is overdue.
    """

    def __init__(self, due: Callable[[], float | None], ring: Callable[[], object]) -> None:
        self._due = due
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None  # None: nothing was due when it was last looked at
        self._graces = 0  # given since it was armed; 0: the first look is still to come

    def set(self) -> None:
        """Begin to watch what is due. Costs next to nothing if it is watched already."""
        if self._timer is None:
            self._arm()

    def stop(self) -> None:
        """Do not ring until it is set again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._graces = 0
        due = self._due()
        if due is not None:
            # The first look is early: after a block, something may be due and its answer be there unread.
            self._look_at(due - GRACE_SECONDS)

    def _look_at(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._on_timer, when)

    def _on_timer(self, expected: float) -> None:
        self._timer = None
        due = self._due()
        now = asyncio.get_running_loop().time()
        if due is None or now < due - GRACE_SECONDS:
            self._arm()
        elif self._graces == 0 or (now - expected > LATE_SECONDS and self._graces <= MAX_GRACES):
            # Before the next look the loop reads what has arrived.
            self._graces += 1
            self._look_at(max(due, now + GRACE_SECONDS))
        elif now < due:
            self._look_at(due)
        else:
            self._ring()
            self.set()
