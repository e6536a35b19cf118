"""The client that the tests here believe in complains about what it should."""

import random
import zlib

import pytest
from strict_client import Deflate, StrictParser, Violation


def compressed(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-12)
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x81\x81\x00\x00\x00\x00a", "mask"),
        (b"\x91\x01a", "reserved bit"),
        (b"\xa1\x01a", "reserved bit"),
        (b"\x83\x01a", "opcode"),
        (b"\x8b\x01a", "opcode"),
        (b"\x81\x7e\x00\x7d" + b"a" * 125, "shortest form"),
        (b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff" + b"a" * 65535, "shortest form"),
        (b"\x81\x7f\x80\x00\x00\x00\x00\x00\x00\x00", "first bit"),
        (b"\x81\x01\xff", "UTF-8"),
        (b"\x80\x01a", "without a message"),
        (b"\x01\x01a\x81\x01b", "within the fragments"),
        (b"\x01\x01a\xc0\x01b", "continuation"),
        (b"\x09\x00", "fragmented"),
        (b"\x89\x7e\x00\x7e" + b"a" * 126, "too long"),
        (b"\xc9\x00", "control frame is compressed"),
        (b"\x88\x01\x03", "one byte"),
        (b"\x88\x02\x03\xee", "1006"),
        (b"\x88\x03\x03\xe8\xff", "UTF-8"),
        (b"\x88\x02\x03\xe8\x81\x01a", "follow"),
        (b"\x88\x02\x03\xe8\x89\x00", "follow"),
        (b"\x88\x02\x03\xe8\x88\x02\x03\xe8", "follow"),
        (b"\xc1\x02ab", "does not fit"),
    ],
)
def test_it_fails_on(data, complaint):
    with pytest.raises(Violation, match=complaint):
        StrictParser(Deflate("permessage-deflate; server_max_window_bits=12")).feed(data)


def test_it_fails_on_compression_that_was_not_negotiated():
    with pytest.raises(Violation, match="not negotiated"):
        StrictParser(None).feed(b"\xc1\x01a")


def test_it_fails_on_a_message_that_refers_to_one_that_it_has_not_seen():
    noise = random.Random(1).randbytes(100)
    deflate = zlib.compressobj(wbits=-12)
    first, second = [(deflate.compress(noise) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4] for _ in range(2)]
    right = StrictParser(Deflate("permessage-deflate; server_max_window_bits=12"))
    for payload in (first, second):
        right.feed(bytes((0xC2, len(payload))) + payload)
    assert [one.data for one in right.received] == [noise, noise]
    for parameters in ("", "; server_no_context_takeover"):
        wrong = StrictParser(Deflate("permessage-deflate; server_max_window_bits=12" + parameters))
        with pytest.raises(Violation, match="does not fit"):
            wrong.feed(b"".join(bytes((0xC2, len(one))) + one for one in (first, second)[not parameters :]))


def test_it_fails_on_a_frame_that_is_cut_off():
    for data in (b"\x81", b"\x81\x02a", b"\x01\x01a"):
        parser = StrictParser(None)
        parser.feed(data)
        with pytest.raises(Violation, match="cut off"):
            parser.end()


def test_it_reads_what_is_right_however_it_is_cut():
    small = compressed(b"small")
    data = b"".join(
        [
            b"\x01\x01a\x89\x01p\x00\x01b\x80\x01c",
            bytes((0xC1, len(small))) + small,
            b"\x82\x7e\x00\x7e" + b"m" * 126,
            b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + b"l" * 65536,
            b"\x88\x05\x0f\xa0bye\x8a\x01p",
        ]
    )
    for size in (1, 7, 1000, len(data)):
        parser = StrictParser(Deflate("permessage-deflate; server_max_window_bits=12"))
        for position in range(0, len(data), size):
            parser.feed(data[position : position + size])
        parser.end()
        assert [(one.kind, one.data, one.is_compressed) for one in parser.received] == [
            ("ping", b"p", False),
            ("text", "abc", False),
            ("text", "small", True),
            ("bytes", b"m" * 126, False),
            ("bytes", b"l" * 65536, False),
            ("close", (4000, "bye"), False),
            ("pong", b"p", False),
        ]
