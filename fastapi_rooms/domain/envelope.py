"""Envelopes: the form of a message between nodes.

A fixed header, the name of the target, the ids of those who are left out, then the bytes of the payload as they are:
nothing is escaped, copied into JSON or pickled. What is read comes from the network, so every length is checked.

| bytes | what |
|---|---|
| 2 | `fr` |
| 1 | version of this format |
| 1 | content: 1 text, 2 bytes, 3 close |
| 16 | origin: the `node_id` that published it |
| 1 | kind of target |
| 4 | length of the target's name in bytes |
| 4 | how many connections are left out |
| … | the name, in UTF-8 |
| 16 each | `connection_id`s |
| … | payload; of a close: two bytes of code, then the reason |

Numbers are big-endian.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

from fastapi_rooms.domain.errors import ConfigurationError, MessageError
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.names import check_name

MAGIC = b"fr"
VERSION = 1

_HEADER = struct.Struct(">2sBB16sBII")
_CODE = struct.Struct(">H")
_ORIGIN = slice(4, 20)
_ID_BYTES = 16
_TEXT, _BYTES, _CLOSE = 1, 2, 3


class TargetKind(IntEnum):
    """Kinds of targets; their numbers are part of the envelope's format."""

    ALL = 0
    ROOM = 1
    USER = 2
    CONNECTION = 3


class Target(NamedTuple):
    """Who is reached: everybody, the members of a room, a user on all devices, or one connection."""

    kind: TargetKind
    name: str = ""
    """The room, the `user_id` or the `connection_id`; empty for everybody."""


EVERYBODY = Target(TargetKind.ALL)


def room_target(room: str) -> Target:
    """Return the members of a room, on all nodes.

    Raises:
        ConfigurationError: It is no str.
        InvalidName: It cannot be the name of one.
    """
    return Target(TargetKind.ROOM, check_name("room", room))


def user_target(user_id: str) -> Target:
    """Return the connections of a user, on all nodes.

    Raises:
        ConfigurationError: It is no str.
        InvalidName: It cannot be the name of one.
    """
    return Target(TargetKind.USER, check_name("user_id", user_id))


def connection_target(connection_id: str) -> Target:
    """Return one connection, wherever it is."""
    return Target(TargetKind.CONNECTION, connection_id)


class UndecodableError(ValueError):
    """Bytes that are no envelope of a version that this code knows."""


class Envelope:
    """What a node tells the other nodes: one message or close, for one target. Never changed after it was made.

    Attributes:
        origin: The `node_id` that published it.
        target: Who is reached.
        content: What they are sent, or how they are closed.
        excluded: The `connection_id`s left out, on every node.
    """

    __slots__ = ("_encoded", "content", "excluded", "origin", "target")

    def __init__(
        self, origin: str, target: Target, content: Message | Close, excluded: frozenset[str] = frozenset()
    ) -> None:
        self.origin = origin
        self.target = target
        self.content = content
        self.excluded = excluded
        self._encoded: bytes | None = None  # built by the first `encode()`

    def __repr__(self) -> str:
        return f"<Envelope from {self.origin} to {self.target.kind.name.lower()}: {self.content!r}>"

    def encode(self) -> bytes:
        """Return the envelope as bytes."""
        if self._encoded is None:
            self._encoded = self._encode()
        return self._encoded

    def _encode(self) -> bytes:
        content = self.content
        if isinstance(content, Close):
            kind, payload = _CLOSE, _CODE.pack(content.code) + content.reason.encode()
        else:
            kind, payload = (_TEXT if content.is_text else _BYTES), content.payload
        name = _encode_name(self.target.name)
        # What is no id of ours is nobody's, on any node.
        excluded = [packed for one in self.excluded if (packed := _pack_id(one)) is not None]
        header = _HEADER.pack(
            MAGIC, VERSION, kind, bytes.fromhex(self.origin), self.target.kind, len(name), len(excluded)
        )
        return b"".join((header, name, *excluded, payload))


def check_size(envelope: Envelope, max_bytes: int) -> None:
    """Check that other nodes will take an envelope.

    Raises:
        MessageError: It is larger than that.
    """
    size = len(envelope.encode())
    if size > max_bytes:
        raise MessageError(
            f"the message takes {size} bytes between nodes, more than max_envelope_bytes ({max_bytes}): send a "
            "reference to it, or raise RoomsSettings(max_envelope_bytes=...) on all nodes"
        )


def is_from(data: bytes, origin: bytes) -> bool:
    """Return whether an envelope was published by the node with these 16 bytes of id, without decoding it."""
    return data[_ORIGIN] == origin


def decode(data: bytes, max_bytes: int | None = None) -> Envelope:
    """Return the envelope that these bytes are.

    Raises:
        UndecodableError: They are none, or one of a version that is not known here, or more than `max_bytes`.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise UndecodableError(f"{len(data)} bytes are more than max_envelope_bytes")
    try:
        magic, version, kind, origin, target_kind, name_bytes, excluded_count = _HEADER.unpack_from(data)
    except struct.error as error:
        raise UndecodableError("shorter than an envelope's header") from error
    if magic != MAGIC or version != VERSION:
        raise UndecodableError("no envelope of fastapi-rooms, or one of another version")
    name_end = _HEADER.size + name_bytes
    payload_start = name_end + excluded_count * _ID_BYTES
    if payload_start > len(data):
        raise UndecodableError("shorter than its header says")
    excluded = (data[at : at + _ID_BYTES].hex() for at in range(name_end, payload_start, _ID_BYTES))
    try:
        target = Target(TargetKind(target_kind), _decode_name(data[_HEADER.size : name_end]))
        content = _decode_content(kind, data[payload_start:])
    except (ValueError, ConfigurationError) as error:  # UnicodeDecodeError is a ValueError
        raise UndecodableError(str(error)) from error
    return Envelope(origin.hex(), target, content, frozenset(excluded))


def _decode_content(kind: int, payload: bytes) -> Message | Close:
    if kind == _TEXT:
        payload.decode()  # a client would be closed with 1007 for it, whoever published it
        return Message(payload, is_text=True)
    if kind == _BYTES:
        return Message(payload, is_text=False)
    if kind == _CLOSE and len(payload) >= _CODE.size:
        (code,) = _CODE.unpack_from(payload)
        return Close(code, payload[_CODE.size :].decode())
    raise UndecodableError("unknown content")


def _encode_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _decode_name(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def _pack_id(connection_id: str) -> bytes | None:
    try:
        packed = bytes.fromhex(connection_id)
    except ValueError:
        return None
    return packed if len(packed) == _ID_BYTES else None
