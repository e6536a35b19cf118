"""A Redis Cluster: one link per shard. Channels move from link to link as the cluster moves their slots.

With sharded pub/sub a room is one channel, a channel lies in one slot, and one shard serves a slot. A slot that moves
takes its channels along. Redis tells a listener by a `sunsubscribe` that nobody asked for, and a publisher by `MOVED`,
and each only when it touches the slot. Whatever is told makes this node ask for the whole table again (`table.py`).
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import count
from random import shuffle

from redis.exceptions import ResponseError

from fastapi_rooms.backends.redis.dialing import Server
from fastapi_rooms.backends.redis.held import HeldCommands, keep_in_time
from fastapi_rooms.backends.redis.link import Link, Pace, ShardOwner
from fastapi_rooms.backends.redis.places import ClusterSeeds
from fastapi_rooms.backends.redis.publishing import Command
from fastapi_rooms.backends.redis.slots import Address, SlotTable, ahead_to, channel_in, moved_to, slot_of
from fastapi_rooms.backends.redis.table import TableKeeper
from fastapi_rooms.backends.redis.topology import TopologyOwner
from fastapi_rooms.backends.redis.unheard import UnheardChannels
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.tasks import end_tasks

MAX_REDIRECTS = 16
"""How often a command is sent on before it fails: servers may send it back and forth."""


class ClusterLinks(ShardOwner):
    """The topology of a cluster: links to all shards. See `Topology`.

    Args:
        seeds: Servers to ask first.
        pace: How long to wait.
        owner: Whom to tell.
        probe_channel: Returns the n-th of the channels of this node.
        mark: What its probes begin with.
    """

    keys_per_command = 1  # two keys may lie in different slots, and while a slot moves, in different places

    def __init__(
        self,
        seeds: ClusterSeeds,
        pace: Pace,
        owner: TopologyOwner,
        probe_channel: Callable[[int], bytes],
        mark: bytes,
    ) -> None:
        self._seeds = seeds
        self._pace = pace
        self._owner = owner
        self._probe_channel = probe_channel
        self._mark = mark
        self._table = SlotTable()
        self._keeper = TableKeeper(self._whom_to_ask, lambda: self.is_healthy, self._take_table, self._on_asked)
        self._links: dict[Address, Link] = {}
        self._addresses: dict[Link, Address] = {}  # of all links, also of those that are leaving
        self._leaving: dict[Link, asyncio.Task[None]] = {}  # their servers have no slot any more
        self._to_stop: set[Link] = set()  # none of the above any more, since `stop`
        self._wanted: dict[bytes, Link | None] = {}  # per channel, who listens to it; None: nobody has its slot
        self._unheard = UnheardChannels(pace.timeout, owner.on_repaired)
        self._held = HeldCommands(self._link_of)

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
        return self._keeper.last_error or BackendUnavailable("some slots of the cluster have no server")

    @property
    def probe_seconds(self) -> float | None:
        """How long the last probe of the slowest link took, in seconds; None: none was heard yet."""
        heard = [link.probe_seconds for link in self._links.values() if link.probe_seconds is not None]
        return max(heard, default=None)

    def start(self) -> None:
        """Ask for the table and begin to connect."""
        self._keeper.start()

    async def stop(self) -> None:
        """Hang up. Leaves no task."""
        await self._keeper.stop()
        await end_tasks(self._leaving.values())
        self._to_stop.update(self._addresses)
        for known in (self._links, self._leaving, self._addresses):
            known.clear()  # what is refused from here on is sent nowhere
        for link in list(self._to_stop):
            await link.stop()
            self._to_stop.discard(link)  # afterwards: a stop that was cancelled is called again
        self._unheard.stop()

    async def decided(self) -> None:
        """Wait until the first attempt to connect has succeeded or failed at every shard."""
        await self._keeper.asked()
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
        return (
            self.is_healthy
            and self._unheard.is_empty()
            and all(link.listener.is_settled() for link in self._links.values())
        )

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
            error = self._keeper.last_error or nobody
            failed.set_exception(BackendUnavailable(*error.args))  # each caller gets an exception of its own
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
            self._wanted.setdefault(channel, None)
            self._listen(channel)
            link = self._wanted[channel]
            if link is None:
                if self._keeper.has_asked:
                    self._unheard.miss(channel, datetime.now(UTC))
                continue
            unconfirmed = link.listener.want([channel])
            if unconfirmed or _is_new(link):
                futures.append(self._unheard.wait_for(channel))
        return futures

    def unwant(self, channels: Iterable[bytes]) -> None:
        """Stop wanting channels."""
        for channel in channels:
            link = self._wanted.pop(channel, None)
            self._unheard.forget(channel)
            if link is not None:
                link.listener.unwant([channel])

    # The table

    def _whom_to_ask(self) -> list[Server]:
        healthy = [address for address, link in self._links.items() if link.is_healthy]
        shuffle(healthy)  # one of them may be behind
        others = [address for address, link in self._links.items() if not link.is_healthy]
        template = self._seeds.servers[0]
        return [*(template.at(*address) for address in (*healthy, *others)), *self._seeds.servers]

    def _take_table(self, table: SlotTable) -> None:
        """Have links to exactly the servers with slots, and listen to every channel where its slot is."""
        self._table = table
        owners = table.owners()
        for address in owners:
            self._link_to(address)
        for link in self._addresses:
            self._held.hold_moved(link)
        for channel in self._wanted:
            self._listen(channel)
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

    def _on_asked(self) -> None:
        for channel, link in self._wanted.items():
            if link is None:
                self._unheard.miss(channel, datetime.now(UTC))
        self._owner.on_health()

    def _link_of(self, slot: int) -> Link | None:
        owner = self._table.owner(slot)
        return None if owner is None else self._links.get(owner)

    def _link_to(self, address: Address) -> None:
        if address not in self._links:
            server = self._seeds.servers[0].at(*address)
            link = Link(str(server), server.dial, self._pace, self, self._probe_at(address), self._mark, shards=self)
            self._links[address] = link
            self._addresses[link] = address
            link.start()

    def _probe_at(self, address: Address) -> bytes:
        """Return a channel of this node that lies in a slot of that server, if it has one."""
        return channel_in(self._table.slots_of(address), map(self._probe_channel, count()))

    def _probe_where_it_has_slots(self, address: Address, link: Link) -> None:
        if self._table.owner(slot_of(link.probe_channel)) != address:
            link.probe_by(self._probe_at(address))

    def _listen(self, channel: bytes) -> None:
        """Listen to a channel where its slot is."""
        old, new = self._wanted[channel], self._link_of(slot_of(channel))
        if new is old:
            return
        if old is not None:
            old.listener.unwant([channel])
            self._unheard.miss(channel, old.heard_since)
        self._wanted[channel] = new
        if new is not None:
            new.listener.want([channel])
        else:
            self._unheard.let_go([channel])

    # What links tell

    def on_health(self, link: Link) -> None:
        """Ask who took over from a server that is lost."""
        if not link.is_healthy:
            self._keeper.expire()
            self._unheard.let_go([channel for channel in self._unheard.awaited() if self._wanted[channel] is link])
        self._owner.on_health()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Pass it on."""
        self._owner.on_message(channel, payload)

    def on_repaired(self, link: Link, since: datetime) -> None:
        """Pass it on, with all that this link listens to."""
        channels = [channel for channel, listening in self._wanted.items() if listening is link]
        if channels:
            self._owner.on_repaired(since, channels)

    def on_taken(self, link: Link, channel: bytes) -> None:
        """Remember since when a channel may miss something, even if its slot is back before the table is asked for."""
        if channel in self._wanted:
            self._unheard.miss(channel, link.heard_since)

    def on_confirmed(self, channel: bytes) -> None:
        """Take note that a channel is heard."""
        self._unheard.hear(channel)

    def on_moved(self, link: Link) -> None:  # noqa: ARG002 - the whole table is asked for
        """Ask for the table."""
        self._keeper.expire()

    def on_refused(self, link: Link, command: Command, error: ResponseError) -> bool:
        """Send a command to where its slot is now. That is no repetition: the server that refused it did nothing."""
        self._keeper.expire()
        asked = self._addresses.get(link)
        if asked is not None and (ahead := ahead_to(error, asked)) is not None:
            return self._send_ahead(ahead, command)
        now_at = None if asked is None else moved_to(error, asked)
        if asked is None or now_at is None or now_at == asked or command.redirects >= MAX_REDIRECTS:
            return False
        slot = slot_of(command.words[1])
        is_probe = command.words[1] == link.probe_channel
        if slot not in self._held:
            self._held.hold(slot, link, *(() if is_probe else (command,)))
        self._table.move(slot, now_at)
        self._link_to(now_at)
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
        # ASKING holds for the next command only, and nothing comes between the two.
        link.line.send(b"ASKING").add_done_callback(asyncio.Future.exception)  # seen
        link.line.put(command)
        return True


def _is_new(link: Link) -> bool:
    """Whether a link is still connecting for the first time."""
    return not link.listener.is_up and link.last_error is None
