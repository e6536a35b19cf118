"""What the backend sees of Redis: one thing to publish to and to hear from, be it one server or many."""

import asyncio
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Protocol

from fastapi_rooms.backends.redis.link import Link, LinkOwner, Pace
from fastapi_rooms.backends.redis.places import OneServer, SentinelMaster
from fastapi_rooms.domain.errors import BackendUnavailable


class TopologyOwner(Protocol):
    """What a topology tells the backend. Nothing of it may block or raise."""

    def on_health(self) -> None:
        """Take note that `is_healthy` may have changed."""
        ...

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Take a message."""
        ...

    def on_repaired(self, since: datetime, channels: Collection[bytes]) -> None:
        """Take note that these channels are heard again, and may have missed something since then."""
        ...


class Topology(Protocol):
    """Finds the server of each channel and key, and has the links to all of them."""

    keys_per_command: int
    """How many keys one command may name. One server has to have them all."""

    @property
    def is_healthy(self) -> bool:
        """Whether every link is healthy."""
        ...

    @property
    def last_error(self) -> BackendUnavailable | None:
        """Why it is not healthy, as far as that is known."""
        ...

    @property
    def probe_seconds(self) -> float | None:
        """How long the last probe took, in seconds; with many links that of the slowest. None: none was heard yet."""
        ...

    def start(self) -> None:
        """Begin to connect."""
        ...

    async def stop(self) -> None:
        """Hang up. Leaves no task."""
        ...

    async def decided(self) -> None:
        """Wait until the first attempt to connect has succeeded or failed."""
        ...

    async def flush(self) -> None:
        """Wait until what was published has an answer or has failed."""
        ...

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[object]:
        """Publish; see `PublishLine.send`."""
        ...

    def send(self, word: bytes, key: bytes, *words: bytes) -> asyncio.Future[object]:
        """Send a command about keys; see `PublishLine.send`."""
        ...

    def want(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Want channels; see `Listener.want`."""
        ...

    def unwant(self, channels: Iterable[bytes]) -> None:
        """Stop wanting channels."""
        ...

    def is_settled(self) -> bool:
        """Return whether Redis has exactly the channels that are wanted."""
        ...


class OneLink(LinkOwner):
    """The topology of one server: everything goes there. See `Topology`."""

    keys_per_command = 500  # more in one piece would keep the server from others for too long

    def __init__(
        self, place: OneServer | SentinelMaster, pace: Pace, owner: TopologyOwner, probe_channel: bytes, mark: bytes
    ) -> None:
        self._owner = owner
        self._probe_channel = probe_channel
        is_replaced = place.is_replaced if isinstance(place, SentinelMaster) else None
        self._link = Link(str(place), place.dial, pace, self, probe_channel, mark, is_replaced=is_replaced)

    @property
    def is_healthy(self) -> bool:
        """Whether the link is."""
        return self._link.is_healthy

    @property
    def last_error(self) -> BackendUnavailable | None:
        """Why it is not healthy, as far as that is known."""
        return self._link.last_error

    @property
    def probe_seconds(self) -> float | None:
        """How long the last probe took; None: none was heard yet."""
        return self._link.probe_seconds

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    async def stop(self) -> None:
        """Hang up."""
        await self._link.stop()

    async def decided(self) -> None:
        """Wait until the first attempt to connect has succeeded or failed."""
        await self._link.decided()

    async def flush(self) -> None:
        """Wait until what was published has an answer or has failed."""
        await self._link.line.flush()

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[object]:
        """Publish; see `PublishLine.send`."""
        return self._link.publish(channel, payload)

    def send(self, word: bytes, key: bytes, *words: bytes) -> asyncio.Future[object]:
        """Send a command about keys; see `PublishLine.send`."""
        return self._link.line.send(word, key, *words)

    def want(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Want channels; see `Listener.want`."""
        return self._link.listener.want(channels)

    def unwant(self, channels: Iterable[bytes]) -> None:
        """Stop wanting channels."""
        self._link.listener.unwant(channels)

    def is_settled(self) -> bool:
        """Return whether Redis has exactly the channels that are wanted."""
        return self._link.listener.is_settled()

    def on_health(self, link: Link) -> None:  # noqa: ARG002 - there is only one
        """Pass it on."""
        self._owner.on_health()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Pass it on."""
        self._owner.on_message(channel, payload)

    def on_repaired(self, link: Link, since: datetime) -> None:
        """Pass it on, with all that is listened to."""
        self._owner.on_repaired(since, link.listener.wanted - {self._probe_channel})
