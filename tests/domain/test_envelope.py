"""Envelopes: the format between nodes, and that nothing which arrives can do more than be dropped."""

import contextlib
import io
import pickle
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastapi_rooms.domain.close_codes import MAX_REASON_BYTES
from fastapi_rooms.domain.envelope import (
    EVERYBODY,
    Envelope,
    Target,
    TargetKind,
    UndecodableError,
    check_size,
    connection_target,
    decode,
    is_from,
    room_target,
    user_target,
)
from fastapi_rooms.domain.errors import MessageError
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.domain.move import Move

examples = settings(max_examples=150, deadline=None)

ORIGIN = "00112233445566778899aabbccddeeff"
ONE = "0123456789abcdef0123456789abcdef"
HEADER_BYTES = 29

ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
anything = st.text(st.characters(codec=None, categories=None))  # lone surrogates, too
targets = st.builds(Target, st.sampled_from(TargetKind), anything)
texts = st.text().map(lambda text: Message(text.encode(), is_text=True))
blobs = st.binary().map(lambda data: Message(data, is_text=False))
codes = st.sampled_from([1000, 1001, 1002, 1003, 1007, 1012, 1014, 3000, 3999, 4000, 4999])
closes = st.builds(Close, codes, anything)
names = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=255)
left_out = {"excluded": st.frozensets(ids, max_size=5), "excluded_user": st.none() | names}
moves = st.builds(Envelope, ids, st.builds(user_target, names), st.builds(Move, names, st.booleans()))
envelopes = st.builds(Envelope, ids, targets, texts | blobs | closes, **left_out) | moves


def plain(envelope):
    content = envelope.content
    if isinstance(content, Close):
        content = content.code, content.reason
    elif isinstance(content, Message):
        content = content.is_text, content.payload
    return envelope.origin, envelope.target, content, envelope.excluded, envelope.excluded_user


def text(payload=b"hello"):
    return Message(payload, is_text=True)


