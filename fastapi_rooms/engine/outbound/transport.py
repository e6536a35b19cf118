"""What we use of the transport of a socket, and how far its peer is with what was written to it."""

import socket
import struct
from typing import Any, Protocol, TypeGuard


class Transport(Protocol):
    """What we use of asyncio's and uvloop's transports, which share no base class."""

    def abort(self) -> None:
        """Drop the buffer and end the socket."""
        ...

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the kernel has not taken."""
        ...

    def is_closing(self) -> bool:
        """Return whether it is closed or about to be."""
        ...

    def write(self, data: bytes) -> None:
        """Pass bytes to the kernel, or to the buffer if it takes no more."""
        ...


_TRANSPORT_METHODS = [name for name in vars(Transport) if not name.startswith("_")]


def is_transport(transport: object) -> TypeGuard[Transport]:
    """Return whether an object has what we use of a transport."""
    return all(callable(getattr(transport, name, None)) for name in _TRANSPORT_METHODS)


_BYTES_ACKED = struct.Struct("=120xQ")  # where Linux's struct tcp_info (linux/tcp.h) has tcpi_bytes_acked


def buffer_size(transport: Transport) -> int:
    """Return the bytes that the kernel has not taken from a transport, 0 once it is closed."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:
        return 0  # asyncio's TLS transport forgets what it stood on when it is closed twice, as uvicorn does


def acknowledged(transport: Any) -> int | None:
    """Return how many bytes the peer's kernel has taken so far; None where nobody tells (not TCP, not Linux).

    The size of the transport's buffer is no measure of progress: it stands still for seconds while a slow peer reads,
    since the kernel takes more only once a third of its own buffer is free, and others write to the transport, too.
    """
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        with socket.socket(fileno=socket.dup(descriptor)) as duplicate:
            info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        (acked,) = _BYTES_ACKED.unpack(info)
    except (AttributeError, OSError, struct.error):
        return None
    return int(acked)


def kernel_tells(transport: Any) -> bool:
    """Return whether `acknowledged` will have an answer; the kernel is asked once per process, for the first of TCP."""
    try:
        is_tcp = isinstance(transport.get_extra_info("sockname"), tuple)
    except AttributeError:
        return False
    return is_tcp and _kernel_tells_of_tcp(transport)


_answers: list[bool] = []  # whether the kernel of this process has told, once it was asked


def _kernel_tells_of_tcp(transport: Any) -> bool:
    if not _answers:
        _answers.append(acknowledged(transport) is not None)
    return _answers[0]


class Progress:
    """How much a peer has taken, for those who only want to know whether it grows."""

    __slots__ = ("_acked", "_held", "_shrunk", "_transport")

    def __init__(self, transport: Transport | None) -> None:
        self._transport = transport
        self._acked: int | None = None  # the last that the kernel told; None: it has told nothing
        self._held = 0  # the size of the transport's buffer when it was last looked at
        self._shrunk = 0  # by how much it was seen to shrink

    def taken(self, written: int) -> int:
        """Return a number that grows when the peer takes something, and hardly otherwise.

        Args:
            written: The bytes that were passed on so far.
        """
        if self._transport is None:
            return written
        acked = acknowledged(self._transport)
        if acked is None and self._acked is not None:
            acked = self._acked + 1  # it told before and does not now: nothing is held against the peer
        if acked is not None:
            self._acked = acked
            return acked
        held = buffer_size(self._transport)
        self._shrunk += max(0, self._held - held)
        self._held = held
        return written + self._shrunk
