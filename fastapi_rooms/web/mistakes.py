"""Parameters that FastAPI cannot fill on a WebSocket, and what to write instead.

FastAPI takes them for a query parameter or a body, and then answers every client with 403. Each rule knows one mistake.
A new one is a function here, a line in `RULES`, and a row in `tests/web/test_mistakes.py`.
"""

import inspect
from collections.abc import Callable

from fastapi import params
from pydantic import BaseModel

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.incoming_mark import is_marked
from fastapi_rooms.web.sources import dependency_in, fault

Rule = Callable[[inspect.Parameter], str | None]
"""From a parameter, whose annotation is no text any more, to how it is put right; None: it is right."""


def _without_a_name(parameter: inspect.Parameter) -> str | None:
    if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        return None
    return "name each parameter so that it can be passed by name"


def _incoming_inside_of_a_type(parameter: inspect.Parameter) -> str | None:
    return "write Incoming around the whole type, such as Incoming[A | B]" if is_marked(parameter.annotation) else None


def _a_body(parameter: inspect.Parameter) -> str | None:
    if not _is_bare(parameter, BaseModel):
        return None
    return (
        f"write Incoming[{parameter.annotation.__name__}] to take the client's messages, or Depends() for anything else"
    )


def _a_bare_connection(parameter: inspect.Parameter) -> str | None:
    if not _is_bare(parameter, Connection):
        return None
    return "write ConnectionDep, or Annotated[Connection, Depends(current_connection)]"


def _a_bare_manager(parameter: inspect.Parameter) -> str | None:
    if not _is_bare(parameter, ConnectionManager):
        return None
    return "write ManagerDep, or Annotated[ConnectionManager, Depends(get_manager)]"


def _a_dependency_that_is_none(parameter: inspect.Parameter) -> str | None:
    depends = dependency_in(parameter.annotation, parameter.default)
    wrong = None if depends is None else fault(depends)
    return None if wrong is None else f"{wrong}; write Depends(function)"


RULES: tuple[Rule, ...] = (
    _without_a_name,
    _incoming_inside_of_a_type,
    _a_body,
    _a_bare_connection,
    _a_bare_manager,
    _a_dependency_that_is_none,
)
"""The first that has something to say is heard."""


def refuse_mistakes(name: str, parameter: inspect.Parameter) -> None:
    """Refuse a parameter that FastAPI cannot fill.

    Args:
        name: Of the function that takes it.
        parameter: The parameter, its annotation read.

    Raises:
        ConfigurationError: A rule knows how to put it right.
    """
    fix = next((fix for rule in RULES if (fix := rule(parameter)) is not None), None)
    if fix is not None:
        raise ConfigurationError(f"{name}() cannot be given its parameter {parameter}: {fix}")


def _is_bare(parameter: inspect.Parameter, kind: type) -> bool:
    """Return whether a parameter asks for an object of a kind, and names no dependency that makes it."""
    annotation = parameter.annotation
    return (
        inspect.isclass(annotation)
        and issubclass(annotation, kind)
        and not isinstance(parameter.default, params.Depends)
    )
