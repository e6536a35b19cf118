"""Close codes (RFC 6455 section 7.4 and its IANA registry) and what may go into a close frame."""

from enum import IntEnum

from fastapi_rooms.domain.errors import ConfigurationError

MAX_REASON_BYTES = 123
"""A control frame carries 125 bytes (RFC 6455 section 5.5), two of which are the code."""


class CloseCode(IntEnum):
    """The close codes that fastapi-rooms sends itself."""

    NORMAL = 1000
    INVALID_DATA = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013


# 1004, 1005, 1006 and 1015 never appear on the wire; 1016-2999 are reserved for the protocol.
_SENDABLE = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


def check_close(code: int, reason: str) -> tuple[int, str]:
    """Return a code and reason that fit into a close frame.

    A reason longer than 123 bytes of UTF-8 is cut at a character; lone surrogates become `?`.

    Raises:
        ConfigurationError: The code may not be sent. Left alone it would reach the client as 1006.
    """
    is_number: bool = isinstance(code, int)  # asked at run time, too: "4000" is easily passed
    if not is_number or (code not in _SENDABLE and not 3000 <= code <= 4999):  # noqa: PLR2004 - RFC 6455 section 7.4.2
        raise ConfigurationError(
            f"{code!r} is no close code that may be sent: use 1000-1003, 1007-1014, 3000-3999 (registered) "
            "or 4000-4999 (your own)"
        )
    encoded = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES]
    return int(code), encoded.decode("utf-8", "ignore")
