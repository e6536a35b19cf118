"""The backend over Redis or Valkey."""

import asyncio
import logging
from collections.abc import Awaitable, Collection, Generator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi_rooms.backends.contract import Receiver
from fastapi_rooms.backends.redis import store
from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.backends.redis.cluster import ClusterLinks
from fastapi_rooms.backends.redis.link import Pace
from fastapi_rooms.backends.redis.marks import is_probe, new_mark
from fastapi_rooms.backends.redis.places import ClusterSeeds, Source, locate
from fastapi_rooms.backends.redis.topology import OneLink, Topology
from fastapi_rooms.domain.backend_state import BackendStatus, Gap
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, Target, TargetKind, UndecodableError, decode, is_from
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.tasks import HomeLoop

logger = logging.getLogger("fastapi_rooms")

LOG_SECONDS = 60.0
STOPPED = "the backend is stopped"
ELSEWHERE = (
    "use a backend on the loop on which it was started, and start it on another one when that has ended; two loops "
    "that run at once need one each"
)


class RedisBackend:
    """Carries envelopes by Redis pub/sub; in a Redis Cluster by sharded pub/sub. See `Backend` and `SupportsStore`.

    Args:
        source: A URL or a ready client of redis-py. Of the client, only address, credentials and TLS are used.
        settings: `key_prefix`, `publish_timeout`, `probe_interval` and `max_envelope_bytes` are used.

    Raises:
        ConfigurationError: The source leads nowhere.
    """

    def __init__(self, source: Source, settings: RoomsSettings | None = None) -> None:
        self._settings = settings if settings is not None else RoomsSettings()
        self._place = locate(source, self._settings.publish_timeout)
        self._channels = Channels(self._settings.key_prefix)
        self._targets: dict[bytes, Target] = {}  # what is wanted, by channel
        self._topology: Topology | None = None  # None: not started, or stopped
        self._retired: Topology | None = None  # it is being stopped, or a stop was cancelled before it was done
        self._home = HomeLoop(ELSEWHERE)  # settled on by start, left by stop
        self._receiver: Receiver  # set by start
        self._origin = b""  # set by start: the id of the node, by which it knows its own envelopes
        self._own_channels = b""  # set by start: what the channels for probes begin with
        self._mark = b""  # set by start: what its probes begin with
        self._connected = False
        self._degraded_since: datetime | None = datetime.now(UTC)
        self._was_connected = False  # since the start
        self._reconnects = 0
        self._gaps = 0
        self._undelivered = 0
        self._undecodable = 0
        self._undecodable_said = Seldom(LOG_SECONDS)
        self._twin_said = Seldom(LOG_SECONDS)

    def __repr__(self) -> str:
        return f"<RedisBackend {self._place}{'' if self._connected else ' (degraded)'}>"

    @property
    def status(self) -> BackendStatus:
        """The state as far as this node knows."""
        return BackendStatus(
            connected=self._connected,
            degraded_since=self._degraded_since,
            reconnects=self._reconnects,
            gaps=self._gaps,
            undelivered=self._undelivered,
            undecodable=self._undecodable,
            probe_seconds=None if self._topology is None else self._topology.probe_seconds,
        )

    async def start(self, node_id: str, receiver: Receiver, *, required: bool = False) -> None:
        """See `Backend.start`; waits at most `publish_timeout` for Redis."""
        if self._topology_here() is not None:
            return
        self._home.check()
        if self._topology is not None:
            await self._hang_up(self._topology)  # its loop ended without a stop
        await self._end_retired()
        self._home.settle()
        self._origin, self._receiver = bytes.fromhex(node_id), receiver
        self._own_channels = self._channels.all_of_node(node_id)
        self._mark = new_mark()
        self._was_connected = False
        pace = Pace(self._settings.publish_timeout, self._settings.probe_interval)
        topology = self._topology = self._make_topology(node_id, pace)
        topology.want(self._targets)
        topology.start()
        try:
            try:
                async with asyncio.timeout(pace.timeout):
                    await topology.decided()
            except TimeoutError:
                logger.debug("%s did not answer in time", self._place)
            self._check_start(topology, required=required)
        except BaseException:
            await self._hang_up(topology)  # unlike `stop`, it does not wait for what is under way
            raise

    def _check_start(self, topology: Topology, *, required: bool) -> None:
        if self._connected:
            return
        if required:
            raise BackendUnavailable(
                f"Redis ({self._place}) was not there within {self._settings.publish_timeout:g} s: "
                f"{topology.last_error or 'no answer'}. Mend that, or start with required=False, which connects when "
                "it can"
            ) from topology.last_error
        logger.warning(
            "starting degraded, %s is not there: %s", self._place, topology.last_error or "no answer in time"
        )

    async def stop(self) -> None:
        """See `Backend.stop`."""
        self._home.check()
        topology = self._topology
        if topology is None:
            await self._end_retired()
            return
        await topology.flush()
        await self._hang_up(topology)

    def publish(self, envelope: Envelope) -> Awaitable[object]:
        """See `Backend.publish`."""
        topology = self._topology_here()
        if topology is None:
            failed = _stopped()
            self._count(failed)
            return failed
        future = topology.publish(self._channels.of(envelope.target), envelope.encode())
        if future.done():
            self._count(future)  # now: whoever awaits it goes on within this tick
        else:
            future.add_done_callback(self._count)
        return future

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        """See `Backend.subscribe`."""
        channels = [self._channels.of(target) for target in targets]
        self._targets.update(zip(channels, targets, strict=True))
        topology = self._topology_here()
        waiting = [] if topology is None else topology.want(channels)
        return _Confirmations(waiting)

    def unsubscribe(self, targets: Collection[Target]) -> None:
        """See `Backend.unsubscribe`."""
        channels = [self._channels.of(target) for target in targets]
        for channel in channels:
            self._targets.pop(channel, None)
        if self._topology is not None:
            self._topology.unwant(channels)

    def put(self, key: str, value: bytes, seconds: float) -> Awaitable[object]:
        """See `SupportsStore.put`."""
        topology = self._topology_here()
        return _stopped() if topology is None else store.put(topology, self._channels.of_key(key), value, seconds)

    async def take(self, key: str) -> bytes | None:
        """See `SupportsStore.take`."""
        return await store.take(self._running_topology(), self._channels.of_key(key))

    async def peek(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `SupportsStore.peek`."""
        return await store.peek(self._running_topology(), [self._channels.of_key(key) for key in keys])

    def is_settled(self) -> bool:
        """Return whether Redis has confirmed exactly the channels that are wanted."""
        return self._topology is not None and self._topology.is_settled()

    def _topology_here(self) -> Topology | None:
        """Return what was started on this loop and not stopped.

        Raises:
            ConfigurationError: It was started on another loop, which runs.
        """
        topology = self._topology
        if topology is None:
            return None
        self._home.check()
        return topology if self._home.is_here() else None

    def _running_topology(self) -> Topology:
        topology = self._topology_here()
        if topology is None:
            raise BackendUnavailable(STOPPED)
        return topology

    def _make_topology(self, node_id: str, pace: Pace) -> Topology:
        if isinstance(self._place, ClusterSeeds):
            return ClusterLinks(self._place, pace, self, partial(self._channels.of_node, node_id), self._mark)
        return OneLink(self._place, pace, self, self._channels.of_node(node_id, 0), self._mark)

    async def _hang_up(self, topology: Topology) -> None:
        self._topology, self._retired = None, topology
        self._home.leave()
        self._connected = False
        self._degraded_since = datetime.now(UTC)
        await self._end_retired()

    async def _end_retired(self) -> None:
        if self._retired is not None:
            await self._retired.stop()
            self._retired = None

    def _count(self, published: asyncio.Future[Any]) -> None:
        if not published.cancelled() and published.exception() is not None:
            self._undelivered += 1

    # What the topology tells

    def on_health(self) -> None:
        """Take note that `is_healthy` of the topology may have changed."""
        topology = self._topology
        if topology is None or topology.is_healthy is self._connected:
            return
        self._connected = topology.is_healthy
        if not self._connected:
            self._degraded_since = datetime.now(UTC)
            logger.warning("degraded: %s; other nodes are out of reach until it is back", topology.last_error)
            return
        self._degraded_since = None
        if self._was_connected:
            self._reconnects += 1
            logger.warning("connected again: %s", self._place)
        self._was_connected = True

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Hand an envelope of another node to the receiver."""
        wanted = self._targets.get(channel)
        if wanted is None:
            if channel.startswith(self._own_channels):
                self._on_own_channel(channel, payload)
            return
        if is_from(payload, self._origin):
            return
        try:
            envelope = decode(payload, self._settings.max_envelope_bytes)
        except UndecodableError as error:
            self._drop(channel, error)
            return
        if envelope.target != wanted and (wanted, envelope.target.kind) != (EVERYBODY, TargetKind.CONNECTION):
            self._drop(channel, UndecodableError("it belongs on another channel"))
            return
        try:
            self._receiver.receive(envelope)
        except Exception:
            logger.exception("an envelope could not be delivered")

    def on_repaired(self, since: datetime, channels: Collection[bytes]) -> None:
        """Report a gap."""
        self._gaps += 1
        targets = frozenset(self._targets[channel] for channel in channels if channel in self._targets)
        try:
            self._receiver.missed(Gap(since, datetime.now(UTC), targets))
        except Exception:
            logger.exception("a gap could not be reported")

    def _on_own_channel(self, channel: bytes, payload: bytes) -> None:
        """Act on what only this node says and hears, and what is not the probe that is waited for."""
        if not is_probe(payload):
            self._drop(channel, UndecodableError("it is no probe"))
        elif not payload.startswith(self._mark) and self._twin_said.is_due(asyncio.get_running_loop().time()):
            logger.error(
                "another process has the id of this node, %s: each takes what the other says for its own echo, and "
                "drops it. The process was copied after the start, by a fork or from a snapshot of a machine. Restart "
                "it, and start the manager in each process for itself, as the lifespan of RoomsExtension does (said "
                "once a minute)",
                self._origin.hex(),
            )

    def _drop(self, channel: bytes, error: UndecodableError) -> None:
        self._undecodable += 1
        if self._undecodable_said.is_due(asyncio.get_running_loop().time()):
            logger.warning(
                "dropped what is no envelope on %s (%s); %d so far, said once a minute",
                channel.decode("utf-8", "replace"),
                error,
                self._undecodable,
            )


class _Confirmations:
    """Ready when all futures are. Cancelling the wait leaves them as they are, since others wait for them, too."""

    def __init__(self, futures: list[asyncio.Future[None]]) -> None:
        self._futures = futures

    def __await__(self) -> Generator[Any, None, None]:
        for future in self._futures:
            if not future.done():
                yield from asyncio.shield(future).__await__()


def _stopped() -> asyncio.Future[object]:
    """Return the future of whatever is sent while nothing is started: it has failed."""
    failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    failed.set_exception(BackendUnavailable(STOPPED))
    return failed
