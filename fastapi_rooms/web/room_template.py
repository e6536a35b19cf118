"""Templates of rooms over what a path has, such as `chat:{room_id}`."""

from collections.abc import Mapping
from string import Formatter
from typing import Any
from uuid import UUID

from starlette.convertors import Convertor
from starlette.routing import compile_path

from fastapi_rooms.domain.errors import ConfigurationError


def check_template(template: str, path: str) -> frozenset[str]:
    """Check that a template can be filled in with what a path has, and names nothing else; return what it names.

    Raises:
        ConfigurationError: It cannot, or does.
    """
    samples = _samples(path)
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        unknown = fields - samples.keys()
        if not unknown:
            template.format_map(samples)
    except (ValueError, LookupError) as error:
        raise ConfigurationError(f"the room template {template!r} cannot be filled in: {error!r}") from error
    if unknown:
        raise ConfigurationError(
            f"the room template {template!r} names {', '.join(map(repr, sorted(unknown)))}, but the path has "
            f"{', '.join(map(repr, samples)) or 'no parameters'}: use these, or a dependency that returns a room"
        )
    return frozenset(fields)


def _samples(path: str) -> Mapping[str, Any]:
    """Return the parameters of a path, each with a sample of what it will be."""
    return {name: _sample(convertor) for name, convertor in compile_path(path)[2].items()}


def _sample(convertor: Convertor[Any]) -> Any:
    for text in ("1", str(UUID(int=1))):
        try:
            return convertor.convert(text)
        except ValueError:
            continue
    return ""
