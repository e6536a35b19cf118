"""What a room or a user may be called."""

from unicodedata import category, is_normalized

from fastapi_rooms.domain.errors import ConfigurationError, InvalidName

MAX_NAME_BYTES = 255
"""Of UTF-8. Long enough for any identifier; names are kept once per room and travel with every message."""


def check_name(kind: str, name: str) -> str:
    """Return a name that can be one.

    Args:
        kind: What it is the name of, for the error.
        name: The name.

    Raises:
        ConfigurationError: It is no str.
        InvalidName: It is empty, too long, holds a control character, or could be spelt in two ways.
    """
    is_text: bool = isinstance(name, str)  # asked at run time, too: numbers are easily passed
    if not is_text:
        if stands_for_a_client(name):
            raise ConfigurationError(f"{kind} takes a str, not {type(name).__name__}: {_MEANT.get(kind, _ITS_USER)}")
        raise ConfigurationError(f"{kind} takes a str, not {type(name).__name__}: write str(...)")
    if name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES:
        return name  # nearly always
    if not name:
        raise InvalidName(f"{kind} is empty: give it a name")
    if any(category(character) in _UNSEEN for character in name):
        raise InvalidName(f"{kind} holds a control character, a line break or half of a surrogate pair: leave them out")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidName(f"{kind} has more than {MAX_NAME_BYTES} bytes of UTF-8: use a shorter name, or a hash of it")
    if not is_normalized("NFC", name):
        raise InvalidName(
            f"{kind} is not in Unicode's normal form C, so that it could look like another name: pass it through "
            "unicodedata.normalize('NFC', name)"
        )
    return name


def stands_for_a_client(value: object) -> bool:
    """Return whether a value is a `Connection` or a `WebSocket`, by name: they are made of what is above here."""
    return any(kind.__name__ in _CLIENTS for kind in type(value).__mro__)


_CLIENTS = frozenset({"Connection", "WebSocket"})
_ITS_USER = "write connection.user_id"
_MEANT = {
    "room": "are the arguments the other way round, as in join_room(connection, room)? To one client alone goes "
    "send_personal(connection, message)",
    "user_id": f"{_ITS_USER}; or, if this client alone is meant, send_personal(connection, message), close(connection)",
}
"""What was meant by who names a client in place of a room or a user."""
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, surrogates, line and paragraph separators."""
