"""Whether a function that an app passes in can be called as it will be, found out before anybody is."""

import inspect
from collections.abc import Callable
from typing import Any

from fastapi_rooms.domain.errors import ConfigurationError


def check_takes(function: Callable[..., object], arguments: tuple[Any, ...], takes: str, advice: str = "") -> None:
    """Check that a function can be called with so many arguments.

    Args:
        function: The function.
        arguments: Some that it may be called with; only their number counts.
        takes: What it is called with, for the error.
        advice: What else there is to say.

    Raises:
        ConfigurationError: It cannot.
    """
    name = getattr(function, "__name__", repr(function))
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ConfigurationError(f"{takes}, but {name}(): {error}{advice}") from error
    except ValueError:
        return  # written in C: nobody knows what it takes


def yields(function: object) -> bool:
    """Return whether to call a function is to do nothing yet, since it yields."""
    called = function if inspect.isroutine(function) else type(function).__call__
    return inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)
