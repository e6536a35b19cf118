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

from fastapi_rooms.backends.redis.asking import first_answer
from fastapi_rooms.backends.redis.dialing import Server
from fastapi_rooms.backends.redis.held import HeldCommands, keep_in_time
from fastapi_rooms.backends.redis.link import Link, Pace, ShardOwner
from fastapi_rooms.backends.redis.places import ClusterSeeds
from fastapi_rooms.backends.redis.publishing import Command
from fastapi_rooms.backends.redis.routes import Listening
from fastapi_rooms.backends.redis.slots import Address, SlotTable, ahead_to, channel_in, moved_to, slot_of
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


class ClusterLinks(ShardOwner):
    """Links to all shards of a cluster.

    Args:
        seeds: Servers to ask first.
        pace: How long to wait.
        listening: Whom to tell.
        probe_channel: The n-th of the channels of this node.
    """

    keys_per_command = 1  # two keys may lie in different slots, and while a slot moves, in different places

    def __init__(
        self, seeds: ClusterSeeds, pace: Pace, listening: Listening, probe_channel: Callable[[int], bytes]
    ) -> None:
        self._seeds = seeds
        self._pace = pace
        self._listening = listening
        self._probe_channel = probe_channel
        self._table = SlotTable()
        self._links: dict[Address, Link] = {}
        self._addresses: dict[Link, Address] = {}  # of all links, also of those that are leaving
        self._leaving: dict[Link, asyncio.Task[None]] = {}  # their servers have no slot any more
        self._placed: dict[bytes, Link | None] = {}  # what is wanted, and who listens to it; None: nobody has its slot
        self._joining: dict[bytes, asyncio.Future[None]] = {}  # somebody waits until these are heard
        self._moved: dict[
            bytes, datetime
        ] = {}  # not heard at their place yet; since when they may have missed something
        self._heard_again: dict[bytes, datetime] = {}  # confirmed since, to be reported
        self._report_timer: asyncio.TimerHandle | None = None  # None: nothing is to be reported
        self._held = HeldCommands(self._link_of)
        self._stale = asyncio.Event()  # somebody was sent elsewhere, or lost a server
        self._asked = asyncio.Event()  # the first question for the table was answered, or was not
        self._last_error: BackendUnavailable | None = None  # why nobody told the table; None: somebody did
        self._task: asyncio.Task[None] | None = None  # None: not started, or stopped

    @property
    def is_healthy(self) -> bool:
        """Whether every slot has a server and every link is healthy."""
        return self._table.is_complete() and all(link.is_healthy for link in self._links.values())

    @property
    def last_error(self) -> BackendUnavailable | None:
        """Why it is not healthy, as far as that is known."""
        for link in self._links.values():
            if not link.is_healthy:
                return link.last_error or BackendUnavailable(f"{link.name} was not heard yet")
        return self._last_error or BackendUnavailable("some slots of the cluster have no server")

    @property
    def probe_seconds(self) -> float | None:
        """How long the last probe of the slowest link took; None: none was heard yet."""
        heard = [link.probe_seconds for link in self._links.values() if link.probe_seconds is not None]
        return max(heard, default=None)

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
        await end_tasks(self._leaving.values())
        links = list(self._addresses)
        for known in (self._links, self._leaving, self._addresses):
            known.clear()  # what is refused from here on is sent nowhere
        for link in links:
            await link.stop()
        self._welcome(list(self._joining))
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None

    async def decided(self) -> None:
        """Wait until the first attempt has succeeded or failed everywhere."""
        await self._asked.wait()
        for link in list(self._links.values()):
            await link.decided()

    async def flush(self) -> None:
        """Wait until what was published has an answer or has failed."""
        under_way = [command for link in self._addresses for command in link.line.unanswered()]
        futures = [command.future for command in (*under_way, *self._held.commands())]
        await asyncio.gather(*(link.line.flush() for link in self._addresses))
        if futures:
            await asyncio.wait(futures)  # some were sent on

    def is_settled(self) -> bool:
        """Return whether every shard has exactly the channels that are wanted of it."""
        return self.is_healthy and not self._moved and all(link.listener.is_settled() for link in self._links.values())

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[object]:
        """Publish to the shard that has the channel."""
        return self._send(slot_of(channel), lambda link: link.publishing(channel, payload))

    def send(self, word: bytes, key: bytes, *words: bytes) -> asyncio.Future[object]:
        """Send a command to the shard that has its key."""
        return self._send(slot_of(key), lambda link: link.line.make(word, key, *words))

    def _send(self, slot: int, make: Callable[[Link], Command]) -> asyncio.Future[object]:
        link = self._link_of(slot)
        if link is None:
            failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            nobody = BackendUnavailable(f"no server of the cluster is known to have slot {slot}")
            failed.set_exception(BackendUnavailable(*(self._last_error or nobody).args))  # each caller gets its own
            return failed
        command = make(link)
        if slot in self._held:
            self._held.wait(slot, command)
        else:
            link.line.put(command)
        return command.future

    def want(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Want channels, each from the shard that has it; return what to wait for until they are heard there."""
        futures = []
        for channel in channels:
            self._placed.setdefault(channel, None)
            self._place(channel)
            link = self._placed[channel]
            if link is None:
                if self._asked.is_set():
                    self._moved.setdefault(channel, datetime.now(UTC))
            elif link.listener.want([channel]) or _is_new(link):
                futures.append(self._joined(channel))
        return futures

    def unwant(self, channels: Iterable[bytes]) -> None:
        """Stop wanting channels."""
        for channel in channels:
            link = self._placed.pop(channel, None)
            self._moved.pop(channel, None)
            self._heard_again.pop(channel, None)
            self._welcome([channel])
            if link is not None:
                link.listener.unwant([channel])

    def _joined(self, channel: bytes) -> asyncio.Future[None]:
        """Return what is done when a channel is heard, or when there is no use in waiting for it."""
        future = self._joining.get(channel)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._joining[channel] = loop.create_future()
            timer = loop.call_later(self._pace.timeout, self._give_up, channel)
            future.add_done_callback(lambda _: timer.cancel())
        return future

    def _give_up(self, channel: bytes) -> None:
        """Have nobody wait for a channel that Redis does not confirm; what it misses until then is reported."""
        if channel in self._joining:  # pragma: no branch - else it is over since this very tick
            self._moved.setdefault(channel, datetime.now(UTC))
            self._welcome([channel])

    def _welcome(self, channels: Iterable[bytes]) -> None:
        """Have nobody wait for channels any longer."""
        for channel in channels:
            future = self._joining.pop(channel, None)
            if future is not None and not future.done():
                future.set_result(None)

    # The table

    async def _keep_table(self) -> None:
        while True:
            self._stale.clear()
            try:
                self._table = await first_answer(map(_ask_for_table, self._whom_to_ask()))
            except BackendUnavailable as error:
                logger.debug("the cluster's table could not be had: %s", error)
                self._last_error = error
            else:
                self._last_error = None
                self._apply_table()
            self._asked.set()
            self._unplaced_may_miss()
            self._listening.on_health()
            await asyncio.sleep(MIN_REFRESH_SECONDS)
            if self.is_healthy:
                await self._stale.wait()
            else:
                await asyncio.sleep(uniform(0, UNHEALTHY_REFRESH_SECONDS - MIN_REFRESH_SECONDS))  # noqa: S311 - no secret

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
        for link in self._addresses:
            self._held.hold_moved(link)
        for channel in self._placed:
            self._place(channel)
        for address in [address for address in self._links if address not in owners]:
            link = self._links.pop(address)
            self._leaving[link] = asyncio.get_running_loop().create_task(
                self._leave(link), name=f"fastapi_rooms leaving {link.name}"
            )
        for address, link in self._links.items():
            self._probe_where_it_has_slots(address, link)
            link.listener.try_again()

    async def _leave(self, link: Link) -> None:
        await link.line.flush()
        await link.stop()
        del self._addresses[link], self._leaving[link]

    def _unplaced_may_miss(self) -> None:
        for channel, link in self._placed.items():
            if link is None:
                self._moved.setdefault(channel, datetime.now(UTC))

    def _link_of(self, slot: int) -> Link | None:
        owner = self._table.owner(slot)
        return None if owner is None else self._links.get(owner)

    def _link_to(self, address: Address) -> None:
        if address not in self._links:
            server = self._seeds.servers[0].at(*address)
            link = Link(str(server), server.dial, self._pace, self, self._probe_at(address), shards=self)
            self._links[address] = link
            self._addresses[link] = address
            link.start()

    def _probe_at(self, address: Address) -> bytes:
        """Return a channel of this node that lies in a slot of that server, if it has one."""
        return channel_in(self._table.slots_of(address), map(self._probe_channel, count()))

    def _probe_where_it_has_slots(self, address: Address, link: Link) -> None:
        if self._table.owner(slot_of(link.probe_channel)) != address:
            link.probe_by(self._probe_at(address))

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
        else:
            self._welcome([channel])

    # What links tell

    def on_health(self, link: Link) -> None:
        """Ask who took over from a server that is lost."""
        if not link.is_healthy:
            self._stale.set()
            self._welcome([channel for channel in self._joining if self._placed[channel] is link])
        self._listening.on_health()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Pass it on."""
        self._listening.on_message(channel, payload)

    def on_repaired(self, link: Link, since: datetime) -> None:
        """Pass it on, with all that this link listens to."""
        channels = [channel for channel, placed in self._placed.items() if placed is link]
        if channels:
            self._listening.on_repaired(since, channels)

    def on_taken(self, link: Link, channel: bytes) -> None:
        """Remember since when a channel may miss something, also if its slot comes back before the table is there."""
        if channel in self._placed:
            self._moved.setdefault(channel, link.heard_since)

    def on_confirmed(self, channel: bytes) -> None:
        """Collect channels that are heard again."""
        self._welcome([channel])
        since = self._moved.pop(channel, None)
        if since is None:
            return
        self._heard_again[channel] = min(since, self._heard_again.get(channel, since))
        if self._report_timer is None:
            self._report_timer = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report)

    def _report(self) -> None:
        self._report_timer = None
        heard_again, self._heard_again = self._heard_again, {}
        if heard_again:
            self._listening.on_repaired(min(heard_again.values()), heard_again.keys())

    def on_moved(self, link: Link) -> None:  # noqa: ARG002 - the whole table is asked for
        """Ask for the table."""
        self._stale.set()

    def on_refused(self, link: Link, command: Command, error: ResponseError) -> bool:
        """Send a command to where its slot is now. That is no repetition: the server that refused it did nothing."""
        self._stale.set()
        asked = self._addresses.get(link)
        if asked is not None and (ahead := ahead_to(error, asked)) is not None:
            return self._send_ahead(ahead, command)
        owner = None if asked is None else moved_to(error, asked)
        if asked is None or owner is None or owner == asked or command.redirects >= MAX_REDIRECTS:
            return False
        slot = slot_of(command.words[1])
        is_probe = command.words[1] == link.probe_channel
        if slot not in self._held:
            self._held.hold(slot, link, *(() if is_probe else (command,)))
        self._table.move(slot, owner)
        self._link_to(owner)
        if is_probe:
            self._probe_where_it_has_slots(asked, link)
            return False
        self._held.refuse(slot, command)
        return True

    def _send_ahead(self, address: Address, command: Command) -> bool:
        """Send a command to where its key is, or would be, while its slot is still being moved there."""
        link = self._links.get(address)
        if link is None or command.redirects >= MAX_REDIRECTS:
            return False
        command.redirects += 1
        keep_in_time(command)
        # What is asked for holds for the next command only; nothing comes between the two.
        link.line.send(b"ASKING").add_done_callback(asyncio.Future.exception)  # seen
        link.line.put(command)
        return True


def _is_new(link: Link) -> bool:
    """Whether a link has not come so far as to succeed or fail."""
    return not link.listener.is_up and link.last_error is None


async def _ask_for_table(server: Server) -> SlotTable:
    answer = await server.ask("CLUSTER", "SLOTS")
    table = SlotTable()
    try:
        table.replace(answer, server.address)
    except ValueError as error:
        raise BackendUnavailable(f"Redis at {server}: {error}") from error
    if not table.owners():
        raise BackendUnavailable(f"Redis at {server} is in no cluster, or knows nobody who has a slot")
    return table
