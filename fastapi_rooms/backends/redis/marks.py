"""What probes begin with: by its mark a node knows those of its own, of this start, from those of anybody else.

A probe is its mark and a number. The mark is made by chance at the start, since whatever was made before may be the
same in a process that was copied: that is how two nodes with one id find each other.
"""

import re
from secrets import token_hex

_PROBE = re.compile(rb"[0-9a-f]{16}:[0-9]{1,20}")


def new_mark() -> bytes:
    """Return a mark that nobody else has."""
    return f"{token_hex(8)}:".encode()


def is_probe(payload: bytes) -> bool:
    """Return whether somebody's probe looks like that."""
    return _PROBE.fullmatch(payload) is not None
