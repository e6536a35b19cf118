"""What a node holds when nothing goes on, and how that differs from before."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from brokers.server import Broker

from soak.nodes import Node

MEMORY = 24 << 20
"""By how many bytes a process may have grown since it was first at rest."""
TRACKED = 3_000
"""The same in objects that the garbage collector knows: caches fill up. A leak per visit is more."""
KINDS = ("fastapi_rooms.", "uvicorn.protocols.websockets", "websockets.", "starlette.websockets")


@dataclass(frozen=True)
class Rest:
    """One node at rest.

    Attributes:
        held: What has to be the same at the same number of clients, whatever has happened.
    """

    life: str
    held: dict[str, Any]
    tracked: int
    memory: int

    def complaints(self, before: "Rest") -> list[str]:
        """Say what is not as before."""
        found = [
            f"{self.life} holds {now} {what} instead of {then}"
            for what in sorted(before.held.keys() | self.held.keys())
            if (now := self.held.get(what, 0)) != (then := before.held.get(what, 0))
        ]
        if self.life == before.life and self.memory > before.memory + MEMORY:
            found.append(f"{self.life} has {self.memory >> 20} MiB instead of {before.memory >> 20}")
        if self.life == before.life and self.tracked > before.tracked + TRACKED:
            found.append(f"{self.life} has {self.tracked} objects instead of {before.tracked}")
        return found


async def look_at(node: Node) -> Rest:
    told = await node.get("/rest")
    stats, hooked = told["stats"], Counter(told["hooked"])
    held = {
        "connections": stats["connections"],
        "users": stats["users"],
        "messages that wait": stats["queued_messages"],
        "file descriptors": told["files"],
        "connections that the hooks know": hooked["connected"] - hooked["disconnected"],
        "memberships that the hooks know": hooked["joined"] - hooked["left"],
        "memberships": sum(told["rooms"].values()),
        "memberships by room": told["rooms"],
    }
    held |= {f"tasks called {name!r}": number for name, number in told["tasks"].items()}
    held |= {f"objects of {kind}": number for kind, number in told["objects"].items() if kind.startswith(KINDS)}
    return Rest(node.life.name, held, told["tracked"], told["memory"])


def look_at_broker(broker: Broker) -> dict[str, int]:
    """Return who is connected and subscribed to what, without the names of the nodes."""
    channels = sorted(broker.channels())
    counts = broker.call("PUBSUB", "NUMSUB", *channels) if channels else []
    held = Counter[str]()
    for channel, number in zip(counts[::2], counts[1::2], strict=True):
        held[f"subscriptions to {re.sub('node:[0-9a-f]+', 'node:*', channel)}"] += number
    for kind in ("pubsub", "normal"):
        held[f"{kind} connections"] = len(broker.clients(kind))
    return dict(held)
