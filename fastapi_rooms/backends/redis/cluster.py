"""The way through a Redis Cluster: one link per shard, channels moved between them as the cluster moves their slots.

Sharded pub/sub: a room is one channel, which lies in one slot, which one shard serves. A slot that moves takes its
channels along: Redis tells listeners by an unrequested `sunsubscribe`, publishers by `MOVED`, and both only once they
touch it, so what is told makes this node ask for the whole table again.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import Context
from datetime import UTC, datetime
from itertools import count
from random import shuffle, uniform

from redis.exceptions import ResponseError

from fastapi_rooms.backends.redis.dialing import Server
from fastapi_rooms.backends.redis.link import Link, Pace, ShardOwner
from fastapi_rooms.backends.redis.places import ClusterSeeds
from fastapi_rooms.backends.redis.publishing import Command
from fastapi_rooms.backends.redis.routes import Listening
from fastapi_rooms.backends.redis.slots import Address, SlotTable, channel_in, moved_to, slot_of
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

MIN_REFRESH_SECONDS = 0.1
"""Between two questions for the table, however often somebody is sent elsewhere."""
UNHEALTHY_REFRESH_SECONDS = 0.5
"""Between two questions while a shard is away: its replica may have taken over, which nobody tells us."""
MAX_REDIRECTS = 16
REPORT_SECONDS = 0.1
"""How long channels that are heard again are collected before their gap is reported."""


class _Held:
    """Commands for a slot that has moved, while others for it are under way to the server that had it.

    Those will all be sent elsewhere, too. What is published meanwhile waits, so that it stays behind them.
    """

    def __init__(self, last: Command) -> None:
        self.last = last  # the last one under way to the wrong server
        self.sent_back: list[Command] = []
        self.waiting: list[Command] = []


class ClusterLinks(ShardOwner):
    """Links to all shards of a cluster.

    Args:
        seeds: Servers to ask first.
        pace: How long to wait.
        listening: Whom to tell.
        probe_channel: The n-th of the channels of this node.
    """

    def __init__(
        self, seeds: ClusterSeeds, pace: Pace, listening: Listening, probe_channel: Callable[[int], bytes]
    ) -> None:
        self._seeds = seeds
        self._pace = pace
        self._listening = listening
        self._probe_channel = probe_channel
        self._table = SlotTable()
        self._links: dict[Address, Link] = {}
        self._placed: dict[bytes, Link | None] = {}  # what is wanted, and who listens to it; None: nobody has its slot
        self._moved: dict[
            bytes, datetime
        ] = {}  # not confirmed at its new place; since when it may have missed something
        self._heard_again: dict[bytes, datetime] = {}  # confirmed since, to be reported
        self._report_timer: asyncio.TimerHandle | None = None  # None: nothing is to be reported
        self._held: dict[int, _Held] = {}
        self._stale = asyncio.Event()  # somebody was sent elsewhere, or lost a server
        self._asked = asyncio.Event()  # the first question for the table was answered, or was not
        self._last_error: BackendUnavailable | None = None  # why nobody told the table; None: somebody did
        self._task: asyncio.Task[None] | None = None  # None: not started, or stopped
        self._ending: set[asyncio.Task[None]] = set()  # links to servers that have no slot any more

    @property
    def is_healthy(self) -> bool:
        """Whether every slot has a server and every link is healthy."""
        return self._table.is_complete() and all(link.is_healthy for link in self._links.values())

    @property
    def last_error(self) -> BackendUnavailable | None:
        """Why it is not healthy, as far as that is known."""
        errors = (link.last_error for link in self._links.values() if not link.is_healthy)
        return next((error for error in errors if error is not None), self._last_error)

    def start(self) -> None:
        """Ask for the table and begin to connect."""
        self._task = asyncio.get_running_loop().create_task(
            self._keep_table(), name="fastapi_rooms cluster table", context=Context()
        )

    async def stop(self) -> None:
        """Hang up. Leaves no task."""
        if self._task is not None:
            await end_tasks([self._task])
            self._task = None
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
        links, self._links = self._links, {}
        for link in links.values():
            await link.stop()
        if self._ending:
            await asyncio.wait(self._ending)

    async def decided(self) -> None:
        """Wait until the first attempt has succeeded or failed everywhere."""
        await self._asked.wait()
        for link in list(self._links.values()):
            await link.decided()

    async def flush(self) -> None:
        """Wait until what was published has an answer or has failed."""
        while self._held or not all(link.line.is_idle() for link in self._links.values()):
            for link in list(self._links.values()):
                await link.line.flush()
            await asyncio.sleep(0)

    def is_settled(self) -> bool:
        """Return whether every shard has exactly the channels that are wanted of it."""
        return self.is_healthy and not self._moved and all(link.listener.is_settled() for link in self._links.values())

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[object]:
        """Publish to the shard that has the channel."""
        slot = slot_of(channel)
        link = self._link_of(slot)
        if link is None:
            failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            failed.set_exception(self._last_error or BackendUnavailable(f"no server of the cluster has slot {slot}"))
            return failed
        command = link.publishing(channel, payload)
        held = self._held.get(slot)
        if held is not None:
            held.waiting.append(command)
        else:
            link.line.put(command)
        return command.future

    def want(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Want channels, each from the shard that has it; see `Listener.want`."""
        futures = []
        for channel in channels:
            self._placed.setdefault(channel, None)
            self._place(channel)
            link = self._placed[channel]
            if link is not None:
                futures += link.listener.want([channel])
        return futures

    def unwant(self, channels: Iterable[bytes]) -> None:
        """Stop wanting channels."""
        for channel in channels:
            link = self._placed.pop(channel, None)
            self._moved.pop(channel, None)
            if link is not None:
                link.listener.unwant([channel])

    # The table

    async def _keep_table(self) -> None:
        while True:
            self._stale.clear()
            if await self._ask_for_table():
                self._apply_table()
            else:
                self._unplaced_may_miss()
            self._asked.set()
            self._listening.on_health()
            await asyncio.sleep(MIN_REFRESH_SECONDS)
            if self.is_healthy:
                await self._stale.wait()
            else:
                await asyncio.sleep(uniform(0, UNHEALTHY_REFRESH_SECONDS - MIN_REFRESH_SECONDS))  # noqa: S311 - no secret

    async def _ask_for_table(self) -> bool:
        """Ask one server after the other; return whether one has answered."""
        for server in self._whom_to_ask():
            try:
                self._table.replace(await server.ask("CLUSTER", "SLOTS"), server.address)
            except (BackendUnavailable, ValueError) as error:
                logger.debug("the cluster's table could not be had: %s", error)
                self._last_error = BackendUnavailable(str(error))
            else:
                self._last_error = None
                return True
        return False

    def _whom_to_ask(self) -> list[Server]:
        healthy = [address for address, link in self._links.items() if link.is_healthy]
        shuffle(healthy)  # one of them may be behind
        others = [address for address, link in self._links.items() if not link.is_healthy]
        template = self._seeds.servers[0]
        return [*(template.at(*address) for address in (*healthy, *others)), *self._seeds.servers]

    def _apply_table(self) -> None:
        """Have links to exactly the servers with slots, and every channel listened to at its place."""
        owners = self._table.owners()
        for address in owners:
            self._link_to(address)
        for channel in self._placed:
            self._place(channel)
        for address in [address for address in self._links if address not in owners]:
            link = self._links.pop(address)
            ending = asyncio.get_running_loop().create_task(link.stop(), name=f"fastapi_rooms leaving {link.name}")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        for address, link in self._links.items():
            link.probe_by(self._probe_of(address))
            link.listener.try_again()

    def _unplaced_may_miss(self) -> None:
        for channel, link in self._placed.items():
            if link is None:
                self._moved.setdefault(channel, datetime.now(UTC))

    def _link_of(self, slot: int) -> Link | None:
        owner = self._table.owner(slot)
        return None if owner is None else self._links.get(owner)

    def _link_to(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            server = self._seeds.servers[0].at(*address)
            link = Link(str(server), server.dial, self._pace, self, self._probe_of(address), shards=self)
            self._links[address] = link
            link.start()
        return link

    def _probe_of(self, address: Address) -> bytes:
        """Return a channel of this node that lies in a slot of that server."""
        return channel_in(self._table.slots_of(address), map(self._probe_channel, count()))

    def _place(self, channel: bytes) -> None:
        """Listen to a channel where its slot is."""
        old, new = self._placed[channel], self._link_of(slot_of(channel))
        if new is old:
            return
        if old is not None:
            old.listener.unwant([channel])
            self._moved.setdefault(channel, old.heard_since)
        self._placed[channel] = new
        if new is not None:
            new.listener.want([channel])

    # What links tell

    def on_health(self, link: Link) -> None:
        """Ask who took over from a server that is lost."""
        if not link.is_healthy:
            self._stale.set()
        self._listening.on_health()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Pass it on."""
        self._listening.on_message(channel, payload)

    def on_repaired(self, link: Link, since: datetime) -> None:
        """Pass it on, with all that this link listens to."""
        self._listening.on_repaired(since, [channel for channel, placed in self._placed.items() if placed is link])

    def on_confirmed(self, channel: bytes) -> None:
        """Collect channels that are heard at their new place."""
        since = self._moved.pop(channel, None)
        if since is None:
            return
        self._heard_again[channel] = since
        if self._report_timer is None:
            self._report_timer = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report)

    def _report(self) -> None:
        self._report_timer = None
        heard_again, self._heard_again = self._heard_again, {}
        self._listening.on_repaired(min(heard_again.values()), heard_again.keys())

    def on_moved(self, link: Link) -> None:  # noqa: ARG002 - the whole table is asked for
        """Ask for the table."""
        self._stale.set()

    def on_refused(self, link: Link, command: Command, error: ResponseError) -> bool:
        """Send a command to where its slot is now. That is no repetition: the server that refused it did nothing."""
        self._stale.set()
        asked = next((address for address, known in self._links.items() if known is link), None)
        owner = None if asked is None else moved_to(error, asked)
        if asked is None or owner is None or owner == asked or command.redirects >= MAX_REDIRECTS:
            return False
        slot = slot_of(command.words[1])
        self._table.move(slot, owner)
        self._link_to(owner)
        if command.words[1] == link.probe_channel:
            link.probe_by(self._probe_of(asked))
            return False
        command.redirects += 1
        self._send_on(slot, link, command)
        return True

    def _send_on(self, slot: int, link: Link, command: Command) -> None:
        held = self._held.get(slot)
        if held is None:
            behind = [other for other in link.line.unanswered() if slot_of(other.words[1]) == slot]
            held = _Held(behind[-1] if behind else command)
            self._held[slot] = held
            if behind:
                held.last.future.add_done_callback(lambda _: self._release(slot, held))
        held.sent_back.append(command)
        if command is held.last:
            self._release(slot, held)

    def _release(self, slot: int, held: _Held) -> None:
        """Send what was held to whoever has the slot now, in order."""
        if self._held.get(slot) is not held:
            return
        del self._held[slot]
        link = self._link_of(slot)
        for command in (*held.sent_back, *held.waiting):
            if link is None:
                command.fail(BackendUnavailable(f"no server of the cluster has slot {slot}"))
            else:
                link.line.put(command)
