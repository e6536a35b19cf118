"""All that a node has to do with one Redis server: a publishing line, a listener, and the proof that they work.

The proof is a probe. Every few seconds the node publishes to a channel of its own, on the line that carries every other
publish, and has to hear it in time. A connection that is up proves nothing.

                  a probe is heard
    UNDECIDED ───────────────────────▶ HEALTHY
        │                               │   ▲
        │ a side fails                  │   │ a probe is heard
        │                  a side fails │   │
        │                               ▼   │
        └─────────────────────────────▶ FAILED

A side fails when its connection cannot be made or is lost. A probe that is not heard in time ends both connections.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from time import perf_counter
from typing import Any, NoReturn, Protocol

from redis.exceptions import ResponseError

from fastapi_rooms.backends.redis.alarm import Alarm
from fastapi_rooms.backends.redis.dialing import check_role
from fastapi_rooms.backends.redis.lapses import Proof
from fastapi_rooms.backends.redis.listening import Listener, Sharded
from fastapi_rooms.backends.redis.publishing import Command, PublishLine
from fastapi_rooms.backends.redis.supervised import Dial
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")

LOOK_AGAIN_SECONDS = 0.1
"""A probe that is due is given this much more time, again and again, while the listener works off a backlog."""
MAX_BACKLOG_TIMEOUTS = 5
"""After so many time-outs a listener counts as deaf, however much it reads."""
FAILURE_PAUSE_SECONDS = 1.0
"""Before probing again after a failure that nobody expects, which may come back at once."""


class Health(Enum):
    """What is known of a link. See the module for the transitions."""

    UNDECIDED = "no probe was heard yet, and nothing has failed"
    HEALTHY = "the last probe was heard, and nothing has failed since"
    FAILED = "something has failed, and no probe was heard since"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a link waits, in seconds."""

    timeout: float
    """How long for an answer, and for the probe to be heard."""
    probe_interval: float
    """How long between two probes."""


