"""What clients send: from a frame's payload to the type that a handler takes."""

from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, NewType, Union, get_args, get_origin

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import Message, encode

MAX_ERRORS = 10
"""How many errors of one message are reported to its sender."""
MAX_ERROR_CHARS = 200
"""Where a text in an error report is cut: it may hold keys that the client chose."""


class InvalidMessageError(Exception):
    """A client's message does not fit; `errors` may be shown to that client."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__("invalid message")
        self.errors = errors


class Decoder:
    """Turns payloads into values of one type. Built once per handler or iterator.

    `str` and `bytes` (also annotated, also in a union of the two) are taken from text and binary frames as they are.
    Any other type is JSON, from a text frame or a binary one.
    """

    def __init__(self, message_type: Any) -> None:
        self._kinds = frozenset(_plain_kinds(message_type))  # empty: JSON
        plain = message_type is str or message_type is bytes
        self._adapter: TypeAdapter[Any] | None = None if plain else _adapter(message_type)  # None: nothing to check

    def decode(self, payload: str | bytes) -> Any:
        """Return the value.

        Raises:
            InvalidMessageError: The payload does not fit.
            Exception: Whatever a validator of the app raises beside what pydantic expects of it.
        """
        if self._kinds and type(payload) not in self._kinds:
            wanted = " or ".join("text" if kind is str else "binary" for kind in sorted(self._kinds, key=str))
            raise InvalidMessageError([{"type": "frame_type", "loc": [], "msg": f"Input should be a {wanted} frame"}])
        if self._adapter is None:
            return payload
        try:
            # Strict: in a union of the two, bytes must not become a text, nor a text bytes.
            if self._kinds:
                return self._adapter.validate_python(payload, strict=True)
            return self._adapter.validate_json(payload)
        except ValidationError as error:
            raise InvalidMessageError(_report(error)) from None


@lru_cache(maxsize=256)
def _cached_decoder(message_type: Any, _spelling: str) -> Decoder:
    # Unions are equal whatever their order, but the order decides what a value becomes: the spelling tells them apart.
    return Decoder(message_type)


def decoder_for(message_type: Any) -> Decoder:
    """Return the decoder of a type; most are built once, since many connections take the same type.

    Raises:
        ConfigurationError: pydantic does not know the type.
    """
    if isinstance(message_type, Decoder):
        return message_type
    try:
        hash(message_type)
    except TypeError:  # such as Annotated with a mutable mark
        return Decoder(message_type)
    return _cached_decoder(message_type, repr(message_type))


def _adapter(message_type: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(message_type)
    except PydanticUserError as error:
        raise ConfigurationError(
            f"messages cannot be validated as {message_type!r}: {error}. Take str, bytes or a type that pydantic knows"
        ) from error


def _plain_kinds(message_type: Any) -> set[type]:
    """Return str and bytes if the type is made of these alone, else nothing."""
    if isinstance(message_type, NewType):
        return _plain_kinds(message_type.__supertype__)
    if (aliased := getattr(message_type, "__value__", None)) is not None:  # `type Line = str` (Python 3.12)
        return _plain_kinds(aliased)
    origin = get_origin(message_type)
    if origin is Annotated:
        return _plain_kinds(get_args(message_type)[0])
    if origin in (Union, UnionType):
        kinds = [_plain_kinds(part) for part in get_args(message_type)]
        return set().union(*kinds) if all(kinds) else set()
    return {message_type} if message_type in (str, bytes) else set()


def _report(error: ValidationError) -> list[dict[str, Any]]:
    # Without the input: it may hold secrets, and the client has it. Cut: locations may quote the client.
    details = error.errors(include_url=False, include_input=False)[:MAX_ERRORS]
    return [
        {
            "type": detail["type"],
            "loc": [part if isinstance(part, int) else part[:MAX_ERROR_CHARS] for part in detail["loc"]],
            "msg": _text(detail)[:MAX_ERROR_CHARS],
        }
        for detail in details
    ]


def _text(detail: ErrorDetails) -> str:
    if detail["type"] == "union_tag_invalid":  # the only text of pydantic's own that quotes the input
        context = detail["ctx"]
        return f"Input tag found using {context['discriminator']} should be one of {context['expected_tags']}"
    return detail["msg"]


def error_message(code: str, **details: Any) -> Message:
    """Return the error frame `{"type":"error","code":…}` for a client: an `ErrorCode`, or one of the app's own."""
    message = encode({"type": "error", "code": code, **details})
    assert isinstance(message, Message), "a dict is encoded as JSON"
    return message
