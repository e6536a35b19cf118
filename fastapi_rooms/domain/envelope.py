"""Envelopes: the form of a message between nodes.

A fixed header, the name of the target, the ids of those who are left out, then the bytes of the payload as they are:
nothing is escaped, copied into JSON or pickled. What is read comes from the network, so every length is checked.

| bytes | what |
|---|---|
| 2 | `fr` |
| 1 | version of this format: 1, or 2 if there are fields |
| 1 | content: 1 text, 2 bytes, 3 close, 4 join, 5 leave |
| 16 | origin: the `node_id` that published it |
| 1 | kind of target |
| 4 | length of the target's name in bytes |
| 4 | how many connections are left out |
| … | the name, in UTF-8 |
| 16 each | `connection_id`s |
| … | fields, in version 2 alone: two bytes say how long they are together; each is a byte for its number, two for the |
| | length of its value, and the value. 1 is a `traceparent`, 2 a `tracestate`, 3 the user who is left out |
| … | payload; of a close: two bytes of code, then the reason; of a join or leave, which are for users: the room |

Numbers are big-endian. A field is what may be missing: who does not know its number skips it, so that the next one
needs no other version: nodes that do not know the third tell that user, too. Without fields an envelope is of version 1
to the byte, which nodes that know no other version can read; what has fields is undecodable to them.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from fastapi_rooms.domain.connection_id import ConnectionId
from fastapi_rooms.domain.errors import ConfigurationError, MessageError
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.names import check_name

MAGIC = b"fr"
VERSION = 1
VERSION_WITH_FIELDS = 2
MAX_FIELD_BYTES = 512
"""Of a field that we know. W3C Trace Context, section 3.3.1.5, has a `tracestate` of that size carried."""

_HEADER = struct.Struct(">2sBB16sBII")
_CODE = struct.Struct(">H")
_FIELDS = struct.Struct(">H")
_FIELD = struct.Struct(">BH")
_ORIGIN = slice(4, 20)
_ID_BYTES = 16
_TEXT, _BYTES, _CLOSE, _JOIN, _LEAVE = 1, 2, 3, 4, 5
_TRACEPARENT, _TRACESTATE, _EXCLUDED_USER = 1, 2, 3


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


def connection_target(connection_id: ConnectionId) -> Target:
    """Return one connection, wherever it is."""
    return Target(TargetKind.CONNECTION, connection_id)


class TraceContext(NamedTuple):
    """In which trace, and by which span of it, something was published: the two headers of W3C Trace Context."""

    traceparent: str
    tracestate: str = ""


class UndecodableError(ValueError):
    """Bytes that are no envelope of a version that this code knows."""


class Envelope:
    """What a node tells the others: one message, close or move, for one target. Never changed after it was made.

    Attributes:
        origin: The `node_id` that published it.
        target: Who is reached.
        content: What they are sent, how they are closed, or where they go.
        excluded: The `connection_id`s left out, on every node.
        trace: Where it was published, if that is traced. A part that is longer than 512 bytes does not travel.
        excluded_user: The user left out, on every node; None: nobody.
    """

    __slots__ = ("_encoded", "content", "excluded", "excluded_user", "origin", "target", "trace")

    def __init__(
        self,
        origin: str,
        target: Target,
        content: Message | Close | Move,
        excluded: frozenset[str] = frozenset(),
        trace: TraceContext | None = None,
        excluded_user: str | None = None,
    ) -> None:
        self.origin = origin
        self.target = target
        self.content = content
        self.excluded = excluded
        self.trace = trace
        self.excluded_user = excluded_user
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
        elif isinstance(content, Move):
            kind, payload = (_JOIN if content.joins else _LEAVE), content.room.encode()
        else:
            kind, payload = (_TEXT if content.is_text else _BYTES), content.payload
        name = _encode_name(self.target.name)
        excluded = pack_ids(self.excluded)
        fields = _encode_fields(self.trace, self.excluded_user)
        version = VERSION_WITH_FIELDS if fields else VERSION
        header = _HEADER.pack(
            MAGIC, version, kind, bytes.fromhex(self.origin), self.target.kind, len(name), len(excluded)
        )
        return b"".join((header, name, *excluded, fields, payload))


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
    if magic != MAGIC or version not in (VERSION, VERSION_WITH_FIELDS):
        raise UndecodableError("no envelope of fastapi-rooms, or one of another version")
    name_end = _HEADER.size + name_bytes
    try:
        excluded, ids_end = unpack_ids(data, name_end, excluded_count)
    except ValueError as error:
        raise UndecodableError(str(error)) from error
    payload_start = ids_end
    trace = excluded_user = None
    if version == VERSION_WITH_FIELDS:
        fields, payload_start = _decode_fields(data, ids_end)
        trace, excluded_user = _decode_trace(fields), fields.get(_EXCLUDED_USER)
    try:
        target = Target(TargetKind(target_kind), _decode_name(data[_HEADER.size : name_end]))
        content = _decode_content(kind, target, data[payload_start:])
        user = None if excluded_user is None else excluded_user.decode()
    except (ValueError, ConfigurationError) as error:  # UnicodeDecodeError and InvalidName are ValueErrors
        raise UndecodableError(str(error)) from error
    return Envelope(origin.hex(), target, content, excluded, trace, user)


def _decode_content(kind: int, target: Target, payload: bytes) -> Message | Close | Move:
    if kind == _TEXT:
        payload.decode()  # a client would be closed with 1007 for it, whoever published it
        return Message(payload, is_text=True)
    if kind == _BYTES:
        return Message(payload, is_text=False)
    if kind == _CLOSE and len(payload) >= _CODE.size:
        (code,) = _CODE.unpack_from(payload)
        return Close(code, payload[_CODE.size :].decode())
    if kind in (_JOIN, _LEAVE) and target.kind is TargetKind.USER:
        return Move(check_name("room", payload.decode()), kind == _JOIN)
    raise UndecodableError("unknown content")


def _encode_fields(trace: TraceContext | None, excluded_user: str | None) -> bytes:
    """Return the fields with their length before them; nothing if there are none."""
    fields = b"" if trace is None else _encode_trace(trace)
    if excluded_user is not None:
        fields += _field(_EXCLUDED_USER, excluded_user.encode())
    return _FIELDS.pack(len(fields)) + fields if fields else b""


def _encode_trace(trace: TraceContext) -> bytes:
    """Return the fields of a trace. It is worth less than the message, so nothing in it can fail."""
    traceparent, tracestate = (part.encode("latin-1", "replace") for part in trace)
    if not 0 < len(traceparent) <= MAX_FIELD_BYTES:
        return b""
    fields = _field(_TRACEPARENT, traceparent)
    if 0 < len(tracestate) <= MAX_FIELD_BYTES:
        fields += _field(_TRACESTATE, tracestate)
    return fields


def _field(number: int, value: bytes) -> bytes:
    return _FIELD.pack(number, len(value)) + value


def _decode_fields(data: bytes, start: int) -> tuple[dict[int, bytes], int]:
    """Return the fields by their numbers, of which the last one counts, and where they end."""
    try:
        (size,) = _FIELDS.unpack_from(data, start)
        begin = start + _FIELDS.size
        end = begin + size
        if end > len(data):
            raise UndecodableError("shorter than its fields say")
        encoded = data[begin:end]
        fields = {}
        at = 0
        while at < size:
            number, value_bytes = _FIELD.unpack_from(encoded, at)
            at += _FIELD.size
            fields[number] = encoded[at : at + value_bytes]
            at += value_bytes
    except struct.error as error:
        raise UndecodableError("a field is cut off") from error
    if at > size:
        raise UndecodableError("a field is longer than all of them")
    return fields, end


def _decode_trace(fields: dict[int, bytes]) -> TraceContext | None:
    traceparent, tracestate = fields.get(_TRACEPARENT, b""), fields.get(_TRACESTATE, b"")
    if not 0 < len(traceparent) <= MAX_FIELD_BYTES:
        return None
    if len(tracestate) > MAX_FIELD_BYTES:
        tracestate = b""
    return TraceContext(traceparent.decode("latin-1"), tracestate.decode("latin-1"))


def _encode_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _decode_name(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def pack_ids(connection_ids: Iterable[str]) -> list[bytes]:
    """Return `connection_id`s as 16 bytes each; what is no id of ours is nobody's, on any node, and is left out."""
    return [packed for one in connection_ids if (packed := _pack_id(one)) is not None]


def unpack_ids(data: bytes, begin: int, count: int) -> tuple[frozenset[str], int]:
    """Return so many ids that begin there, and where they end.

    Raises:
        ValueError: The data is shorter.
    """
    end = begin + count * _ID_BYTES
    if end > len(data):
        raise ValueError("shorter than its header says")
    return frozenset(data[at : at + _ID_BYTES].hex() for at in range(begin, end, _ID_BYTES)), end


def _pack_id(connection_id: str) -> bytes | None:
    try:
        packed = bytes.fromhex(connection_id)
    except ValueError:
        return None
    return packed if len(packed) == _ID_BYTES else None
