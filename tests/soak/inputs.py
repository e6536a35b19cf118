"""What no client should send."""

import json
from typing import NamedTuple

FIN, RSV1, RSV2 = 0x80, 0x40, 0x20
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

_SAY = '{"do":"say","number":1,"talker":"stranger","room":"noise","pad":%s}'

MESSAGES: list[str | bytes] = [
    "\0",
    "{",
    "]",
    "null",
    "nul",
    '"text"',
    "{'do': 'say'}",
    '{"do":"dance"}',
    '{"do":"say"}',
    '{"do":"join","number":1,"room":7}',
    '{"do":["say"],"number":1}',
    '{"do":"join","number":NaN,"room":"noise"}',
    '{"do":"join","number":1e999,"room":"noise"}',
    '{"do":"join","number":' + "9" * 5_000 + ',"room":"noise"}',
    '{"do":"join","number":1,"room":"\\ud800"}',
    _SAY % '"\\ud83d"',
    _SAY % '"\\udc00\\ud800"',
    _SAY % ("[" * 20_000),
    "[" * 60_000,
    '{"a":' * 10_000,
    '{"type":["ping"]}',
    '{"type":{"type":"ping"}}',
    '{"' + "k" * 50_000 + '":1}',
    b"",
    b"\xff\xfe\xfd",
    b"\x00" * 60_000,
    b'{"do":"join","number":1,"room":"\xff"}',
]
"""Messages that fit no type. Each is answered; the tenth in a row ends the connection with 1007."""

NAMES = ["", " \n", "\x00", "a\u0300" * 2, "x" * 256, "ä" * 200, "\u202e", "\x7f"]
"""Names for rooms, some of which cannot be one."""


class Wrong(NamedTuple):
    """Frames that break the protocol, and the codes with which a server may end it."""

    name: str
    frames: list[tuple[int, bytes, bool]]
    """First byte, payload, whether it is masked."""
    codes: set[int]


def _close(code: int, reason: bytes = b"") -> tuple[int, bytes, bool]:
    return FIN | CLOSE, code.to_bytes(2, "big") + reason, True


FRAMES = [
    Wrong("text that is no UTF-8", [(FIN | TEXT, b"\xc3\x28", True)], {1007}),
    Wrong("a lone surrogate in UTF-8", [(FIN | TEXT, b'"\xed\xa0\x80"', True)], {1007}),
    Wrong("UTF-8 that ends too early", [(FIN | TEXT, "🙂".encode()[:3], True)], {1007}),
    Wrong("a frame without a mask", [(FIN | TEXT, b"{}", False)], {1002}),
    Wrong("a ping without a mask", [(FIN | PING, b"x", False)], {1002}),
    Wrong("a ping of 126 bytes", [(FIN | PING, bytes(126), True)], {1002}),
    Wrong("a pong of 70,000 bytes", [(FIN | PONG, bytes(70_000), True)], {1002}),
    Wrong("a fragmented ping", [(PING, b"x", True)], {1002}),
    Wrong("a reserved opcode", [(FIN | 3, b"x", True)], {1002}),
    Wrong("a reserved control opcode", [(FIN | 11, b"", True)], {1002}),
    Wrong("a reserved bit", [(FIN | RSV2 | TEXT, b"{}", True)], {1002}),
    Wrong("compression that was not agreed upon", [(FIN | RSV1 | TEXT, b"\xff\xff", True)], {1002}),
    Wrong("a continuation of nothing", [(FIN | CONTINUATION, b"x", True)], {1002}),
    Wrong("a message within another", [(TEXT, b"{", True), (FIN | TEXT, b"{}", True)], {1002}),
    Wrong("a close code of one byte", [(FIN | CLOSE, b"\x03", True)], {1002}),
    *(
        Wrong(f"the close code {code}", [_close(code)], {1002})
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 65535)
    ),
    Wrong("a reason that is no UTF-8", [_close(1000, b"\xff")], {1002, 1007}),
    Wrong("a reason that is too long", [_close(1000, bytes(124))], {1002}),
]
"""What is wrong with each is found by the server, in its closing handshake too."""

ENDINGS = [
    Wrong("no close code", [(FIN | CLOSE, b"", True)], {1000, 1005}),
    *(
        Wrong(f"the close code {code}", [_close(code, b"bye")], {code})
        for code in (1000, 1001, 1011, 1012, 3000, 4000, 4999)
    ),
]
"""Right, and answered as they should be."""


TOO_MUCH = [
    (TEXT, b"x" * 65_537),
    (TEXT, "ä".encode() * 32_769),
    (TEXT, "🙂".encode() * 16_385),
    (BINARY, bytes(100_000)),
]
"""Messages above 65,536 bytes, some of which have fewer characters."""

SIZES = [(1 << 20) + 1, 1 << 40, (1 << 63) - 1]
"""What is above the server's own limit, as a frame announces it."""

_HEAD = "HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
_KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"

HANDSHAKES = [
    ("a foreign page", f"GET /ws {_HEAD}{_KEY}Origin: https://evil.example\r\n\r\n", 403),
    ("a page of another port", f"GET /ws {_HEAD}{_KEY}Origin: http://127.0.0.1:1\r\n\r\n", 403),
    ("a page of nowhere", f"GET /ws {_HEAD}{_KEY}Origin: null\r\n\r\n", 403),
    ("an odd room", f"GET /ws?room=%07 {_HEAD}{_KEY}\r\n", 400),
    ("no key", f"GET /ws {_HEAD}Sec-WebSocket-Version: 13\r\n\r\n", 400),
    ("no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ("half a request", f"GET /ws {_HEAD}", None),
    ("gone at once", f"GET /ws?room=room-0 {_HEAD}{_KEY}\r\n", None),
]
"""What is asked for, and the HTTP status of the answer; None: nobody waits for it."""


def command(do: str, room: str, number: int = 0, **details: object) -> str:
    return json.dumps({"do": do, "number": number, "room": room, **details})
