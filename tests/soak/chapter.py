"""A soak test in chapters: some time under fire, then peace, in which is judged and counted what came of it."""

import asyncio
import contextlib
import re
import time
from collections import Counter
from random import Random

from brokers.server import Broker
from support import until

from soak.crowd import Crowd
from soak.faults import Faults
from soak.history import History
from soak.judge import PATIENCE, judge
from soak.nodes import Node
from soak.residents import ALL_ROOMS, Auditor, Talker, Walker
from soak.rest import Rest, look_at, look_at_broker

STRANGERS, FLOODERS = 120, 4  # at a time
AUDITORS, TALKERS, WALKERS = 16, 8, 24  # on each node
REST_WITHIN = 45.0
"""For everybody to come back, and for all that is frozen or has gone to be noticed."""
HEARD_WITHIN = 15.0
"""In peace."""
LAST_WORDS = 3


class Soak:
    """Residents on two nodes, and one chapter after the other.

    Attributes:
        complaints: What must not be, of all chapters.
        counts: What was judged, and what was broken.
        outcomes: What came of the visits of strangers.
    """

    def __init__(self, broker: Broker, nodes: list[Node], history: History, seed: int) -> None:
        self.complaints: list[str] = []
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._broker = broker
        self._nodes = nodes
        self._chance = Random(seed)
        self._history = history
        self._loud = asyncio.Event()
        self._residents = [
            kind(
                f"{kind.__name__.lower()}-{node.name}{number}",
                node,
                self._chance.sample(ALL_ROOMS, 3 if kind is Auditor else 1),
                self._loud,
                Random(self._chance.random()),
            )
            for node in nodes
            for kind, count in ((Auditor, AUDITORS), (Talker, TALKERS), (Walker, WALKERS))
            for number in range(count)
        ]
        self._crowd = Crowd(nodes, history, self._chance)
        self._faults = Faults(broker, nodes, self._chance)
        self._lives: list[asyncio.Task[None]] = []
        self._before: dict[str, Rest] = {}  # by node: what it first held at rest
        self._first: dict[str, Rest] = {}  # by life: the same
        self._broker_before: dict[str, int] = {}
        self._lag = 0.0  # how late this process itself was at most

    async def begin(self) -> None:
        """Let residents come, and strangers of each kind; then note what the nodes hold at rest."""
        self._lives = [asyncio.create_task(self._watch_the_clock())]
        for resident in self._residents:
            resident.history = self._history
            self._lives.append(asyncio.create_task(resident.live()))
        self._loud.set()
        await self._crowd.visit_once_each()
        self._broker.kill_listeners()
        await asyncio.sleep(2)
        await self._settle()
        await self._speak_last_words()
        for node in self._nodes:
            self._before[node.name] = self._first[node.life.name] = await look_at(node)
        self._broker_before = look_at_broker(self._broker)
        self._end_chapter()

    async def chapter(self, seconds: float, mortal: Node) -> None:
        """Let everything happen for a while, then judge. `mortal` is the node that is restarted."""
        self._begin_chapter()
        steady = next(node for node in self._nodes if node is not mortal)
        before = await steady.get("/stats")
        self._loud.set()
        going_on = asyncio.gather(self._crowd.visit(STRANGERS, FLOODERS), self._faults.go_on(mortal, self._history))
        await asyncio.sleep(seconds)
        self._crowd.stop()
        self._faults.stop()
        await going_on
        await self._settle()
        self._check_counts(steady, before, await steady.get("/stats"))
        await self._speak_last_words()
        await self._rest()
        self._end_chapter()

    async def end(self) -> None:
        """Stop both nodes while everybody is there."""
        self._begin_chapter()
        for resident in self._residents:
            resident.comes_back = False
        await asyncio.gather(*(node.stop() for node in self._nodes))
        clock, *lives = self._lives
        await asyncio.wait_for(asyncio.gather(*lives), REST_WITHIN)
        clock.cancel()
        await asyncio.wait([clock])
        try:
            await until(lambda: not any(look_at_broker(self._broker).values()), "Redis is left alone")
        except TimeoutError:
            self._history.oddities.append(f"Redis still has {look_at_broker(self._broker)}")
        self._end_chapter()
        for node in self._nodes:
            self.complaints += [f"in the log of {node.name}: {traceback}" for traceback in node.tracebacks]

    def summary(self) -> str:
        """Say in words what was done."""
        lines = [f"{number:8} {what}" for what, number in sorted(self.counts.items())]
        lines += [f"{number:8} visits: {what}" for what, number in sorted(self.outcomes.items())]
        lines += [
            f"{life}: {rest.tracked} objects, {rest.memory >> 20} MiB at rest" for life, rest in self._first.items()
        ]
        lines += [f"{node.name} stopped within {node.slowest_stop:.1f} s" for node in self._nodes]
        return "\n".join(lines)

    def _begin_chapter(self) -> None:
        self._lag = 0.0
        lives = {node.life.name: node.life for node in self._nodes}
        self._history = History(time.time(), lives)
        self._crowd = Crowd(self._nodes, self._history, self._chance)
        for node in self._nodes:
            node.history = self._history
        for resident in self._residents:
            resident.begin_chapter(self._history)

    def _end_chapter(self) -> None:
        for node in self._nodes:
            node.read_journal()
        verdict = judge(self._history, PATIENCE + self._lag)
        self.complaints += verdict.complaints
        self.counts.update({f"deliveries {what}": number for what, number in verdict.counts.items()})
        self.counts.update(re.sub(r"\b([ab])\d+", r"\1", fault.what) for fault in self._history.faults)
        self.counts.update({"gaps": len(self._history.gaps), "messages": len(self._history.messages)})
        self.counts["connections of residents"] += len(self._history.sessions)
        self.counts["seconds that the test itself was late at most"] = max(
            round(self._lag), self.counts["seconds that the test itself was late at most"]
        )
        self.outcomes.update(self._crowd.outcomes)

    async def _settle(self) -> None:
        """Wait until everybody else is gone, the residents are at home, and both nodes hear each other."""
        self._loud.clear()
        try:
            async with asyncio.timeout(REST_WITHIN):
                while not all(one.is_home for one in self._residents):
                    for life in self._lives:
                        if life.done():
                            life.result()
                    await asyncio.sleep(0.01)
                for node in self._nodes:
                    here = sum(one.node is node for one in self._residents)
                    while not await node.is_ready() or (await node.get("/stats"))["connections"] != here:
                        await asyncio.sleep(0.05)
        except TimeoutError:
            away = [one.name for one in self._residents if not one.is_home]
            stats = [await node.get("/stats") for node in self._nodes]
            raise AssertionError(f"not at rest within {REST_WITHIN} s: {away} {stats} {self._tell()}") from None

    async def _speak_last_words(self) -> None:
        """Have everybody say something in peace: all of it is heard, and all of it is counted, exactly."""
        before = [await node.get("/stats") for node in self._nodes]
        for one in self._residents:
            one.frames = one.commands = 0
        said = Counter[str]()
        for _ in range(LAST_WORDS):
            for one in self._residents:
                room = self._chance.choice(one.home)
                said[room] += 1
                await one.say(room)
        for one in self._residents:
            await one.settle()
        members = Counter(room for one in self._residents for room in one.home)
        wanted = sum(number * (members[room] + 1) for room, number in said.items())  # and one answer
        with contextlib.suppress(TimeoutError):  # the judge and the counts say what is missing
            await until(lambda: sum(one.frames for one in self._residents) >= wanted, "heard", HEARD_WITHIN)
        for node, then in zip(self._nodes, before, strict=True):
            now = await node.get("/stats")
            here = [one for one in self._residents if one.node is node]
            for what, wanted in (
                ("sent_messages", sum(one.frames for one in here)),
                ("received_messages", sum(one.commands for one in here)),
            ):
                if now[what] - then[what] != wanted:
                    self._history.oddities.append(
                        f"in peace {node} counts {now[what] - then[what]} {what}, not {wanted}"
                    )
            for what in ("dropped", "closed", "refused"):
                if now[what] != then[what]:
                    self._history.oddities.append(f"in peace {node} counts {what} {now[what]} after {then[what]}")

    async def _rest(self) -> None:
        """Compare what is held with what was held before, again and again until it is the same."""
        end = time.monotonic() + REST_WITHIN
        while True:
            complaints = []
            for node in self._nodes:
                now = await look_at(node)
                first = self._first.setdefault(node.life.name, now)
                complaints += now.complaints(self._before[node.name])
                if first.life != self._before[node.name].life:
                    complaints += now.complaints(first)
            held = await asyncio.to_thread(look_at_broker, self._broker)
            if held != self._broker_before:
                complaints.append(f"Redis has {held} instead of {self._broker_before}")
            if not complaints or time.monotonic() > end:
                self._history.oddities += complaints
                return
            await asyncio.sleep(0.5)

    def _check_counts(self, node: Node, before: dict, after: dict) -> None:
        """Check that a node which lived all the time has counted what it refused, dropped and ended."""

        def flat(stats: dict) -> Counter:
            return Counter(stats["dropped"]) + Counter(stats["closed"]) + Counter(stats["refused"])

        counted, life = flat(after) - flat(before), node.life.name
        self.counts.update({f"counted by steady nodes: {what}": number for what, number in counted.items()})
        for what in {what for _, what in self._crowd.notes.most}:
            least, most = self._crowd.notes.least[life, what], self._crowd.notes.most[life, what]
            if not least <= counted[what] <= most:
                self._history.oddities.append(f"{node} counts {counted[what]} {what} instead of {least} to {most}")

    async def _watch_the_clock(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.1)
            self._lag = max(self._lag, time.monotonic() - before - 0.1)

    def _tell(self) -> str:
        return "; ".join(f"{one.what} at {one.since - self._history.began:.1f}" for one in self._history.faults)
