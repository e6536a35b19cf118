"""Messages: what an app sends, encoded once, whatever the number of recipients.

A `Message` is made by `encode` and caches its form for each wire. Nothing here depends on a connection, so one
`Message` is shared by every outbox it is offered to.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

from pydantic_core import from_json, to_json

from fastapi_rooms.domain.close_codes import CloseCode, check_close
from fastapi_rooms.domain.errors import ConfigurationError, MessageError
from fastapi_rooms.domain.names import stands_for_a_client


class MessageType(StrEnum):
    """How a message travels. `None` in its place lets the message's Python type decide."""

    TEXT = "text"
    """A text frame. `bytes` must be UTF-8."""
    JSON = "json"
    """A text frame with JSON by pydantic; `str` and `bytes` are taken as JSON that is already encoded, and checked."""
    BYTES = "bytes"
    """A binary frame. A `str` is sent as its UTF-8."""
    PING = "ping"
    """The text frame `{"type":"ping"}`; a message other than None travels as its `data`."""
    PONG = "pong"
    """The text frame `{"type":"pong"}`; a message other than None travels as its `data`."""
    CLOSE = "close"
    """Closes the recipients. The message is None, a code, a reason or a `(code, reason)`."""


class Message:
    """One encoded message: text or binary, never changed after it was made."""

    __slots__ = ("_asgi", "_frame", "is_text", "payload", "size")

    def __init__(self, payload: bytes, *, is_text: bool) -> None:
        self.payload = payload
        self.is_text = is_text
        self.size = len(payload)
        self._frame: bytes | None = None  # built by the first `frame()`
        self._asgi: dict[str, Any] | None = None  # built by the first `asgi()`

    def __repr__(self) -> str:
        return f"<Message {'text' if self.is_text else 'bytes'}, {self.size} B>"

    def frame(self) -> bytes:
        """Return the message as one unfragmented, uncompressed server frame (RFC 6455 section 5.2)."""
        if self._frame is None:
            self._frame = _header(0x81 if self.is_text else 0x82, self.size) + self.payload
        return self._frame

    def asgi(self) -> dict[str, Any]:
        """Return the message as an ASGI `websocket.send` event."""
        if self._asgi is None:
            if self.is_text:
                self._asgi = {"type": "websocket.send", "text": self.payload.decode()}
            else:
                self._asgi = {"type": "websocket.send", "bytes": self.payload}
        return self._asgi


