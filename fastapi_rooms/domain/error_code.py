"""The codes of error frames: what a client is told whose connection goes on."""

from enum import StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """The `code` in an error frame, `{"type":"error","code":…}`, that fastapi-rooms sends itself.

    Your own come from subclasses of `RefusedError` and are any other `str`.
    """

    meaning: str
    """One sentence for the people who write a client."""

    def __new__(cls, code: str, meaning: str) -> Self:
        """Make a member of a code and what it says."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    INVALID_MESSAGE = "invalid_message", "The message is not of the type that is taken here."
    RATE_LIMITED = "rate_limited", "Messages come faster than they may, and some were dropped."
    UNAVAILABLE = "unavailable", "Other nodes could not be told, or nobody knows whether they were."
    REFUSED = "refused", "The client asked for what it may not have."
    INVALID_NAME = "invalid_name", "A room or a user cannot be called that."
    JOIN_REFUSED = "join_refused", "The room may not be joined."
    TOO_MANY_ROOMS = "too_many_rooms", "The connection is in as many rooms as it may be."
