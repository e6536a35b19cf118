"""Which server of a Redis Cluster has which slot."""

from collections.abc import Iterable
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError

Address = tuple[str, int]

SLOTS = 16_384
MAX_PORT = 65_535


def slot_of(channel: bytes) -> int:
    """Return the slot of a channel. Our channels have no hash tag, so the whole name counts."""
    return int(key_slot(channel))


class SlotTable:
    """The owners of all slots, as one server of the cluster told them."""

    def __init__(self) -> None:
        self._owners: list[Address | None] = [None] * SLOTS

    def owner(self, slot: int) -> Address | None:
        """Return the owner of a slot; None if it has none."""
        return self._owners[slot]

    def owners(self) -> frozenset[Address]:
        """Return all servers that have a slot."""
        return frozenset(owner for owner in self._owners if owner is not None)

    def slots_of(self, owner: Address) -> frozenset[int]:
        """Return the slots of a server."""
        return frozenset(slot for slot, one in enumerate(self._owners) if one == owner)

    def is_complete(self) -> bool:
        """Return whether every slot has an owner."""
        return None not in self._owners

    def move(self, slot: int, owner: Address) -> None:
        """Take note that a slot has another owner now."""
        self._owners[slot] = owner

    def replace(self, answer: Any, asked: Address) -> None:
        """Take over what a server said to CLUSTER SLOTS.

        Args:
            answer: `[[first, last, [host, port, …], replicas…], …]`.
            asked: The server that said it. One that does not know its own name leaves the host empty.

        Raises:
            ValueError: It is no such answer. The table stays as it was.
        """
        owners: list[Address | None] = [None] * SLOTS
        try:
            for first, last, (host, port, *_), *_replicas in answer:
                owner = host.decode() if host else asked[0], int(port)
                owners[_checked(first, last, owner)] = [owner] * (last + 1 - first)
        except (TypeError, AttributeError, ValueError, OverflowError) as error:  # int(inf) overflows
            raise ValueError(f"no answer to CLUSTER SLOTS: {error}") from error
        self._owners = owners


def _checked(first: int, last: int, owner: Address) -> slice:
    if not (0 <= first <= last < SLOTS and 0 < owner[1] <= MAX_PORT):
        raise ValueError(f"slots {first}-{last} at port {owner[1]}")
    return slice(first, last + 1)


def moved_to(error: ResponseError, asked: Address) -> Address | None:
    """Return where a slot is, if an error says that it has moved.

    Args:
        error: What a server answered.
        asked: The server that answered. One that does not know the name of the other leaves the host empty.
    """
    return _place_in(error, asked) if isinstance(error, MovedError) else None


def ahead_to(error: ResponseError, asked: Address) -> Address | None:
    """Return where a key is, if an error says that it has moved ahead of its slot. Arguments as for `moved_to`."""
    if not isinstance(error, AskError) or isinstance(error, MovedError):  # for redis-py every MovedError is an AskError
        return None
    return _place_in(error, asked)


def _place_in(error: AskError, asked: Address) -> Address | None:
    return (error.host or asked[0], error.port) if 0 < error.port <= MAX_PORT else None


def channel_in(slots: frozenset[int], candidates: Iterable[bytes]) -> bytes:
    """Return the first of endless candidates that lies in one of the slots; without slots, the first of all."""
    return next(channel for channel in candidates if not slots or slot_of(channel) in slots)
