"""One connection of the client."""

import socket

from benchmarks.client.frames import CLOSE, COMPRESSED, OPCODE, PING, PONG, Inflater, client_frame, split
from benchmarks.client.room import Room, Tally

BUFFER = bytearray(1 << 18)
VIEW = memoryview(BUFFER)


class WrongMessage(Exception):  # noqa: N818 - it says what arrived
    """A server lost, repeated, reordered or changed a message; its figures would mean nothing."""


class Member:
    """Checks that every message arrives once, whole and in order.

    The cheap way is to compare what arrives with the stream of the room, in C, without looking at frames. What differs
    (a ping, a compressed frame) is parsed.
    """

    def __init__(self, sock: socket.socket, room: Room, tally: Tally, *, node: int, sampled: bool) -> None:
        self.socket = sock
        self.room = room
        self.node = node
        self.sampled = sampled
        self.received = 0
        self.is_open = False
        self._offset = 0  # bytes of the room's stream that have arrived
        self._carry: bytes | None = None  # the beginning of a frame, or of the answer; None: in step with the stream
        self._inflater: Inflater | None = None  # since the handshake, if the server agreed to permessage-deflate
        self._tally = tally
        self._unsent = b""

    def begin(self) -> None:
        """Start a phase."""
        self.received = self._offset = 0

    def send(self, data: bytes) -> None:
        """Send as much as the kernel takes, and keep the rest for `resume`."""
        self._unsent += data
        self.resume()

    def resume(self) -> None:
        """Go on with what was not sent."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            pass  # the server does not read; the next poll tries again

    def on_readable(self) -> bool:
        """Take what has arrived; False if the connection has ended."""
        try:
            size = self.socket.recv_into(BUFFER)
        except BlockingIOError:
            return True
        except ConnectionError:
            size = 0
        if not size:
            self.is_open = False
            return False
        self._tally.wire_bytes += size
        room = self.room
        if self.is_open and self._carry is None and room.stream.startswith(VIEW[:size], self._offset):
            self._offset += size
            received = self._offset // room.frame_size
            if received != self.received:
                room.advance(self, received)
        elif self.is_open:
            self._parse(bytes(VIEW[:size]))
        else:
            self._open(bytes(VIEW[:size]))
        return True

    def _open(self, data: bytes) -> None:
        answer, end, rest = ((self._carry or b"") + data).partition(b"\r\n\r\n")
        if not end:
            self._carry = answer
            return
        if not answer.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"the handshake was refused: {answer[:100]!r}")
        if b"permessage-deflate" in answer:
            self._inflater = Inflater(answer)
        self.is_open, self._carry = True, None
        self._tally.opened += 1
        if rest:
            self._parse(rest)

    def _parse(self, data: bytes) -> None:
        room = self.room
        if self._carry is None:  # the beginning of a frame was compared and not kept
            self._carry = bytes(room.stream[self.received * room.frame_size : self._offset])
        data = self._carry + data
        used, received = 0, self.received
        for first, body, end in split(data):
            used = end
            if first & OPCODE == PING:
                self.send(client_frame(body, PONG))
            elif first & OPCODE != CLOSE:
                received = self._check(first, body, received)
        if received != self.received:
            room.advance(self, received)
        self._carry = data[used:] or None
        self._offset = received * room.frame_size

    def _check(self, first: int, body: bytes, number: int) -> int:
        if first & COMPRESSED and self._inflater is not None:
            body = self._inflater.inflate(body)
        if body != self.room.expected(number):
            raise WrongMessage(f"message {number} of {self.room.name} was due, and not {body[:40]!r}")
        return number + 1
