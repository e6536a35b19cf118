"""What an option of a route takes for a dependency: a function, `Depends`, or an `Annotated` alias that holds one.

Much that is no dependency can be called, an alias among it: then FastAPI takes `*args` and `**kwargs` for query
parameters, and whoever sends `?args=1&kwargs=1` passes a check that has never run. So what may be called by accident is
refused when the route is made.
"""

import copy
import inspect
from collections.abc import Callable, Iterable
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


Source = Callable[..., Any] | params.Depends
"""Where a value comes from: a dependency, or an `Annotated` alias that holds one."""


def read_source(label: str, source: object) -> params.Depends:
    """Return the dependency that an option names.

    Args:
        label: The name of the option.
        source: A function or class, `Depends` or `Security` around one, or an `Annotated` alias with one of these.

    Raises:
        ConfigurationError: It names none.
    """
    write = "dependencies=[Depends(function)]" if label == "dependencies" else f"{label}=Depends(function)"
    found = source if isinstance(source, params.Depends) else None
    if _is_annotation(source):
        found = dependency_in(source)
        if found is None:
            raise ConfigurationError(f"{label} takes a dependency, and {source!r} holds none: write {write}")
    if found is None:
        found = Depends(source)  # type: ignore[arg-type]
    while is_alias(found.dependency) and _says_nothing_more(found):  # Depends(Alias)
        inner = dependency_in(found.dependency)
        if inner is None:
            break
        found = inner
    if (wrong := fault(found)) is not None:
        raise ConfigurationError(
            f"{label} takes a dependency, not {source!r}: {wrong}; pass a function that FastAPI can call: {write}"
        )
    return found


def is_alias(source: object) -> bool:
    """Return whether something is `Annotated[...]`, or a `type` that stands for it."""
    return get_origin(_value_of(source)) is Annotated


def dependency_in(annotation: object, default: object = None) -> params.Depends | None:
    """Return the dependency that a parameter names, or an alias of one; as in FastAPI, the last of several counts.

    `Depends()` stands for the type that it is written next to.
    """
    annotation = _value_of(annotation)
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
    if is_alias(called):
        return (
            f"{called!r} is neither a function nor a class, and FastAPI would call it, not what it names: write the "
            "alias by itself, without Depends() around it"
        )
    if not _is_meant_to_be_called(called):
        return f"{called!r} is neither a function nor a class"
    try:
        taken = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return f"nobody can read what {called!r} takes"
    nameless = next((parameter for parameter in taken if parameter.kind in _UNNAMED), None)
    if nameless is not None:
        return (
            f"FastAPI would fill {nameless} from the query, and so could any client: name each parameter of "
            f"{called!r}, or use functools.wraps in the decorator"
        )
    return None


def _value_of(annotation: Any) -> Any:
    """Return what a `type` statement stands for."""
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    return annotation


def _says_nothing_more(mark: params.Depends) -> bool:
    """Return whether a mark names its dependency and no more: scopes that it asks for must not get lost."""
    plain = Depends(mark.dependency)
    return type(mark) is type(plain) and vars(mark) == vars(plain)


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
