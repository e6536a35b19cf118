"""`Incoming`: how a handler says which of its parameters takes the client's messages."""

from typing import Annotated, Any, TypeVar, get_args, get_origin

from fastapi_rooms.domain.errors import ConfigurationError

T = TypeVar("T")


class _IncomingMark:
    """Tells `Incoming` from other annotations."""


Incoming = Annotated[T, _IncomingMark()]
"""Marks the parameter of a handler that takes the client's messages: `message: Incoming[Say]`."""


def message_type(annotation: Any) -> Any:
    """Return what `Incoming` stands for in an annotation; None if it is not one.

    Raises:
        ConfigurationError: It is `Incoming` alone.
    """
    if get_origin(annotation) is not Annotated:
        return None
    inner, *marks = get_args(annotation)
    others = [mark for mark in marks if not isinstance(mark, _IncomingMark)]
    if len(others) == len(marks):
        return None
    if isinstance(inner, TypeVar):
        raise ConfigurationError("Incoming needs the type of the messages: write Incoming[str], Incoming[Say] …")
    return Annotated[(inner, *others)] if others else inner


def is_marked(annotation: Any) -> bool:
    """Return whether there is an `Incoming` anywhere in an annotation."""
    return isinstance(annotation, _IncomingMark) or any(is_marked(part) for part in get_args(annotation))
