"""What an option of a route takes for a dependency: a function, `Depends`, or an `Annotated` alias that holds one.

Much that is no dependency can be called, an alias among it: then FastAPI takes `*args` and `**kwargs` for query
parameters, and whoever sends `?args=1&kwargs=1` passes a check that has never run. So what may be called by accident is
refused when the route is made.
"""

import copy
import inspect
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, get_args, get_origin

from fastapi import Depends, params

from fastapi_rooms.domain.errors import ConfigurationError

_TYPING = frozenset({"typing", "types", "typing_extensions"})
_UNNAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


def read_source(label: str, source: object) -> params.Depends:
    """Return the dependency that an option names.

    Args:
        label: The name of the option.
        source: A function or class, `Depends` or `Security` around one, or an `Annotated` alias with one of these.

    Raises:
        ConfigurationError: It names none.
    """
    write = "dependencies=[Depends(function)]" if label == "dependencies" else f"{label}=Depends(function)"
    if isinstance(source, params.Depends):
        found: params.Depends | None = source
    elif _is_annotation(source):
        found = dependency_in(source)
        if found is None:
            raise ConfigurationError(f"{label} takes a dependency, and {source!r} holds none: write {write}")
    else:
        found = Depends(source)  # type: ignore[arg-type]
    assert found is not None, "what holds none was refused"
    if (wrong := fault(found)) is not None:
        raise ConfigurationError(
            f"{label} takes a dependency, not {source!r}: {wrong}; pass a function that FastAPI can call: {write}"
        )
    return found


def dependency_in(annotation: object, default: object = None) -> params.Depends | None:
    """Return the dependency that a parameter names, or an alias of one; as in FastAPI, the last of several counts.

    `Depends()` stands for the type that it is written next to.
    """
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__  # type: ignore[attr-defined]
    inner, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    found = [mark for mark in (*marks, default) if isinstance(mark, params.Depends)]
    if not found:
        return dependency_in(inner) if marks else None  # an alias in an alias
    mark: params.Depends = found[-1]
    if mark.dependency is None:
        mark = copy.copy(mark)
        object.__setattr__(mark, "dependency", inner)  # frozen in recent versions of FastAPI
    return mark


def dependencies_of(parameters: Iterable[inspect.Parameter]) -> list[params.Depends]:
    """Return the dependencies that parameters name."""
    found = (dependency_in(parameter.annotation, parameter.default) for parameter in parameters)
    return [depends for depends in found if depends is not None]


def fault(depends: params.Depends) -> str | None:
    """Return what is wrong with a dependency; None: FastAPI can call it."""
    called: Any = depends.dependency
    if called is None or called is inspect.Parameter.empty:
        return "Depends() names nothing"
    if not _is_meant_to_be_called(called):
        return f"{called!r} is neither a function nor a class"
    try:
        taken = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return f"nobody can read what {called!r} takes"
    if any(parameter.kind in _UNNAMED for parameter in taken):
        return (
            f"{called!r} takes what has no name, and any client could fill that from its query: name each parameter, "
            "or use functools.wraps in the decorator"
        )
    return None


def _is_meant_to_be_called(value: Any) -> bool:
    """Return whether something is a function, a class, or an object whose class has a `__call__` of its own."""
    while isinstance(value, partial):
        value = value.func
    if _is_annotation(value):
        return False
    return inspect.isroutine(value) or inspect.isclass(value) or callable(value)


def _is_annotation(value: object) -> bool:
    """Return whether something stands for a type and is none; many of these can be called."""
    if get_origin(value) is not None:
        return True
    of = value if inspect.isclass(value) else type(value)
    return of.__module__ in _TYPING and not inspect.isroutine(value)
