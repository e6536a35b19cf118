"""What a worker class of gunicorn has uvicorn do. Its source is read, not run: it would import gunicorn."""

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

NAMES = ("UvicornWorker", "UvicornH11Worker")
_MODULES = ("uvicorn_worker", "uvicorn.workers")


def uvicorn_settings(worker: str) -> dict[str, Any] | None:
    """Return what a worker class gives to uvicorn beside the defaults; None if it is not one of uvicorn's.

    One that is derived from `UvicornWorker` and sets `CONFIG_KWARGS` is understood, as far as those are constants.

    Args:
        worker: The class by its full name, as gunicorn is told.
    """
    module, _, name = worker.replace(":", ".").rpartition(".")
    if module in _MODULES:
        return {} if name in NAMES else None
    for file in _files(module) if module else ():  # else it is the short name of another kind
        with suppress(OSError, SyntaxError, ValueError):
            for statement in ast.parse(file.read_text()).body:
                if isinstance(statement, ast.ClassDef) and statement.name == name:
                    return _settings(statement)
    return None


def _files(module: str) -> Iterator[Path]:
    parts = module.split(".")
    for folder in ("", *sys.path):
        yield Path(folder, *parts).with_suffix(".py")
        yield Path(folder, *parts, "__init__.py")


def _settings(definition: ast.ClassDef) -> dict[str, Any] | None:
    bases = [ast.unparse(base).rpartition(".")[2] for base in definition.bases]
    if not set(bases) & set(NAMES):
        return None
    found: dict[str, Any] = {}
    for statement in definition.body:
        if "CONFIG_KWARGS" in {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}:
            for node in ast.walk(statement):
                if isinstance(node, ast.Dict):
                    found |= dict(_constants(node))
    return found


def _constants(node: ast.Dict) -> Iterator[tuple[str, Any]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
            yield str(key.value), value.value
