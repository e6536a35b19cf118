"""Names of Redis channels, and of the keys of the store.

Names of rooms and users are percent-encoded, so two names never give the same channel. What is left (letters, digits,
`_.-~%`) can form no pattern, no hash tag that picks a slot of a Redis Cluster, and none of our other channels. Keys are
encoded in the same way.
"""

from urllib.parse import quote

from fastapi_rooms.domain.envelope import Target, TargetKind

_LETTERS = {TargetKind.ALL: "all", TargetKind.CONNECTION: "all", TargetKind.ROOM: "room", TargetKind.USER: "user"}


class Channels:
    """The channels of one app.

    Args:
        key_prefix: What all of them begin with.
    """

    def __init__(self, key_prefix: str) -> None:
        self._prefix = key_prefix

    def of(self, target: Target) -> bytes:
        """Return the channel on which a target is reached. A connection is reached on the channel of everybody."""
        if target.kind in (TargetKind.ALL, TargetKind.CONNECTION):
            return f"{self._prefix}:all".encode()
        name = quote(target.name, safe="", errors="surrogatepass")
        return f"{self._prefix}:{_LETTERS[target.kind]}:{name}".encode()

    def of_node(self, node_id: str, number: int) -> bytes:
        """Return one of the channels to which a node alone listens. In a cluster it has one per shard."""
        return self.all_of_node(node_id) + b"%d" % number

    def all_of_node(self, node_id: str) -> bytes:
        """Return what the channels of a node begin with."""
        return f"{self._prefix}:node:{node_id}:".encode()

    def of_key(self, key: str) -> bytes:
        """Return the name in Redis of a key of the store."""
        return f"{self._prefix}:store:{quote(key, safe='', errors='surrogatepass')}".encode()
