"""Strangers who visit again and again, and what they saw."""

import asyncio
import time
from collections import Counter
from random import Random

from wire.strict_client import Violation

from soak.history import History
from soak.nodes import Node
from soak.strangers import HEAVY, LIGHT, Kind
from soak.visits import Notes, Treated, Visit


class Crowd:
    """Strangers who visit again and again.

    Attributes:
        notes: What they share.
        outcomes: How often what came of which visit.
    """

    def __init__(self, nodes: list[Node], history: History, chance: Random) -> None:
        self.notes = Notes(chance)
        self.outcomes: Counter[str] = Counter()
        self._nodes = nodes
        self._history = history
        self._light = [(kind, place) for kind in LIGHT for place in range(len(nodes))]
        self._heavy = [(kind, place) for kind in HEAVY for place in range(len(nodes))]
        self._is_over = False

    async def visit(self, light: int, heavy: int) -> None:
        """Let so many at a time come until `stop` was called, and wait until they are gone."""
        await asyncio.gather(
            *(self._come_again(self._light) for _ in range(light)),
            *(self._come_again(self._heavy) for _ in range(heavy)),
        )

    async def visit_once_each(self, at_once: int = 12) -> None:
        """Let one of each kind visit each node."""
        gate = asyncio.Semaphore(at_once)

        async def one(kinds: list[tuple[Kind, int]]) -> None:
            async with gate:
                await self._pay_visit(*self.notes.draw(kinds))

        await asyncio.gather(*(one(kinds) for kinds in (self._light, self._heavy) for _ in kinds))

    def stop(self) -> None:
        self._is_over = True

    async def _come_again(self, kinds: list[tuple[Kind, int]]) -> None:
        while not self._is_over:
            await self._pay_visit(*self.notes.draw(kinds))
            await asyncio.sleep(self.notes.chance.uniform(0, 2))

    async def _pay_visit(self, kind: Kind, place: int) -> None:
        node = self._nodes[place]
        life, began = node.life, time.time()
        is_disturbed = node.is_disturbed
        try:
            outcome = await kind(Visit(node, self._nodes[1 - place], self.notes))
        except (Violation, Treated, OSError, TimeoutError) as error:
            if is_disturbed or node.is_disturbed or node.life is not life:
                outcome = "the node was stopped"
            elif isinstance(error, TimeoutError) and self._history.is_troubled(began):
                outcome = "too slow"  # such as many joins in a row over a network that is
            else:
                outcome = "surprised"
                self._history.oddities.append(
                    f"a stranger who came to {kind.__name__} on {node} at {began - self._history.began:.3f} was "
                    f"surprised at {time.time() - self._history.began:.3f}: {error!r:.300}"
                )
        self.outcomes[f"{kind.__name__}: {outcome}"] += 1
