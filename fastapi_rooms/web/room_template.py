"""Templates of rooms over what a path has, such as `chat:{room_id}`.

A template is filled with what FastAPI made of the path for the handler, not with the text of the path: `/007` is room
`chat:7` for a handler that takes an int, which names that room itself when it broadcasts.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from string import Formatter
from typing import Annotated, Any, get_args, get_origin
from uuid import UUID

from fastapi import params
from starlette.convertors import Convertor
from starlette.routing import compile_path

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.web.sources import dependencies_of, dependency_in

PREFIX = "rooms_path_"
_SAMPLES = (1, "a", 1.0, True, UUID(int=1), date(2000, 1, 1), datetime(2000, 1, 1), Decimal(1))  # noqa: DTZ001
"""Values of the types that a part of a path mostly has."""


@dataclass(frozen=True, slots=True)
class RoomTemplate:
    """A template, and where the value of each of its fields is found."""

    text: str
    """The template."""
    filled_by: Mapping[str, str]
    """From a field to the parameter with its value; fields that are not here have what the path's convertor made."""
    parameters: tuple[inspect.Parameter, ...]
    """What FastAPI has to fill for the template alone."""

    def fill(self, values: Mapping[str, Any], path_params: Mapping[str, Any]) -> str:
        """Return the room of a client; an enum is written as its value.

        Args:
            values: What FastAPI has filled.
            path_params: What the path's convertors made.
        """
        found = {**path_params, **{field: values[name] for field, name in self.filled_by.items()}}
        return self.text.format_map(
            {field: value.value if isinstance(value, Enum) else value for field, value in found.items()}
        )


def read_template(
    text: str, path: str, taken: Iterable[inspect.Parameter], sources: Iterable[params.Depends]
) -> RoomTemplate:
    """Return a template that can be filled.

    Args:
        text: The template.
        path: The path of the route, with the prefix of its router.
        taken: The parameters of the handler that FastAPI fills.
        sources: Further dependencies, which may say what type a field has if the handler does not.

    Raises:
        ConfigurationError: It cannot be filled, or names what is not in the path.
    """
    convertors = compile_path(path)[2]
    handlers = {field: parameter for parameter in taken if (field := _field_of(parameter, convertors)) is not None}
    dependencies = [*dependencies_of(taken), *sources]
    fields = _fields(text)
    found = {field: handlers.get(field) or _declared(field, dependencies, convertors) for field in sorted(fields)}
    known = [*convertors, *(field for field in handlers if field not in convertors)]
    if unknown := {field for field, parameter in found.items() if parameter is None} - convertors.keys():
        raise ConfigurationError(
            f"the room template {text!r} names {', '.join(map(repr, sorted(unknown)))}, but the path has "
            f"{', '.join(map(repr, known)) or 'no parameters'}: use these, a parameter of the handler that is marked "
            "with Path(), or a dependency that returns a room"
        )
    filled_by, ours, samples = {}, [], dict[str, Any]()
    for field, parameter in found.items():
        samples[field] = _sample(convertors.get(field), None if parameter is None else parameter.annotation)
        if parameter is not None and field not in handlers:
            parameter = _ours(field, parameter.annotation)  # noqa: PLW2901
            ours.append(parameter)
        if parameter is not None:
            filled_by[field] = parameter.name
    _try(text, samples)
    return RoomTemplate(text, filled_by, tuple(ours))


def _fields(text: str) -> set[str]:
    """Return what a template names, also where it says how something is written."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ConfigurationError(f"the room template {text!r} cannot be filled in: {error!r}") from error
    fields = {field for _, field, _, _ in parsed if field is not None}
    return fields.union(*(_fields(spec) for _, _, spec, _ in parsed if spec))


def _field_of(parameter: inspect.Parameter, path_names: Iterable[str]) -> str | None:
    """Return which part of the path fills a parameter; None: something else does."""
    annotation = parameter.annotation
    marks = [*(get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()), parameter.default]
    if dependency_in(annotation, parameter.default) is not None:
        return None
    for mark in marks:
        if isinstance(mark, params.Path):
            return mark.alias or parameter.name
    return parameter.name if parameter.name in path_names else None


def _declared(
    field: str, dependencies: Iterable[params.Depends], path_names: Iterable[str]
) -> inspect.Parameter | None:
    """Return the first parameter of a dependency, or of one of its own, that this part of the path fills."""
    for depends in dependencies:
        inner = _parameters_of(depends.dependency)
        found = next((taken for taken in inner if _field_of(taken, path_names) == field), None)
        if found is not None or (found := _declared(field, dependencies_of(inner), path_names)) is not None:
            return found
    return None


def _parameters_of(function: Any) -> list[inspect.Parameter]:
    """Return the parameters of a dependency; none if they cannot be read, of which FastAPI has more to say."""
    try:
        return list(inspect.signature(function, eval_str=True).parameters.values())
    except (NameError, SyntaxError, TypeError, ValueError):
        return []


def _ours(field: str, annotation: Any) -> inspect.Parameter:
    """Return a parameter that FastAPI fills from the path with a value of this type."""
    if annotation is inspect.Parameter.empty:
        annotation = Any
    inner, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    rest = [mark for mark in marks if not isinstance(mark, params.Path)]
    return inspect.Parameter(
        PREFIX + field,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[(inner, *rest, params.Path(alias=field))],
    )


def _sample(convertor: Convertor[Any] | None, annotation: Any) -> Any:
    """Return what a part of the path may become; None: nobody knows, without a call of the app's code."""
    if annotation in (None, inspect.Parameter.empty):
        return _converted(convertor)
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if inspect.isclass(inner) and issubclass(inner, Enum):
        return next((member.value for member in inner), None)
    return next((sample for sample in _SAMPLES if type(sample) is inner), None)


def _converted(convertor: Convertor[Any] | None) -> Any:
    if convertor is not None:
        for sample in _SAMPLES:
            try:
                return convertor.convert(str(sample))
            except ValueError:
                continue
    return None


def _try(text: str, samples: Mapping[str, Any]) -> None:
    """Fill a template in, if what will fill it can be imagined."""
    if None in samples.values():
        return
    try:
        text.format_map(samples)
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"the room template {text!r} cannot be filled in: {error!r}") from error
