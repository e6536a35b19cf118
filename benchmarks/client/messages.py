"""What is sent: text like JSON, of an exact size, different each time, with its number in it."""

import json
import random

NAMES = ("Ann", "Bob", "Chloe", "Dmitri", "Eva", "Farid", "Grete", "Hugo")
WORDS = ("room", "member", "message", "order", "price", "table", "river", "signal", "answer", "paper", "late", "again")


def _records(size: int) -> bytes:
    chance = random.Random(1)  # the same text on every machine
    text = bytearray()
    while len(text) < size:
        record = {
            "id": chance.randrange(10**6),
            "from": chance.choice(NAMES),
            "text": " ".join(chance.choices(WORDS, k=chance.randrange(3, 12))),
            "price": round(chance.random() * 1000, 2),
            "unread": chance.random() < 0.5,
        }
        text += json.dumps(record, separators=(",", ":")).encode() + b","
    return bytes(text)


_TEXT = _records(1024 * 1024)


def payload(number: int, size: int) -> bytes:
    """Return message `number` with `size` bytes."""
    head = b'{"n":"%010d","items":[' % number
    # Far from the one before: a compressor that remembers 32 KiB must not find most of the message there.
    start = number * 7919 % (len(_TEXT) - size)
    return (head + _TEXT[start : start + size - len(head)])[:size]
