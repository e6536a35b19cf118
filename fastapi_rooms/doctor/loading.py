"""Imports an app as its server would, and says what this made."""

import gc
import importlib
import inspect
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from fastapi_rooms.doctor.redaction import without_credentials
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.extension import RoomsExtension


class CannotLoad(Exception):  # noqa: N818 - a finding about the app
    """The app cannot be imported. Its text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An app, and what its import made."""

    target: str
    outermost: Any
    """What the server calls: the app, or what is around it."""
    app: Starlette
    outer_layers: tuple[str, ...]
    """What was around the app, from outside in."""
    managers: tuple[ConnectionManager, ...]
    extensions: tuple[RoomsExtension, ...]


def load(target: str, folder: str = "", *, is_factory: bool = False) -> Loaded:
    """Import `MODULE:APP`.

    Args:
        target: What to import.
        folder: Where to look for the module; by default the working directory.
        is_factory: APP is to be called.

    Raises:
        CannotLoad: There is no such app, or its import raised.
    """
    folder = folder or str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    before = list(_made())  # kept, so that no object of the import can have the id of one of these
    known = {id(one) for one in before}
    outermost = _found(target, folder, is_factory=is_factory)
    app, layers = _unwrapped(target, outermost)
    made = [one for one in _made() if id(one) not in known]
    return Loaded(
        target,
        outermost,
        app,
        layers,
        tuple(one for one in made if isinstance(one, ConnectionManager)),
        tuple(one for one in made if isinstance(one, RoomsExtension)),
    )


def _made() -> Iterator[ConnectionManager | RoomsExtension]:
    """Find every manager and extension, wherever the app keeps it: in a module, a closure, or a container."""
    # `isinstance` would ask foreign objects for their class, which some answer with an exception.
    return (one for one in gc.get_objects() if issubclass(type(one), ConnectionManager | RoomsExtension))


def _found(target: str, folder: str, *, is_factory: bool) -> Any:
    module, _, attributes = target.partition(":")
    if not module or not attributes:
        raise CannotLoad(f"{target!r} names no app: write MODULE:APP, such as main:app or shop.web:app")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as failure:
        if failure.name is None or not f"{module}.".startswith(f"{failure.name}."):
            raise _failed(target, folder, failure) from failure  # a module that the app imports
        raise CannotLoad(
            f"there is no module {failure.name!r} in {folder}: run this in the directory that you start the server in, "
            "or name that with --app-dir"
        ) from failure
    except (Exception, SystemExit) as failure:
        raise _failed(target, folder, failure) from failure
    try:
        found = attrgetter(attributes)(found)
    except AttributeError as failure:
        raise CannotLoad(f"{module} has no {attributes!r}: write MODULE:APP with the name of the app") from failure
    try:
        return found() if is_factory or _is_factory(found) else found
    except (Exception, SystemExit) as failure:
        raise _failed(target, folder, failure) from failure


def _is_factory(found: Any) -> bool:
    """Return whether uvicorn would call it for an app: it does so if that works without arguments."""
    return inspect.isfunction(found) and not inspect.signature(found).parameters


def _failed(target: str, folder: str, failure: BaseException) -> CannotLoad:
    told = "".join(traceback.format_exception_only(failure)).rstrip()
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename.startswith(folder)]
    if frames:
        told += f"\n(at {frames[-1].filename}, line {frames[-1].lineno})"
    return CannotLoad(
        without_credentials(
            f"importing {target} failed:\n\n{textwrap.indent(told, '    ')}\n\nRun this where and as you start the "
            "server: in the same directory, with the same virtual environment and the same environment variables"
        )
    )


def _unwrapped(target: str, found: Any) -> tuple[Starlette, tuple[str, ...]]:
    """Take off what was put around an app by hand: `Wrapper(app)`, or a function that says what it wraps."""
    layers = []
    while not isinstance(found, Starlette):
        inner = getattr(found, "app", None) or getattr(found, "__wrapped__", None)
        if inner is None:
            raise CannotLoad(f"{target} is no FastAPI app but {type(found).__name__}: name the app object")
        named = found if inspect.isfunction(found) else type(found)
        layers.append(named.__qualname__.partition(".<locals>")[0])
        found = inner
    return found, tuple(layers)
