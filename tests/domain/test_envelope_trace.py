"""Envelopes that say where they were published: what travels, and what nodes of another version make of it."""

import contextlib
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.test_envelope import ONE, ORIGIN, envelopes, examples, ids, plain, raw, text
from fastapi_rooms.domain.envelope import (
    EVERYBODY,
    MAX_FIELD_BYTES,
    Envelope,
    TraceContext,
    UndecodableError,
    decode,
    is_from,
    room_target,
)
from fastapi_rooms.domain.messages import Message

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACED = TraceContext(PARENT, "rojo=00f067aa0ba902b7")

parts = st.text(st.characters(max_codepoint=255), min_size=1, max_size=MAX_FIELD_BYTES)
traces = st.builds(TraceContext, parts, parts | st.just(""))
traced_envelopes = st.builds(
    lambda envelope, trace: Envelope(envelope.origin, envelope.target, envelope.content, envelope.excluded, trace),
    envelopes,
    traces,
)


def field(number, value, size=None):
    return struct.pack(">BH", number, len(value) if size is None else size) + value


def with_fields(*fields, size=None, payload=b"p"):
    """An envelope by hand, with lengths that may lie."""
    joined = b"".join(fields)
    prefix = struct.pack(">H", len(joined) if size is None else size)
    return raw(version=2, payload=prefix + joined + payload)


def traced(trace):
    return decode(Envelope(ORIGIN, EVERYBODY, text(), trace=trace).encode()).trace


# Round trips


@examples
@given(traced_envelopes)
def test_what_is_decoded_is_what_was_encoded(envelope):
    decoded = decode(envelope.encode())
    assert plain(decoded) == plain(envelope)
    assert decoded.trace == envelope.trace


@examples
@given(traced_envelopes, ids)
def test_it_tells_whose_it_is_without_being_decoded(envelope, other):
    assert is_from(envelope.encode(), bytes.fromhex(envelope.origin))
    assert is_from(envelope.encode(), bytes.fromhex(other)) is (other == envelope.origin)


@examples
@given(st.text(), st.text())
@example("", TRACED.tracestate)
@example("x" * (MAX_FIELD_BYTES + 1), "")
def test_no_trace_is_in_the_way_of_a_message(traceparent, tracestate):
    trace = TraceContext(traceparent, tracestate)
    decoded = decode(Envelope(ORIGIN, EVERYBODY, text(b"hello"), trace=trace).encode())
    assert decoded.content.payload == b"hello"
    assert decoded.trace is None or len(decoded.trace.traceparent) == len(traceparent)


@pytest.mark.parametrize(
    ("trace", "travels"),
    [
        (TraceContext(PARENT), TraceContext(PARENT)),
        (TraceContext("x" * MAX_FIELD_BYTES, "y" * MAX_FIELD_BYTES),) * 2,
        (TraceContext(PARENT, "y" * (MAX_FIELD_BYTES + 1)), TraceContext(PARENT)),
        (TraceContext("x" * (MAX_FIELD_BYTES + 1), "y"), None),
        (TraceContext("", "y"), None),
        (None, None),
    ],
)
def test_what_is_too_long_stays_behind(trace, travels):
    assert traced(trace) == travels


# The format: nodes of different versions share a Redis


@examples
@given(envelopes.filter(lambda envelope: envelope.excluded_user is None))
def test_without_a_trace_it_is_of_version_1_to_the_byte(envelope):
    data = envelope.encode()
    assert data[2] == 1
    untraceable = Envelope(envelope.origin, envelope.target, envelope.content, envelope.excluded, TraceContext(""))
    # The order in which ids are left out is nobody's business.
    assert len(untraceable.encode()) == len(data)
    assert untraceable.encode()[:29] == data[:29]


