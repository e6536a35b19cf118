"""Whether what an app passes in can be asked, found out before anybody is."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import get_origin

from fastapi_rooms.domain.errors import ConfigurationError

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
    called = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigurationError(f"{name} is asked a question, but {function!r} yields: write `return` in it")


def check_takes_two(function: Callable[..., object], takes: str, advice: str = "") -> None:
    """Check that a function can be called with two arguments.

    Args:
        function: The function.
        takes: What it is called with, for the error.
        advice: What else there is to say.

    Raises:
        ConfigurationError: It cannot.
    """
    name = getattr(function, "__name__", repr(function))
    try:
        inspect.signature(function).bind(None, "")
    except TypeError as error:
        raise ConfigurationError(f"{takes}, but {name}(): {error}{advice}") from error
    except ValueError:
        return  # written in C: nobody knows what it takes
