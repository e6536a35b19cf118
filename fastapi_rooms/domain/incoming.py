"""What clients send: from a frame's payload to the type that a handler takes."""

from collections.abc import Sequence
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, NewType, Union, get_args, get_origin

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import Message, encode

MAX_ERRORS = 10
"""How many errors of one message are reported to its sender."""
MAX_ERROR_CHARS = 200
"""Where a text in an error report is cut: it may hold keys that the client chose."""
MAX_LOC_PARTS = 16
"""How many steps of a location are reported: a type that holds itself has locations of any length."""
MAX_LOC_CHARS = 400
"""How many characters of a location are reported."""
REFERENCE_KEYS = ("id", "ref")
"""By which of its keys a client's message can be known again; error frames that answer it carry them."""
MAX_REFERENCE_CHARS = 200
MAX_REFERENCE_BITS = 64
MAX_REPORT_BYTES = 4096
"""How large a report may become by one more error: clients choose what they send, and get this back."""


class InvalidMessageError(Exception):
    """A client's message does not fit; `errors` may be shown to that client."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__("invalid message")
        self.errors = errors


class Decoder:
    """Turns payloads into values of one type. Built once per handler or iterator.

    `str` and `bytes` (also annotated, also in a union) are taken from text and binary frames as they are. Any other
    type is JSON, from a text frame or a binary one. In a union with one of the two, each has its frames: `A | bytes`
    takes binary frames as bytes, and `A | str` any text that is not the JSON of an `A`.

    Raises:
        ConfigurationError: pydantic does not know the type, or no frame can be of it.
    """

    def __init__(self, message_type: Any) -> None:
        parts = _split(message_type)
        is_mixed = None in parts and len(parts) > 1
        adapters: dict[type | None, TypeAdapter[Any] | None] = {
            kind: None if part is kind else _adapter(part if is_mixed else message_type) for kind, part in parts.items()
        }
        self._json = adapters.pop(None, None)  # None: no frame is JSON
        self._plain = adapters  # for frames taken as they are; None: any

    def decode(self, payload: str | bytes) -> Any:
        """Return the value.

        Raises:
            InvalidMessageError: The payload does not fit.
            Exception: Whatever a validator of the app raises beside what pydantic expects of it.
        """
        kind = type(payload)
        try:
            if kind not in self._plain:
                if self._json is not None:  # nearly always
                    return self._json.validate_json(payload)
                wanted = "text" if str in self._plain else "binary"
                raise InvalidMessageError(
                    [{"type": "frame_type", "loc": [], "msg": f"Input should be a {wanted} frame"}]
                )
            if kind is str and self._json is not None:
                return self._json_or_text(self._json, payload)
            adapter = self._plain[kind]
            # Strict: in a union of the two, bytes must not become a text, nor a text bytes.
            return payload if adapter is None else adapter.validate_python(payload, strict=True)
        except ValidationError as error:
            raise InvalidMessageError(_report(error)) from None

    def takes_as_it_is(self, payload: str | bytes) -> bool:
        """Return whether frames of a payload's kind are taken as they are: then each of them is meant for the app."""
        return type(payload) in self._plain

    def _json_or_text(self, json: TypeAdapter[Any], text: str | bytes) -> Any:
        """Return what a text is, by a type that takes texts as they are beside others."""
        try:
            return json.validate_json(text)
        except ValidationError as error:
            adapter = self._plain[str]
            if adapter is None:
                return text
            try:
                return adapter.validate_python(text, strict=True)
            except ValidationError:
                # It is told what is wrong with the part that it was meant for, as far as anybody can know.
                if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
                    raise
                raise error from None


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
    except (PydanticUserError, TypeError) as error:  # TypeError: of marks that do not go with what they are around
        raise ConfigurationError(
            f"messages cannot be validated as {message_type!r}: {error}. Take str, bytes or a type that pydantic "
            "knows; in a union with one of the two, write what is said of the others around these alone: "
            "Annotated[A | B, Field(discriminator='type')] | bytes"
        ) from error


