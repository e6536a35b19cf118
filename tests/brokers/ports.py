"""Ports that nobody takes while a server is away."""

import itertools
import os
import socket

# Below the ports that the kernel gives to outgoing connections: one that connects to a port of that range where nobody
# listens can meet itself. Each test process begins elsewhere.
_FIRST, _LAST = 10_000, 22_000
_numbers = itertools.cycle(range(_FIRST, _LAST))
for _ in range(os.getpid() * 37 % (_LAST - _FIRST)):
    next(_numbers)


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
