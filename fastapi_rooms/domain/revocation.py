"""That a user was closed on all nodes: what is kept of it for nodes that were cut off.

| bytes | what |
|---|---|
| 8 | when, in seconds since the epoch, a double |
| 2 | the close code |
| … | the reason, in UTF-8 |

Numbers are big-endian.
"""

import struct
from datetime import UTC, datetime
from typing import NamedTuple

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import Close

_HEAD = struct.Struct(">dH")


class UnreadableError(ValueError):
    """Bytes that are no revocation."""


class Revocation(NamedTuple):
    """A user was closed."""

    at: datetime
    """When, in UTC. Connections that are younger are none of its business."""
    close: Close
    """How."""

    def encode(self) -> bytes:
        """Return it as bytes."""
        return _HEAD.pack(self.at.timestamp(), self.close.code) + self.close.reason.encode()


def decode_revocation(value: bytes) -> Revocation:
    """Return the revocation that these bytes are.

    Raises:
        UnreadableError: They are none.
    """
    try:
        at, code = _HEAD.unpack_from(value)
        return Revocation(datetime.fromtimestamp(at, UTC), Close(code, value[_HEAD.size :].decode()))
    except (struct.error, ValueError, OverflowError, OSError, ConfigurationError) as error:
        raise UnreadableError(str(error)) from error


def revocation_key(user_id: str) -> str:
    """Return under which key the revocation of a user is kept."""
    return f"closed:{user_id}"