class Close:
    """The end of a connection, as one of the things that can be sent to it."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        self.code, self.reason = check_close(code, reason)

    def __repr__(self) -> str:
        return f"<Close {self.code}>"


def encode(message: Any, message_type: MessageType | str | None = None) -> Message | Close:
    """Encode what an app sends. What is encoded already is returned as it is.

    Raises:
        MessageError: The message cannot be encoded as `message_type`.
        ConfigurationError: `message_type` is unknown, or a close code may not be sent.
    """
    if message_type is None:
        if isinstance(message, str):
            return _text(message)
        if isinstance(message, Message | Close):
            return message
        if isinstance(message, bytes | bytearray | memoryview):
            return Message(bytes(message), is_text=False)
        return _json(message)
    try:
        encoder = _ENCODERS[MessageType(message_type)]
    except ValueError:
        raise ConfigurationError(
            f"{message_type!r} is no message type: use one of {', '.join(MessageType)}, or None to infer it"
        ) from None
    return encoder(message)


def _text(message: Any) -> Message:
    if isinstance(message, str):
        try:
            return Message(message.encode(), is_text=True)
        except UnicodeEncodeError as error:
            raise MessageError(
                "the text holds a lone surrogate, which UTF-8 cannot carry: clean it with "
                "text.encode('utf-8', 'replace').decode()"
            ) from error
    if isinstance(message, bytes | bytearray | memoryview):
        payload = bytes(message)
        try:
            payload.decode()
        except UnicodeDecodeError as error:
            raise MessageError(
                "the bytes are not UTF-8, which a text frame has to be: send them as MessageType.BYTES"
            ) from error
        return Message(payload, is_text=True)
    raise MessageError(f"TEXT takes a str, not {_kind(message)}: use MessageType.JSON, or None to infer it")


def _bytes(message: Any) -> Message:
    if isinstance(message, str):
        return Message(_text(message).payload, is_text=False)
    if isinstance(message, bytes | bytearray | memoryview):
        return Message(bytes(message), is_text=False)
    raise MessageError(f"BYTES takes bytes, not {_kind(message)}: use MessageType.JSON, or None to infer it")


def _json(message: Any) -> Message:
    try:
        # NaN and the infinities become null, as pydantic's models and JavaScript have it: JSON has no word for them.
        return Message(to_json(message, inf_nan_mode="null"), is_text=True)
    except (ValueError, TypeError, RecursionError) as error:
        if stands_for_a_client(message):
            raise MessageError(
                f"the message is a {_kind(message)}: the arguments are the other way round. Who it is for comes first, "
                "as in send_personal(connection, message)"
            ) from error
        raise MessageError(
            f"{_kind(message)} cannot be encoded as JSON: {error}. Send a str, bytes, or something that pydantic can "
            "serialise (models, dataclasses, built-in types)"
        ) from error


def _ready_json(message: Any) -> Message:
    if not isinstance(message, str | bytes | bytearray | memoryview):
        return _json(message)
    encoded = _text(message)
    try:
        from_json(encoded.payload, allow_inf_nan=False)
    except ValueError as error:
        raise MessageError(
            f"JSON was asked for, but the {_kind(message)} is not JSON: {error}. To send it as it is, use "
            "MessageType.TEXT or BYTES"
        ) from error
    return encoded


def _ping(message: Any) -> Message:
    return _control("ping", message)


def _pong(message: Any) -> Message:
    return _control("pong", message)


def _control(kind: str, message: Any) -> Message:
    if message is None or message == "":
        return Message(b'{"type":"%s"}' % kind.encode(), is_text=True)
    return _json({"type": kind, "data": message})


def _close(message: Any) -> Close:
    match message:
        case None | "":
            return Close()
        case str(reason):
            return Close(reason=reason)
        case bool():
            pass
        case int(code):
            return Close(code)
        case (int(code), str(reason)):
            return Close(code, reason)
    raise MessageError(f"CLOSE takes None, a code, a reason or (code, reason), not {_kind(message)}")


_ENCODERS: dict[MessageType, Callable[[Any], Message | Close]] = {
    MessageType.TEXT: _text,
    MessageType.JSON: _ready_json,
    MessageType.BYTES: _bytes,
    MessageType.PING: _ping,
    MessageType.PONG: _pong,
    MessageType.CLOSE: _close,
}

PING: Final = _ping(None)
"""What a client is asked with whether it is still there."""
PONG: Final = _pong(None)
"""What answers a ping message."""


def _header(first: int, size: int) -> bytes:
    if size <= 125:  # noqa: PLR2004 - RFC 6455 section 5.2: the length fits into seven bits
        return bytes((first, size))
    if size <= 0xFFFF:  # noqa: PLR2004 - 126: two more bytes hold the length
        return bytes((first, 126)) + size.to_bytes(2, "big")
    return bytes((first, 127)) + size.to_bytes(8, "big")


def _kind(message: Any) -> str:
    return type(message).__name__


MAX_PONG = 64
"""What is longer says more than that somebody is there."""


def is_control(payload: str | bytes) -> MessageType | None:
    """Return PING or PONG if the payload is such an application message, else None."""
    try:
        value = from_json(payload)
    except (ValueError, TypeError):  # TypeError: older pydantic-core does not take a lone surrogate for a str
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    return MessageType(kind) if kind in ("ping", "pong") else None


def is_pong(payload: str | bytes) -> bool:
    """Return whether a message is what answers a ping message, at little cost where it is none."""
    return len(payload) <= MAX_PONG and is_control(payload) is MessageType.PONG


_BARE = {
    "ping": MessageType.PING,  # VueUse, react-use-websocket
    "heartbeat": MessageType.PING,  # websocket-heartbeat-js
    "pong": MessageType.PONG,
    "": MessageType.PONG,  # keeps proxies from closing what is idle; nobody waits for an answer
}
BARE_PONG: Final = Message(b"pong", is_text=True)
"""What answers a bare `ping`: that is no JSON, and so was sent by who compares texts."""


def is_bare_control(payload: str | bytes) -> MessageType | None:
    """Return PING or PONG if the payload is what libraries send for one, which is no JSON; None: it is neither.

    PONG stands for all that wants no answer.
    """
    if len(payload) > max(map(len, _BARE)):
        return None
    return _BARE.get(payload if isinstance(payload, str) else payload.decode("latin-1"))
