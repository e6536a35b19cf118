"""What is installed, and what is needed."""

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

PACKAGE = "fastapi-rooms"
LOOKED_AT = (PACKAGE, "fastapi", "starlette", "pydantic", "redis", "uvicorn", "websockets", "uvloop")


def installed() -> dict[str, str]:
    """Return the versions of what matters, by name; what is not installed is not there."""
    found = {"python": platform.python_version()}
    for package in LOOKED_AT:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def required() -> dict[str, str]:
    """Return the oldest versions that this package works with, by name."""
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:  # it was copied, not installed
        return {}
    found = [re.fullmatch(r"([\w.-]+)>=([\w.]+)", line) for line in lines]
    return {match[1]: match[2] for match in found if match is not None}


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])
