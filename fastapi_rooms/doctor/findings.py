"""What a check says."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is; the worst first."""

    ERROR = "error"
    """Something does not work, or will not when it matters."""
    WARNING = "warning"
    """It works until somebody is slow, malicious, or stops a process."""
    NOTE = "note"
    """A price that is paid, or something worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    severity: Severity
    problem: str
    """What is the matter, and what comes of it."""
    advice: str
    """What to do."""


def error(problem: str, advice: str) -> Finding:
    """Say that something does not work."""
    return Finding(Severity.ERROR, problem, advice)


def warning(problem: str, advice: str) -> Finding:
    """Say that something will not work one day."""
    return Finding(Severity.WARNING, problem, advice)


def note(problem: str, advice: str) -> Finding:
    """Say what is worth knowing."""
    return Finding(Severity.NOTE, problem, advice)
