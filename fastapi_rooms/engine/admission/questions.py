"""Whether what an app passes in can be asked, found out before anybody is."""

from functools import partial
from typing import get_origin

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.functions import yields

_TYPING = frozenset({"typing", "types", "typing_extensions"})
"""Where what stands for a type comes from: much of it can be called, and answers nothing."""


def check_answers(function: object, name: str) -> None:
    """Check that a function returns its answer: what yields one returns a generator, which is true.

    Args:
        function: A function, or what can be called like one.
        name: What it is called where it is passed in.

    Raises:
        ConfigurationError: It does not, or is no function.
    """
    if not callable(function) or get_origin(function) is not None or type(function).__module__ in _TYPING:
        raise ConfigurationError(f"{name} takes a function, not {function!r}")
    while isinstance(function, partial):
        function = function.func
    if yields(function):
        raise ConfigurationError(f"{name} is asked a question, but {function!r} yields: write `return` in it")