def raw(magic=b"fr", version=1, content=1, kind=1, name=b"r", excluded=b"", payload=b"p", **lengths):
    """An envelope by hand, with lengths that may lie."""
    name_bytes = lengths.get("name_bytes", len(name))
    count = lengths.get("count", len(excluded) // 16)
    header = struct.pack(">2sBB16sBII", magic, version, content, bytes.fromhex(ORIGIN), kind, name_bytes, count)
    return header + name + excluded + payload


# Round trips


@examples
@given(envelopes)
def test_what_is_decoded_is_what_was_encoded(envelope):
    decoded = decode(envelope.encode())
    assert plain(decoded) == plain(envelope)
    assert isinstance(decoded.target.kind, TargetKind)
    assert decoded.encode()[:HEADER_BYTES] == envelope.encode()[:HEADER_BYTES]


@examples
@given(targets, targets)
@example(Target(TargetKind.ROOM, "a"), Target(TargetKind.USER, "a"))
@example(Target(TargetKind.ROOM, "é"), Target(TargetKind.ROOM, "e\u0301"))
def test_two_targets_never_look_alike(one, other):
    assert (Envelope(ORIGIN, one, text()).encode() == Envelope(ORIGIN, other, text()).encode()) is (one == other)


@examples
@given(envelopes, ids)
def test_an_envelope_tells_whose_it_is_without_being_decoded(envelope, other):
    assert is_from(envelope.encode(), bytes.fromhex(envelope.origin))
    assert is_from(envelope.encode(), bytes.fromhex(other)) is (other == envelope.origin)


@pytest.mark.parametrize("data", [b"", b"fr", b"fr\x01\x01" + bytes(15)])
def test_what_is_too_short_is_from_nobody(data):
    assert not is_from(data, bytes.fromhex(ORIGIN))
    assert not is_from(data, bytes(16))


def test_the_targets_have_short_names():
    assert room_target("x") == (TargetKind.ROOM, "x")
    assert user_target("x") == (TargetKind.USER, "x")
    assert connection_target(ONE) == (TargetKind.CONNECTION, ONE)
    assert EVERYBODY == (TargetKind.ALL, "")


def test_the_bytes_of_a_payload_are_in_it_as_they_are():
    payload = bytes(range(256)) * 10
    assert Envelope(ORIGIN, EVERYBODY, Message(payload, is_text=False)).encode().endswith(payload)


def test_it_is_encoded_once():
    envelope = Envelope(ORIGIN, EVERYBODY, text())
    assert envelope.encode() is envelope.encode()


def test_what_is_no_id_is_left_out_of_those_who_are_left_out():
    excluded = frozenset({ONE, "", "me", "ab", ONE + "ab", "é" * 32, "\ud800", "g" * 32})
    assert decode(Envelope(ORIGIN, EVERYBODY, text(), excluded).encode()).excluded == {ONE}


# The format: nodes of different versions share a Redis


@pytest.mark.parametrize(
    ("envelope", "data"),
    [
        (
            Envelope(ORIGIN, room_target("kü"), text("gruß".encode()), frozenset({ONE})),
            (
                b"fr\x01\x01"
                b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                b"\x01\x00\x00\x00\x03\x00\x00\x00\x01"
                b"k\xc3\xbc"
                b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef"
                b"gru\xc3\x9f"
            ),
        ),
        (
            Envelope(ORIGIN, EVERYBODY, Message(b"\x00\xff", is_text=False)),
            (
                b"fr\x01\x02"
                b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                b"\x00\x00\x00\x00\x00\x00\x00\x00\x00"
                b"\x00\xff"
            ),
        ),
        (
            Envelope(ORIGIN, user_target("a"), Close(4001, "bye")),
            (
                b"fr\x01\x03"
                b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                b"\x02\x00\x00\x00\x01\x00\x00\x00\x00"
                b"a"
                b"\x0f\xa1bye"
            ),
        ),
        (
            Envelope(ORIGIN, connection_target("c"), text(b"")),
            (
                b"fr\x01\x01"
                b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                b"\x03\x00\x00\x00\x01\x00\x00\x00\x00"
                b"c"
            ),
        ),
        (
            Envelope(ORIGIN, user_target("a"), Move("kü", joins=True)),
            (
                b"fr\x01\x04"
                b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                b"\x02\x00\x00\x00\x01\x00\x00\x00\x00"
                b"a"
                b"k\xc3\xbc"
            ),
        ),
        (
            Envelope(ORIGIN, user_target("a"), Move("k", joins=False)),
            (
                b"fr\x01\x05"
                b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                b"\x02\x00\x00\x00\x01\x00\x00\x00\x00"
                b"a"
                b"k"
            ),
        ),
        (
            Envelope(ORIGIN, EVERYBODY, text(b"p"), excluded_user="ü"),
            (
                b"fr\x02\x01"
                b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                b"\x00\x00\x00\x00\x00\x00\x00\x00\x00"
                b"\x00\x05\x03\x00\x02\xc3\xbc"
                b"p"
            ),
        ),
    ],
    ids=["text", "bytes", "close", "empty", "join", "leave", "without a user"],
)
def test_the_layout_is_this_to_the_byte(envelope, data):
    assert envelope.encode() == data
    assert plain(decode(data)) == plain(envelope)


def test_by_hand_is_as_the_format_says():
    assert raw(name=b"r", payload=b"p") == Envelope(ORIGIN, room_target("r"), text(b"p")).encode()


# What is no envelope


@examples
@given(st.binary(max_size=200))
@example(b"")
@example(b"fr")
@example(b"fr\x01\x01")
def test_any_bytes_are_an_envelope_or_undecodable(data):
    with contextlib.suppress(UndecodableError):
        decode(data)


@examples
@given(envelopes, st.data())
def test_an_envelope_that_was_changed_is_an_envelope_or_undecodable(envelope, data):
    changed = bytearray(envelope.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UndecodableError):
        decode(bytes(changed))


@examples
@given(envelopes)
def test_what_was_cut_off_before_its_payload_is_undecodable(envelope):
    data = envelope.encode()
    name_bytes, count = struct.unpack_from(">II", data, HEADER_BYTES - 8)
    for size in range(HEADER_BYTES + name_bytes + 16 * count):
        with pytest.raises(UndecodableError):
            decode(data[:size])


class Bomb:
    exploded = False

    def __reduce__(self):
        return setattr, (Bomb, "exploded", True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_not_unpickled(protocol):
    data = io.BytesIO()
    pickle.Pickler(data, protocol).dump([Bomb(), "x" * 100])
    for pickled in (data.getvalue(), raw(payload=b"") + data.getvalue(), raw(content=9, payload=data.getvalue())):
        with contextlib.suppress(UndecodableError):
            decode(pickled)
    assert not Bomb.exploded


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "shorter than an envelope's header"),
        (b'{"type": "message", "room": "kitchen", "data": "hello"}', "no envelope of fastapi-rooms"),
        (raw(magic=b"FR"), "no envelope of fastapi-rooms"),
        (raw(version=0), "another version"),
        (raw(version=3), "another version"),
        (raw(content=0), "unknown content"),
        (raw(content=6), "unknown content"),
        (raw(content=4), "unknown content"),
        (raw(content=5, kind=0), "unknown content"),
        (raw(content=4, kind=2, payload=b""), "room is empty"),
        (raw(content=5, kind=2, payload=b"\n"), "control character"),
        (raw(content=4, kind=2, payload=b"\xff"), "utf-8"),
        (raw(version=2, payload=b"\x00\x04\x03\x00\x01\xff"), "utf-8"),
        (raw(kind=4), "4 is not a valid TargetKind"),
        (raw(name=b"\xff"), "utf-8"),
        (raw(payload=b"\xff"), "utf-8"),
        (raw(payload=b"\xed\xa0\x80"), "utf-8"),
        (raw(name_bytes=3), "shorter than its header says"),
        (raw(name_bytes=2**32 - 1), "shorter than its header says"),
        (raw(count=1), "shorter than its header says"),
        (raw(count=2**32 - 1), "shorter than its header says"),
        (raw(name_bytes=2**32 - 1, count=2**32 - 1), "shorter than its header says"),
        (raw(content=3, payload=b""), "unknown content"),
        (raw(content=3, payload=b"\x03"), "unknown content"),
        (raw(content=3, payload=b"\x03\xe8\xff"), "utf-8"),
        (raw(content=3, payload=b"\x03\xee"), "1006 is no close code"),
        (raw(content=3, payload=b"\x00\x00"), "0 is no close code"),
    ],
)
def test_what_is_no_envelope_says_why(data, why):
    with pytest.raises(UndecodableError, match=why):
        decode(data)


def test_the_reason_of_a_foreign_close_is_made_to_fit():
    close = decode(raw(content=3, payload=b"\x03\xe8" + b"x" * 1000)).content
    assert (close.code, close.reason) == (1000, "x" * MAX_REASON_BYTES)


# Sizes


def test_an_envelope_that_others_would_not_take_is_refused_at_the_sender():
    envelope = Envelope(ORIGIN, room_target("r"), text(b"x" * 70))
    check_size(envelope, HEADER_BYTES + 1 + 70)
    with pytest.raises(MessageError, match=r"100 bytes between nodes.*max_envelope_bytes \(99\).*raise RoomsSettings"):
        check_size(envelope, 99)


def test_an_envelope_that_is_too_large_is_not_looked_at():
    data = raw(payload=b"x" * 70)
    assert decode(data, 100).content.payload == b"x" * 70
    with pytest.raises(UndecodableError, match="100 bytes are more than max_envelope_bytes"):
        decode(data, 99)


# What others see of it


def test_its_repr_shows_no_payload():
    envelope = Envelope(ORIGIN, room_target("r"), text(b"secret"), frozenset({ONE}))
    assert repr(envelope) == f"<Envelope from {ORIGIN} to room: <Message text, 6 B>>"