def _split(message_type: Any) -> dict[type | None, Any]:
    """Return the parts of a type: what is taken as it is, by str and bytes, and by None what is JSON.

    What is said around a union is said of each part.

    Raises:
        ConfigurationError: No frame can be of a part of it.
    """
    inner = _meant_by(message_type)
    if inner is not message_type:
        split = _split(inner)
        return split if len(split) > 1 else dict.fromkeys(split, message_type)
    origin = get_origin(message_type)
    if origin is Annotated:
        marked, *marks = get_args(message_type)
        return {kind: Annotated[(part, *marks)] for kind, part in _split(marked).items()}
    if origin in (Union, UnionType):
        split = {}
        for part in get_args(message_type):
            for kind, found in _split(part).items():
                split[kind] = split[kind] | found if kind in split else found
        return split
    if message_type is bytearray:
        raise ConfigurationError("no frame is a bytearray, which a text in JSON would be made into: take bytes")
    return {message_type if message_type in (str, bytes) else None: message_type}


def _meant_by(message_type: Any) -> Any:
    """Return what a NewType or a `type` statement stands for."""
    if isinstance(message_type, NewType):
        return message_type.__supertype__
    alias = get_origin(message_type) or message_type
    if type(alias).__name__ != "TypeAliasType":
        return message_type
    value = alias.__value__
    if alias is message_type or not (wanted := getattr(value, "__parameters__", ())):
        return value
    given = dict(
        zip(alias.__type_params__, get_args(message_type), strict=True)
    )  # `type Or[T] = T | bytes`, of Or[int]
    return value[tuple(given[parameter] for parameter in wanted)]


def _report(error: ValidationError) -> list[dict[str, Any]]:
    # Without the input: it may hold secrets, and the client has it. Cut: locations may quote the client.
    report: list[dict[str, Any]] = []
    size = 0
    for detail in error.errors(include_url=False, include_input=False)[:MAX_ERRORS]:
        told = {
            "type": detail["type"][:MAX_ERROR_CHARS],
            "loc": short_location(detail["loc"]),
            "msg": _text(detail)[:MAX_ERROR_CHARS],
        }
        size += len(to_json(told))
        if report and size > MAX_REPORT_BYTES:
            break
        report.append(told)
    return report


def short_location(parts: Sequence[int | str]) -> list[int | str]:
    """Return the location of an error, short enough to be told: its beginning and its end, if it is long."""
    told = list(parts)
    if len(told) > MAX_LOC_PARTS:
        half = MAX_LOC_PARTS // 2
        told = [*told[:half], "…", *told[1 - half :]]
    longest = MAX_ERROR_CHARS
    if sum(min(len(part), longest) for part in told if isinstance(part, str)) > MAX_LOC_CHARS:
        longest = MAX_LOC_CHARS // len(told)
    return [part if isinstance(part, int) else part[:longest] for part in told]


def _text(detail: ErrorDetails) -> str:
    if detail["type"] == "union_tag_invalid":  # the only text of pydantic's own that quotes the input
        context = detail["ctx"]
        return f"Input tag found using {context['discriminator']} should be one of {context['expected_tags']}"
    return detail["msg"]


def reference_in(payload: str | bytes | None) -> dict[str, str | int]:
    """Return the `id` and the `ref` of a message, by which its sender knows which one an answer is about.

    None of both, and what is no text and no number, or longer than a reference is, are left out.
    """
    if payload is None:
        return {}
    try:
        message = from_json(payload)
    except (ValueError, TypeError):  # a TypeError: of a text that no UTF-8 can carry
        return {}
    if not isinstance(message, dict):
        return {}
    found = {key: message[key] for key in REFERENCE_KEYS if key in message}
    return {key: value for key, value in found.items() if _is_reference(value)}


def _is_reference(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_REFERENCE_CHARS
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= MAX_REFERENCE_BITS


def error_message(code: str, **details: Any) -> Message:
    """Return the error frame `{"type":"error","code":…}` for a client: an `ErrorCode`, or one of the app's own."""
    message = encode({"type": "error", "code": code, **details})
    assert isinstance(message, Message), "a dict is encoded as JSON"
    return message
