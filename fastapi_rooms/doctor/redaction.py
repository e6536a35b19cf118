"""Keeps credentials out of what is printed."""

import re

_CREDENTIALS = re.compile(r"(?<=://)\S*@")  # to the last @ of the word: a password may have one, too


def without_credentials(text: str) -> str:
    """Return a text whose URLs show no user and no password."""
    return _CREDENTIALS.sub("***@", text)
