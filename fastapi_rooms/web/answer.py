"""What a handler says that it returns, and so what its client may see of it.

As a route for HTTP does, a handler whose annotation is `-> Out` sends the fields of `Out` and no more, also when it
returns an object of a subclass that knows a password.
"""

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
)
from types import NoneType, UnionType
from typing import Annotated, Any, Never, NoReturn, Union, get_args, get_origin

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from fastapi_rooms.domain.errors import ConfigurationError, MessageError
from fastapi_rooms.domain.incoming import MAX_ERROR_CHARS, short_location
from fastapi_rooms.domain.messages import Message

_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)
_LATER = (Awaitable, Coroutine)
_AS_IT_IS = (Any, object, None, NoneType, Never, NoReturn, str, bytes, bytearray, memoryview, dict)
MAX_FAULTS = 5
"""How much of what does not fit is told in an error."""


class Answer:
    """The type of what a handler returns or yields.

    Args:
        name: Of the handler.
        kind: The type.

    Raises:
        ConfigurationError: pydantic does not know the type.
    """

    def __init__(self, name: str, kind: Any) -> None:
        self._name = name
        self._kind = kind
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
        except (PydanticUserError, TypeError) as error:  # TypeError: of marks that do not go with what they are around
            raise ConfigurationError(
                f"{name}() returns {kind!r}, which pydantic does not know: let it return models, dataclasses or "
                "built-in types, or write -> Any to send a value as it is. pydantic says: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def fit(self, value: Any) -> Any:
        """Return what is sent for a value: a text or bytes as they are, and JSON of all that the type has.

        Raises:
            MessageError: It is not of the type. The error holds nothing of the value, which may be secret.
        """
        try:
            value = self._adapter.validate_python(value, from_attributes=True)  # as FastAPI does, for objects of an ORM
        except ValidationError as error:
            raise MessageError(self._refusal(value, error)) from None
        if isinstance(value, str | bytes):
            return value
        try:
            return Message(self._adapter.dump_json(value, by_alias=True), is_text=True)
        except (ValueError, TypeError, RecursionError) as error:
            raise MessageError(f"what {self._name}() returned cannot be encoded as JSON: {error}") from error

    def _refusal(self, value: Any, error: ValidationError) -> str:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = [
            f"{'.'.join(map(str, short_location(fault['loc']))) or 'it'}: {fault['msg']:.{MAX_ERROR_CHARS}}"
            for fault in faults[:MAX_FAULTS]
        ]
        return (
            f"{self._name}() returned {type(value).__name__}, which does not fit its annotation {self._kind!r} "
            f"({'; '.join(told)}): return what it says, or change the annotation; -> Any sends a value as it is"
        )


def read_answer(function: Callable[..., Any], annotation: Any) -> Answer | None:
    """Return the type of what a handler sends, one value or each of a stream; None: whatever it is, it is sent.

    Args:
        function: The handler.
        annotation: Of what it returns, read.

    Raises:
        ConfigurationError: The annotation cannot be meant, or pydantic does not know the type.
    """
    name = function.__name__
    kind, is_stream = _sent(annotation)
    if _is_sent_as_it_is(kind):
        return None
    if inspect.isasyncgenfunction(function) and not is_stream:
        raise ConfigurationError(
            f"{name}() yields, and says that it returns {kind!r}: write -> AsyncIterator[…] with the type of what it "
            "yields"
        )
    return Answer(name, kind)


def _sent(annotation: Any) -> tuple[Any, bool]:
    """Return the type of what is sent, and whether that is each value of a stream."""
    annotation = _without_alias(annotation)
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in _STREAMS:
        return (arguments[0] if arguments else Any), True
    if origin in _LATER:
        return _sent(arguments[-1] if arguments else Any)
    return annotation, False


def _without_alias(annotation: Any) -> Any:
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    return annotation


def _is_sent_as_it_is(kind: Any) -> bool:
    """Return whether a type says nothing of what is in a value, so that nothing can be left out."""
    kind = _without_alias(kind)
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return all(map(_is_sent_as_it_is, get_args(kind)))
    if origin is dict:
        return all(argument in (str, Any, object) for argument in get_args(kind))
    if origin is Annotated:
        return get_args(kind)[0] is Any
    return kind is inspect.Parameter.empty or kind in _AS_IT_IS
