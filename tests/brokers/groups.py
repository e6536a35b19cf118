"""Several servers that belong together: a cluster of three, and a master with a replica under three Sentinels."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from brokers.server import AT_ONCE, Broker, running

SLOTS = 16_384
WITHIN = 20.0
_AT_ONCE = "repl-diskless-sync-delay 0"  # otherwise a master waits 5 s for more replicas before it serves the first


class Cluster:
    """Masters that share the slots evenly, each with a replica if wanted."""

    def __init__(self, kind: str, folder: Path, *, replicas: bool = False) -> None:
        config = (
            "cluster-enabled yes",
            "cluster-node-timeout 1000",
            "cluster-require-full-coverage no",
            "cluster-replica-validity-factor 0",
            "cluster-allow-replica-migration no",  # a master without slots stays one
            _AT_ONCE,
        )
        self.masters = [Broker(kind, folder, *config) for _ in range(3)]
        self.replicas = [Broker(kind, folder, *config) for _ in range(3)] if replicas else []

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{broker.port}" for broker in self.masters)

    @contextlib.contextmanager
    def running(self) -> Iterator["Cluster"]:
        everybody = [*self.masters, *self.replicas]
        with running(*everybody):
            self._form()
            yield self

    def everywhere(self, *words: Any) -> None:
        """Send a command to all that run."""
        for one in (*self.masters, *self.replicas):
            with contextlib.suppress(redis.ConnectionError):
                one.call(*words)

    def node_id(self, broker: Broker) -> str:
        return broker.call("CLUSTER", "MYID")

    def owners(self, asked: Broker | None = None) -> dict[int, Broker]:
        """Who has which slot, as one of them says, or the first that is there."""
        by_port = {one.port: one for one in (*self.masters, *self.replicas)}
        for one in [asked] if asked else by_port.values():
            with contextlib.suppress(redis.RedisError):
                return {
                    slot: by_port[port]
                    for first, last, (_, port, *_), *_ in one.call("CLUSTER", "SLOTS")
                    for slot in range(first, last + 1)
                }
        raise AssertionError("nobody is there")

    def owner(self, slot: int) -> Broker:
        return self.owners()[slot]

    def move(self, slot: int, to: Broker) -> None:
        """Move a slot, which holds no keys."""
        self.move_all([slot], to)

    def move_all(self, slots: Iterable[int], to: Broker) -> None:
        """Move slots, which hold no keys."""
        owners = self.owners()
        by_source: dict[Broker, list[int]] = {}
        for slot in slots:
            if owners[slot] is not to:
                by_source.setdefault(owners[slot], []).append(slot)
        for source, moved in by_source.items():
            self._set_slots(to, moved, "IMPORTING", source)
            self._set_slots(source, moved, "MIGRATING", to)
            for one in (to, source, *(master for master in self.masters if master not in (to, source))):
                self._set_slots(one, moved, "NODE", to)

    def _set_slots(self, broker: Broker, slots: list[int], state: str, other: Broker) -> None:
        node_id = self.node_id(other)
        with broker.client.pipeline(transaction=False) as pipeline:
            for slot in slots:
                pipeline.execute_command("CLUSTER", "SETSLOT", slot, state, node_id)
            pipeline.execute()

    def shard_channels(self, broker: Broker) -> set[str]:
        return set(broker.call("PUBSUB", "SHARDCHANNELS"))

    def _form(self) -> None:
        for number, master in enumerate(self.masters):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            master.call("CLUSTER", "ADDSLOTSRANGE", first, last)
            master.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        everybody = [*self.masters, *self.replicas]
        for other in everybody[1:]:
            self.masters[0].call("CLUSTER", "MEET", "127.0.0.1", other.port)
        eventually(lambda: all(len(known(one)) == len(everybody) for one in everybody), "all know each other")
        for master, replica in zip(self.masters, self.replicas, strict=False):
            replica.call("CLUSTER", "REPLICATE", self.node_id(master))
        eventually(lambda: all("cluster_state:ok" in info(one) for one in everybody), "the cluster is up")
        eventually(
            lambda: all(
                replica.client.info("replication").get("master_link_status") == "up" for replica in self.replicas
            ),
            "replicas follow",
        )


def follows(replica: Broker) -> bool:
    """Whether a replica has what its master has."""
    return replica.client.info("replication").get("master_link_status") == "up"


def known(broker: Broker) -> list[str]:
    """The nodes that a node knows; the handshake with them is over."""
    raw = redis.Redis(port=broker.port, decode_responses=True, protocol=2, retry=AT_ONCE)
    with raw:
        raw.response_callbacks.clear()
        return [line for line in raw.execute_command("CLUSTER", "NODES").splitlines() if "handshake" not in line]


def info(broker: Broker) -> str:
    raw = redis.Redis(port=broker.port, decode_responses=True, protocol=2, retry=AT_ONCE)
    with raw:
        raw.response_callbacks.clear()
        return raw.execute_command("CLUSTER", "INFO")


class Sentinels:
    """A master with a replica, watched by three Sentinels that want two votes."""

    name = "kitchen"

    def __init__(self, kind: str, folder: Path) -> None:
        self.master = Broker(kind, folder, _AT_ONCE)
        self.replica = Broker(kind, folder, _AT_ONCE, f"replicaof 127.0.0.1 {self.master.port}")
        self.sentinels = [Broker(kind, folder, sentinel=True) for _ in range(3)]
        ids = {sentinel: uuid4().hex.ljust(40, "0") for sentinel in self.sentinels}
        for sentinel in self.sentinels:
            # They know each other from the start; finding each other takes them 2 s.
            sentinel.configure(
                f"sentinel myid {ids[sentinel]}",
                f"sentinel monitor {self.name} 127.0.0.1 {self.master.port} 2",
                f"sentinel down-after-milliseconds {self.name} 500",
                f"sentinel failover-timeout {self.name} 5000",
                f"sentinel known-replica {self.name} 127.0.0.1 {self.replica.port}",
                *(
                    f"sentinel known-sentinel {self.name} 127.0.0.1 {other.port} {known}"
                    for other, known in ids.items()
                    if other is not sentinel
                ),
            )

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Sentinels"]:
        with running(self.master, self.replica, *self.sentinels):
            eventually(lambda: follows(self.replica), "the replica follows")
            eventually(lambda: all(self._is_ready(one) for one in self.sentinels), "the Sentinels see all")
            yield self

    def master_port(self) -> int:
        """Whom the Sentinels name as master."""
        return int(self.sentinels[0].call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])

    def _is_ready(self, sentinel: Broker) -> bool:
        # Asked in words: redis-py 7.0 cannot do it by its own methods.
        master = sentinel.call("SENTINEL", "MASTER", self.name)
        replicas = sentinel.call("SENTINEL", "REPLICAS", self.name)
        others = sentinel.call("SENTINEL", "SENTINELS", self.name)
        told = [dict(zip(words[::2], words[1::2], strict=True)) for words in (master, *replicas, *others)]
        is_complete = (len(replicas), len(others)) == (1, 2)
        return is_complete and all(one["runid"] and "disconnected" not in one["flags"] for one in told)


def eventually(fact: Callable[[], Any], what: str, seconds: float = WITHIN) -> None:
    """Wait until something is true of servers, without an event loop."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)
