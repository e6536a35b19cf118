"""Keeps credentials out of what is printed."""

import re

_URL = re.compile(r"(?<=://)\S+")
_PARAMETER = re.compile(r"([?&][^=&\s]*(?:user|pass|secret|token)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """Return a text whose URLs show no user and no password, neither before the host nor in the query."""
    return _URL.sub(_shown, text)


def _shown(url: re.Match[str]) -> str:
    hidden, at, rest = url[0].rpartition("@")  # the last @ of the word: a password may have one, too
    if _PARAMETER.search(hidden):
        return "***"  # that @ may be in a parameter, and what follows it the end of a password
    return ("***@" if at else "") + _PARAMETER.sub(r"\1***", rest)
