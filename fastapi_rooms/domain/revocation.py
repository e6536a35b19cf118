"""That a user was closed on all nodes: what is kept of it for nodes that were cut off.

| bytes | what |
|---|---|
| 8 | when, in seconds since the epoch, a double |
| 2 | the close code |
| 4 | how many connections were left out; only under the key of those closes that leave out somebody |
| 16 each | their `connection_id`s; the same |
| … | the reason, in UTF-8 |

Numbers are big-endian.

A close that leaves out somebody has a key of its own. Under one key it would take the place of an earlier close of
everybody, and whom it leaves out would escape that one. So a close of everybody counts whatever comes after it, and of
two that leave out different connections the later one counts. Nodes of a version that knows one key go on reading that
one. They hear of the others, and do not learn of them if they were cut off.
"""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from fastapi_rooms.domain.envelope import pack_ids, unpack_ids
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import Close

_HEAD = struct.Struct(">dH")
_COUNT = struct.Struct(">I")


class UnreadableError(ValueError):
    """Bytes that are no revocation."""


class Revocation(NamedTuple):
    """A user was closed."""

    at: datetime
    """When, in UTC. Connections that are younger are none of its business."""
    close: Close
    """How."""
    excluded: frozenset[str] = frozenset()
    """The `connection_id`s left out."""

    def ends(self, since: datetime, connection_id: str | None = None) -> bool:
        """Return whether it ends what has been there since then: a connection, or something else of the user."""
        return self.at >= since and connection_id not in self.excluded

    def encode(self) -> bytes:
        """Return it as bytes, for `key_for`."""
        packed = pack_ids(self.excluded)
        ids = b"".join((_COUNT.pack(len(packed)), *packed)) if packed else b""
        return _HEAD.pack(self.at.timestamp(), self.close.code) + ids + self.close.reason.encode()

    def key_for(self, user_id: str) -> str:
        """Return under which key it is kept."""
        return revocation_keys(user_id)[bool(pack_ids(self.excluded))]


def revocation_keys(user_id: str) -> tuple[str, str]:
    """Return under which keys is kept that a user was closed, and that he was but for some connections."""
    return f"closed:{user_id}", f"closed-others:{user_id}"


def decode_revocations(values: Sequence[bytes | None]) -> list[Revocation]:
    """Return the revocations that are kept under the two keys of a user.

    Raises:
        UnreadableError: One of the values is none.
    """
    return [decode_revocation(value, leaves_out=bool(at)) for at, value in enumerate(values) if value is not None]


def decode_revocation(value: bytes, *, leaves_out: bool = False) -> Revocation:
    """Return the revocation that these bytes are; it `leaves_out` somebody if it is kept under the second key.

    Raises:
        UnreadableError: They are none.
    """
    try:
        at, code = _HEAD.unpack_from(value)
        end, excluded = _HEAD.size, frozenset[str]()
        if leaves_out:
            (count,) = _COUNT.unpack_from(value, end)
            end += _COUNT.size
            excluded, end = unpack_ids(value, end, count)
        return Revocation(datetime.fromtimestamp(at, UTC), Close(code, value[end:].decode()), excluded)
    except (struct.error, ValueError, OverflowError, OSError, ConfigurationError) as error:
        raise UnreadableError(str(error)) from error
