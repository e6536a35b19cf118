"""Whether anybody will read what this package says at INFO.

That is seen of the loggers as the import of the app has left them, and of a file that the server configures logging
with. The file is only read: to apply it would open the files that it names.
"""

import json
import logging
import tomllib
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

NAME = "fastapi_rooms"


def is_info_heard(config_file: str | None = None, logger: logging.Logger | None = None) -> bool:
    """Return whether INFO lines of the package go anywhere; True if the file cannot be understood.

    The level may come from one of the two, and the handler from the other.

    Args:
        config_file: What the server is given for its logging; None: nothing.
        logger: The package's logger.
    """
    logger = logger or logging.getLogger(NAME)
    levels = [logger.getEffectiveLevel()]
    handlers = [handler.level for one in _chain(logger) for handler in one.handlers]
    if config_file is not None:
        described = None
        with suppress(Exception):  # whatever is wrong with it is told by the server
            described = _described(_read(config_file))
        if described is None:
            return True
        levels += described[0]
        handlers += described[1]
    return min(levels) <= logging.INFO and any(level <= logging.INFO for level in handlers)


def _chain(logger: logging.Logger | None) -> Iterator[logging.Logger]:
    """Return whose handlers are asked."""
    while logger is not None:
        yield logger
        logger = logger.parent if logger.propagate else None


def _read(config_file: str) -> Mapping[str, Any]:
    """Return what a file says, in the form that `logging.config.dictConfig` takes."""
    kind, colon, name = config_file.partition(":")
    if not colon or kind not in {"json", "toml"}:  # as hypercorn has them
        kind, name = "", config_file
    text = Path(name).read_text()
    suffix = kind or Path(name).suffix.removeprefix(".")
    if suffix == "json":
        read: Mapping[str, Any] = json.loads(text)
    elif suffix == "toml":
        read = tomllib.loads(text)
    elif suffix in {"yaml", "yml"}:
        read = import_module("yaml").safe_load(text)  # no dependency
    else:
        read = _of_sections(text)
    return read


def _of_sections(text: str) -> Mapping[str, Any]:
    """Return the same of the form that `logging.config.fileConfig` takes."""
    parser = RawConfigParser()
    parser.read_string(text)
    sections = {name: dict(parser[name]) for name in parser.sections()}
    loggers = {
        section.get("qualname", ""): {
            **section,
            "handlers": [one.strip() for one in section.get("handlers", "").split(",") if one.strip()],
            "propagate": section.get("propagate", "1").strip() != "0",
        }
        for name, section in sections.items()
        if name.startswith("logger_")
    }
    handlers = {name.removeprefix("handler_"): one for name, one in sections.items() if name.startswith("handler_")}
    return {"loggers": loggers, "handlers": handlers}


def _described(config: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return which level a configuration has the package's logger have, if any, and which its handlers have."""
    loggers = config.get("loggers", {})
    own = loggers.get(NAME, {})
    chain = [own]
    if own.get("propagate", True):
        chain.append(config.get("root") or loggers.get("") or {})
    given = [_level(one["level"]) for one in chain if one.get("level")]
    named = [name for one in chain for name in one.get("handlers", ())]
    known = config.get("handlers", {})
    set_levels = [level for level in given if level != logging.NOTSET]
    return set_levels[:1], [_level(known[name].get("level", logging.NOTSET)) for name in named]


def _level(level: str | int) -> int:
    return level if isinstance(level, int) else logging.getLevelNamesMapping()[level.strip().upper()]