def test_the_layout_with_a_trace_is_this_to_the_byte():
    trace = TraceContext("00-1-2-01", "a=b")
    envelope = Envelope(ORIGIN, room_target("kü"), text("gruß".encode()), frozenset({ONE}), trace)
    data = (
        b"fr\x02\x01"
        b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
        b"\x01\x00\x00\x00\x03\x00\x00\x00\x01"
        b"k\xc3\xbc"
        b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef"
        b"\x00\x12"
        b"\x01\x00\x0900-1-2-01"
        b"\x02\x00\x03a=b"
        b"gru\xc3\x9f"
    )
    assert envelope.encode() == data
    assert plain(decode(data)) == plain(envelope)
    assert decode(data).trace == trace


def test_it_costs_a_few_bytes():
    bare = Envelope(ORIGIN, EVERYBODY, text())
    assert len(Envelope(ORIGIN, EVERYBODY, text(), trace=TraceContext(PARENT)).encode()) == len(bare.encode()) + 60


@pytest.mark.parametrize(
    ("fields", "trace"),
    [
        ([], None),
        ([field(9, b"of a later version")], None),
        ([field(9, b""), field(1, b"a"), field(200, b"x" * 1000)], TraceContext("a")),
        ([field(2, b"state alone")], None),
        ([field(1, b"")], None),
        ([field(2, b"s"), field(1, b"a")], TraceContext("a", "s")),
        ([field(1, b"a"), field(1, b"b")], TraceContext("b")),
        ([field(1, b"x" * (MAX_FIELD_BYTES + 1))], None),
        ([field(1, b"a"), field(2, b"x" * (MAX_FIELD_BYTES + 1))], TraceContext("a")),
        ([field(1, b"\xff\x00")], TraceContext("\xff\x00")),
    ],
)
def test_fields_that_are_not_understood_are_skipped(fields, trace):
    envelope = decode(with_fields(*fields))
    assert envelope.content.payload == b"p"
    assert envelope.trace == trace


def test_many_fields_are_read_in_no_time():
    nothing = field(9, b"")
    envelope = decode(with_fields(nothing * (65535 // len(nothing)), payload=b"x" * 2**20))
    assert envelope.content.size == 2**20


# What is no envelope


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (raw(version=2, payload=b""), "cut off"),
        (raw(version=2, payload=b"\x00"), "cut off"),
        (with_fields(size=2), "shorter than its fields say"),
        (with_fields(field(1, b"a"), size=6), "shorter than its fields say"),
        (with_fields(size=65535), "shorter than its fields say"),
        (with_fields(b"\x01", payload=b"pppp"), "cut off"),
        (with_fields(b"\x01\x00", payload=b"pppp"), "cut off"),
        (with_fields(field(1, b"a", size=2)), "longer than all"),
        (with_fields(field(1, b"", size=65535)), "longer than all"),
        (with_fields(field(1, b"a"), field(2, b"b", size=2)), "longer than all"),
    ],
)
def test_lengths_that_lie_are_found(data, why):
    with pytest.raises(UndecodableError, match=why):
        decode(data)


@examples
@given(st.binary(max_size=200))
def test_any_fields_are_an_envelope_or_undecodable(data):
    with contextlib.suppress(UndecodableError):
        decode(raw(version=2, payload=data))


@examples
@given(traced_envelopes, st.data())
def test_an_envelope_that_was_changed_is_an_envelope_or_undecodable(envelope, data):
    changed = bytearray(envelope.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UndecodableError):
        decode(bytes(changed))


@examples
@given(traced_envelopes)
def test_what_was_cut_off_before_its_payload_is_undecodable(envelope):
    data = envelope.encode()
    bare = Envelope(envelope.origin, envelope.target, envelope.content, envelope.excluded).encode()
    name_bytes, count = struct.unpack_from(">II", bare, 21)
    payload_bytes = len(bare) - 29 - name_bytes - 16 * count
    for size in range(len(data) - payload_bytes):
        with pytest.raises(UndecodableError):
            decode(data[:size])


def test_its_repr_says_nothing_of_it():
    envelope = Envelope(ORIGIN, room_target("r"), Message(b"secret", is_text=True), trace=TRACED)
    assert repr(envelope) == f"<Envelope from {ORIGIN} to room: <Message text, 6 B>>"