class LinkOwner(Protocol):
    """What a link calls. Nothing of it may block or raise."""

    def on_health(self, link: "Link") -> None:
        """Take note that the link became healthy, or that something failed: also if something had failed before."""
        ...

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Take a message."""
        ...

    def on_repaired(self, link: "Link", since: datetime) -> None:
        """Take note that the link hears again, and may have missed something since then on each of its channels."""
        ...


class ShardOwner(LinkOwner, Protocol):
    """What a link to one shard of a cluster calls beside that."""

    def on_refused(self, link: "Link", command: Command, error: ResponseError) -> bool:
        """Take care of a command that was answered with an error. Returns False if the command is to fail."""
        ...

    def on_moved(self, link: "Link") -> None:
        """Take note that another shard has a channel that this link wants."""
        ...

    def on_confirmed(self, channel: bytes) -> None:
        """Take note that a channel is heard from now on."""
        ...

    def on_taken(self, link: "Link", channel: bytes) -> None:
        """Take note that a channel was heard, and is not heard any more."""
        ...


class Link:
    """Publishes to one server and hears it.

    Args:
        name: Where it leads, for logs and names of tasks.
        dial: Makes a fresh connection to the server.
        pace: How long to wait.
        owner: Whom to tell.
        probe_channel: A channel that no other node listens to.
        mark: What its probes begin with.
        is_replaced: Returns whether another server has become master in place of the one at an address. If it is given,
            the server has to be a master. Every probe then asks the server for its role and calls this function, since
            a server that was replaced goes on answering.
        shards: Whom to tell about a shard. If it is given, sharded channels are used.
    """

    def __init__(
        self,
        name: str,
        dial: Dial,
        pace: Pace,
        owner: LinkOwner,
        probe_channel: bytes,
        mark: bytes = b"",
        *,
        is_replaced: Callable[[tuple[Any, Any]], Awaitable[bool]] | None = None,
        shards: ShardOwner | None = None,
    ) -> None:
        self.name = name
        self._pace = pace
        self._owner = owner
        self.probe_channel = probe_channel
        self._is_replaced = is_replaced
        self._publish_word = b"PUBLISH" if shards is None else b"SPUBLISH"
        self.line = PublishLine(
            f"fastapi_rooms publishing to {name}",
            dial,
            self._on_change,
            pace.timeout,
            None if shards is None else lambda command, error: shards.on_refused(self, command, error),
        )
        self.listener = Listener(
            f"fastapi_rooms listening to {name}",
            dial,
            self._on_change,
            pace.timeout,
            self._on_message,
            None
            if shards is None
            else Sharded(lambda: shards.on_moved(self), shards.on_confirmed, partial(shards.on_taken, self)),
        )
        self._changed = asyncio.Event()  # a side was made or lost or has caught up, or it is time for a probe
        self._health = Health.UNDECIDED
        self._decided = asyncio.Event()  # it is not undecided any more
        self._mark = mark
        self._probes = 0  # how many there were
        self._token: bytes | None = None  # of the last one; None: there was none
        self._probe: asyncio.Future[None] | None = None  # what waits for the probe to be heard; None: nothing does
        self._probe_due = 0.0
        self._probed_at = 0.0  # when it was published, by the performance counter
        self.probe_seconds: float | None = None  # how long the last one took that was heard; None: none was yet
        self._alarm = Alarm(self._due, self._on_silence)
        self._failures_said = Seldom()
        self._task: asyncio.Task[None] | None = None  # None: not started, or stopped

    @property
    def is_healthy(self) -> bool:
        """Whether the last probe was heard, and nothing has failed since."""
        return self._health is Health.HEALTHY

    @property
    def last_error(self) -> BackendUnavailable | None:
        """Why it is not healthy, as far as that is known."""
        return self.line.last_error or self.listener.last_error

    @property
    def heard_since(self) -> datetime:
        """What was published before that has been heard, or lies in a gap that was reported."""
        return self.listener.lapses.heard_since

    def start(self) -> None:
        """Begin to connect."""
        self.listener.want([self.probe_channel])
        self.line.start()
        self.listener.start()
        self._task = asyncio.get_running_loop().create_task(
            self._watch(), name=f"fastapi_rooms watching {self.name}", context=Context()
        )

    async def stop(self) -> None:
        """Hang up. Leaves no task."""
        if self._task is not None:
            await end_tasks([self._task])
            self._task = None
        self._alarm.stop()
        await self.line.stop()
        await self.listener.stop()

    async def decided(self) -> None:
        """Wait until the link is not undecided any more."""
        await self._decided.wait()

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[object]:
        """Publish; see `PublishLine.send`."""
        return self.line.send(self._publish_word, channel, payload)

    def publishing(self, channel: bytes, payload: bytes) -> Command:
        """Make the command that `publish` sends, and do not send it."""
        return self.line.make(self._publish_word, channel, payload)

    def probe_by(self, channel: bytes) -> None:
        """Probe by another channel from now on."""
        if channel != self.probe_channel:
            self.listener.want([channel])
            self.listener.unwant([self.probe_channel])
            self.probe_channel = channel

    # Health

    def _on_change(self) -> None:
        """Look at both sides after one of them has changed."""
        self._changed.set()
        if self._is_ready():
            return
        if self._probe is not None and not self._probe.done():
            self._probe.set_exception(BackendUnavailable("the connection was lost before the probe was heard"))
        if self.last_error is not None:
            self.listener.lapses.fail()
            self.listener.doubt()  # it may be up, and yet hang on a server that is silent
            self._become(Health.FAILED)

    def _become(self, health: Health) -> None:
        self._health = health
        self._decided.set()
        self._owner.on_health(self)

    def _is_ready(self) -> bool:
        return self.line.is_up and self.listener.is_hearing

    async def _watch(self) -> None:
        """Probe, whatever comes of it: without probes nobody would notice that this node is deaf."""
        while True:
            try:
                await self._probe_always()
            except Exception as bug:
                if self._failures_said.is_due(asyncio.get_running_loop().time()):
                    logger.exception("watching %s failed; connecting anew (said once a minute)", self.name)
                reason = f"a probe failed: {bug!r}"
                self.line.drop(reason)
                self.listener.drop(reason)
                await asyncio.sleep(FAILURE_PAUSE_SECONDS)

    async def _probe_always(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        while True:
            if self._is_replaced is not None and not (self.line.is_up and self.listener.is_up):
                # Another server may be master by now. Both sides ask, so that none stays with the old one.
                self.line.drop("the listener lost its connection")
                self.listener.drop("the publisher lost its connection")
            while not self._is_ready():
                self._changed.clear()
                await self._changed.wait()
            proof = self.listener.lapses.probe(datetime.now(UTC))
            channel = self.probe_channel
            try:
                await self._probe_once()
            except BackendUnavailable as error:
                if self._is_ready() and channel == self.probe_channel:
                    # Both connections are up, and yet this node is mute or deaf.
                    logger.debug("%s: %s", self.name, error)
                    self.line.drop(str(error))
                    self.listener.drop(str(error))
                continue
            self._prove(proof)
            self._changed.clear()
            timer = loop.call_later(self._pace.probe_interval, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

    async def _probe_once(self) -> None:
        """Publish to a channel of our own, and wait until it is heard.

        Raises:
            BackendUnavailable: It was not heard in time, or the server is not the master.
        """
        loop = asyncio.get_running_loop()
        self._probes += 1
        token = self._token = b"%s%d" % (self._mark, self._probes)
        self._probe = loop.create_future()
        self._probe_due = loop.time() + self._pace.timeout
        self._alarm.set()
        try:
            for confirmed in self.listener.await_confirmed([self.probe_channel]):
                await asyncio.shield(confirmed)
            self._probed_at = perf_counter()  # the clock of uvloop counts whole milliseconds
            answers = [self.publish(self.probe_channel, token)]
            if self._is_replaced is not None:
                answers.append(self.line.send(b"ROLE"))
            _, *roles = await asyncio.gather(*answers)
            for role in roles:
                check_role(role)
            if self._is_replaced is not None and await self._is_replaced(self.line.address):
                raise BackendUnavailable("another server is master now")
            await self._probe
        finally:
            if self._probe.done() and not self._probe.cancelled():
                self._probe.exception()  # seen, also if something else failed first
            self._probe = None
            self._alarm.stop()

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        if channel != self.probe_channel or payload != self._token:
            self._owner.on_message(channel, payload)
        elif self._probe is not None and not self._probe.done():
            self.probe_seconds = perf_counter() - self._probed_at
            self._probe.set_result(None)

    def _due(self) -> float | None:
        if self._probe is None or self._probe.done():
            return None
        now = asyncio.get_running_loop().time()
        latest = self._probe_due + MAX_BACKLOG_TIMEOUTS * self._pace.timeout
        if self._probe_due - LOOK_AGAIN_SECONDS < now < latest and self.listener.is_behind:
            # What it reads has arrived before the probe. Whoever hangs up now loses what is still unread.
            return now + LOOK_AGAIN_SECONDS
        return self._probe_due

    def _on_silence(self) -> None:
        assert self._probe is not None, "nothing is due without a probe under way"
        self._probe.set_exception(
            BackendUnavailable(f"Redis took what was published, but it was not heard within {self._pace.timeout:g} s")
        )

    def _prove(self, proof: Proof) -> None:
        """Take note of a probe that was heard."""
        self.line.prove()
        self.listener.prove()
        since = self.listener.lapses.prove(proof)
        if not self.is_healthy:
            self._become(Health.HEALTHY)
        if since is not None:
            self._owner.on_repaired(self, since)
