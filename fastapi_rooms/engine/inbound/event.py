"""What an ASGI event of a client brings: a payload, and how large it is, or the end, and with which code."""

from collections.abc import Mapping
from sys import getsizeof
from typing import Any

from fastapi_rooms.domain.close_codes import ABNORMAL
from fastapi_rooms.engine.inbound.inbox import Payload

MAX_UTF8 = 4
"""How many bytes a character has at most."""

NO_CODE = 1005
"""In place of a close code when the close frame had none (RFC 6455 section 7.1.5)."""


def payload_of(event: Mapping[str, Any]) -> Payload | None:
    """Return what an ASGI event brings; None when the client is gone."""
    if event["type"] == "websocket.disconnect":
        return None
    text: str | None = event.get("text")
    data: bytes | None = event.get("bytes")
    return text if text is not None else data or b""


def is_larger(payload: Payload, most: float) -> bool:
    """Return whether a payload has more bytes than so many, of UTF-8 for a text."""
    length = len(payload)
    if length > most:
        return True
    if isinstance(payload, bytes) or length * MAX_UTF8 <= most or payload.isascii():
        return False  # nearly always, and without encoding it
    return len(payload.encode("utf-8", "surrogatepass")) > most


def held_bytes(payload: Payload) -> int:
    """Return what a payload takes in memory while it waits; less than a hundred bytes of Python's own do not count.

    A text takes as much for each character as for its widest: four times its UTF-8, if there is one emoji in it.
    """
    if isinstance(payload, bytes) or payload.isascii():
        return len(payload)
    return getsizeof(payload)


def end_of(event: Mapping[str, Any]) -> tuple[int, str]:
    """Return the close code and the reason in a disconnect event; 1006 if there was no close frame."""
    code = event.get("code") or ABNORMAL
    if code == NO_CODE and "reason" not in event:
        code = ABNORMAL  # uvicorn says 1005 of a lost connection, too, but then knows of no reason
    return code, event.get("reason") or ""
