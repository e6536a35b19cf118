"""A receiver that remembers."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from fastapi_rooms.domain.backend_state import Gap
from fastapi_rooms.domain.envelope import Envelope

LOOK_SECONDS = 0.002


class Recorder:
    """A `Receiver` that keeps what a backend gives it, and lets a test wait for it.

    Attributes:
        envelopes: What was received, in its order.
        gaps: What was reported as missed, in its order.
    """

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.gaps: list[Gap] = []

    def __repr__(self) -> str:
        return f"<Recorder envelopes={len(self.envelopes)} gaps={len(self.gaps)}>"

    def receive(self, envelope: Envelope) -> None:
        """Keep an envelope."""
        self.envelopes.append(envelope)

    def missed(self, gap: Gap) -> None:
        """Keep a gap."""
        self.gaps.append(gap)

    async def received(self, count: int, seconds: float = 5.0) -> list[Envelope]:
        """Wait until at least so many envelopes have come, on whatever loop; return all that have.

        Raises:
            AssertionError: They have not come in time.
        """
        await until(lambda: len(self.envelopes) >= count, seconds, lambda: f"{count} envelopes: {self!r}")
        return list(self.envelopes)

    async def reported(self, count: int, seconds: float = 5.0) -> list[Gap]:
        """Wait until at least so many gaps were reported, on whatever loop; return all that were.

        Raises:
            AssertionError: They were not reported in time.
        """
        await until(lambda: len(self.gaps) >= count, seconds, lambda: f"{count} gaps: {self!r}")
        return list(self.gaps)


async def until(fact: Callable[[], bool | Awaitable[bool]], seconds: float, what: Callable[[], str]) -> None:
    """Wait until something is true. A fact of a backend tells nobody, so it is looked at again and again.

    Raises:
        AssertionError: It is not, after so many seconds.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        value = fact()
        if await value if inspect.isawaitable(value) else value:
            return
        if loop.time() > end:
            raise AssertionError(f"not within {seconds:g} s: {what()}")
        await asyncio.sleep(LOOK_SECONDS)
