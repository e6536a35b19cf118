"""Close codes (RFC 6455 section 7.4 and its IANA registry) and what may go into a close frame."""

from enum import IntEnum
from typing import NamedTuple, Self

from fastapi_rooms.domain.errors import ConfigurationError

MAX_REASON_BYTES = 123
"""A control frame carries 125 bytes (RFC 6455 section 5.5), two of which are the code."""


ABNORMAL = 1006
"""In place of a close code when there was no close frame (RFC 6455 section 7.1.5); never on the wire."""


class CloseCode(IntEnum):
    """The close codes that fastapi-rooms sends itself, and what a client is to make of them.

    Your own are 4000 to 4999. By convention, a client may come back after 4000 to 4499, and must not after 4500 to
    4999: see `may_reconnect`.
    """

    meaning: str
    """One sentence for the people who read a log."""

    def __new__(cls, code: int, meaning: str) -> Self:
        """Make a member of a code and what it says."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    NORMAL = 1000, "It is over, and nothing is wrong."
    GOING_AWAY = 1001, "The other side leaves."
    UNSUPPORTED_DATA = 1003, "A kind of message that is not served here."
    INVALID_DATA = 1007, "Too many messages in a row that could not be read."
    POLICY_VIOLATION = 1008, "Too many messages in too short a time, in spite of being told."
    TOO_BIG = 1009, "A message was too large."
    INTERNAL_ERROR = 1011, "The server made a mistake."
    SERVICE_RESTART = 1012, "The server restarts."
    TRY_AGAIN_LATER = 1013, "The client, or the server, could not keep up."
    LOGIN_EXPIRED = 4401, "The credentials have expired; come back with new ones."
    SILENT = 4408, "The client did not say anything in time."
    REVOKED = 4501, "The user was logged out everywhere."
    REPLACED = 4509, "A newer connection of the user has taken its place."


class Final(NamedTuple):
    """Close codes after which a client must not come back by itself."""

    first: int
    last: int
    why: str


FINAL = (
    Final(1000, 1000, "it is over"),
    Final(1002, 1003, "the client would make the same mistake again: the protocol, a kind of message"),
    Final(1007, 1009, "likewise: data that cannot be read, too many messages, a message that is too large"),
    Final(1010, 1010, "an extension is missing, and will be"),
    Final(4500, 4999, "by our convention: logged out, replaced, banned"),
)
"""After which close codes a client must not come back. The only table of it: that of the demo is made from this one."""


def may_reconnect(code: int | None) -> bool:
    """Return whether a client that was closed with a code may connect again; with a growing and random delay.

    It may unless somebody said that it may not. So it may after what never travels (1005, 1006), and where a library
    has no code to report, whatever it says instead: None (tornado), 0 (Deno) or -1.
    """
    return code is None or not any(first <= code <= last for first, last, _ in FINAL)


# 1004, 1005, 1006 and 1015 never appear on the wire; 1016-2999 are reserved for the protocol.
_SENDABLE = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


def check_close(code: int, reason: str) -> tuple[int, str]:
    """Return a code and reason that fit into a close frame.

    A reason longer than 123 bytes of UTF-8 is cut at a character; lone surrogates become `?`.

    Raises:
        ConfigurationError: The code may not be sent (left alone it would reach the client as 1006), or the reason is
            no text.
    """
    is_number: bool = isinstance(code, int)  # asked at run time, too: "4000" is easily passed
    if not is_number or (code not in _SENDABLE and not 3000 <= code <= 4999):  # noqa: PLR2004 - RFC 6455 section 7.4.2
        raise ConfigurationError(
            f"{code!r} is no close code that may be sent: use 1000-1003, 1007-1014, 3000-3999 (registered) "
            "or 4000-4999 (your own)"
        )
    is_text: bool = isinstance(reason, str)
    if not is_text:
        raise ConfigurationError(f"the reason of a close is a text, not {reason!r}: leave it out if there is none")
    encoded = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES]
    return int(code), encoded.decode("utf-8", "ignore")
