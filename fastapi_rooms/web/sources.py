"""Dependencies that are passed to `ws_route` as options."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from fastapi import Depends, params

from fastapi_rooms.domain.errors import ConfigurationError

Source = Callable[..., Any] | params.Depends
"""Where a value comes from: a dependency."""


def depends(label: str, source: Any) -> params.Depends:
    """Return what FastAPI has to solve for an option.

    `Annotated[T, Depends(f)]`, as such aliases are named in apps, stands for its `Depends`. It can be called, like much
    that is no dependency; FastAPI would call it with `args` and `kwargs` out of the query, and never call `f`.

    Args:
        label: What the option is called.
        source: A function or a class, an object that can be called, `Depends(...)`, or an alias that holds one.

    Raises:
        ConfigurationError: It is nothing that FastAPI can solve.
    """
    if isinstance(source, params.Depends):
        if get_origin(_value_of(source.dependency)) is Annotated:
            return depends(label, source.dependency)  # Depends(Alias)
        _check_callable(label, source.dependency)
        return source
    alias = _value_of(source)
    if get_origin(alias) is Annotated:
        return _depends_in(label, alias)
    _check_callable(label, source)
    made: params.Depends = Depends(source)
    return made


def _value_of(alias: Any) -> Any:
    """Return what a `type` statement stands for."""
    return getattr(alias, "__value__", alias)


def _depends_in(label: str, alias: Any) -> params.Depends:
    """Return the `Depends` in an annotated alias; `Depends()` in it stands for its type."""
    kind, *marks = get_args(alias)
    found = [mark for mark in marks if isinstance(mark, params.Depends)]
    if not found:
        raise ConfigurationError(
            f"{label} takes a dependency, and {alias!r} holds none: write {label}=function, or put Depends(function) "
            "into the Annotated"
        )
    last = found[-1]  # as FastAPI does
    return depends(label, kind if last.dependency is None else last)


def _check_callable(label: str, source: Any) -> None:
    if not callable(source) or get_origin(source) is not None:
        raise ConfigurationError(f"{label} takes a dependency, not {source!r}: pass a function that FastAPI can call")
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):
        return  # written in C: FastAPI will say what it thinks of it
    nameless = [
        parameter for parameter in parameters if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if nameless:
        raise ConfigurationError(
            f"{label} cannot be {source!r}: FastAPI would fill {nameless[0]} from the query. Name each parameter, and "
            "let decorators use functools.wraps"
        )
