"""How much waits between an outbox and its peer, where only the newest counts.

A write is done for us when the kernel has the bytes, and it takes up to some megabytes for a peer that is behind: old
values that nobody can take back, which the peer reads one by one before the newest. So under `drop_oldest` the kernel
takes less, and what does not fit waits where the next value replaces it.
"""

import socket
from contextlib import suppress
from typing import Any

UNSENT_BYTES = 16 * 1024
"""How much the kernel takes beyond what is on its way, and then the server as much again: enough to keep a line of a
hundred Mbit/s busy for the millisecond until the loop has its next turn."""
_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # where there is none (Windows), nothing can be done


def bound_unsent(transport: Any) -> bool:
    """Have little wait in the kernel and in the server's buffer; return whether that was possible.

    Left alone is what is no TCP, what is encrypted here, whose buffers are others, and what gives no socket.
    """
    if _LOWAT is None:
        return False
    with suppress(AttributeError, OSError):  # not the transport that we know; or it has gone
        if isinstance(transport.get_extra_info("sockname"), tuple) and transport.get_extra_info("sslcontext") is None:
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _LOWAT, UNSENT_BYTES)
            # Without the option this does nothing, since the kernel takes all; with it, this is what is left.
            transport.set_write_buffer_limits(UNSENT_BYTES)
            return True
    return False
