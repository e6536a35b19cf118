"""Ports that nobody takes while a server is away."""

import fcntl
import itertools
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Below the ports that the kernel gives to outgoing connections: one that connects to a port of that range where nobody
# listens can meet itself.
_FIRST, _BLOCKS, _BLOCK = 10_000, 24, 400


def _claim() -> Iterator[int]:
    """Ports for this process alone: a server that was killed must find its port free when it is started again."""
    folder = Path(tempfile.gettempdir()) / "fastapi-rooms-test-ports"
    folder.mkdir(exist_ok=True)
    for block in range(_BLOCKS):
        claim = (folder / str(block)).open("a")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            claim.close()
            continue
        _claims.append(claim)  # until the process ends
        first = _FIRST + block * _BLOCK
        return itertools.cycle(range(first, first + _BLOCK))
    raise AssertionError(f"{_BLOCKS} processes test brokers at the same time: that is all there are ports for")


_claims = []
_numbers = _claim()


def free_port() -> int:
    """A port on which nobody listens; 10,000 above it is free, too, as a cluster's bus wants it."""
    while True:
        port = next(_numbers)
        if _is_free(port) and _is_free(port + 10_000):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
