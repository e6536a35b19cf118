"""Every error that fastapi-rooms raises at its callers. Each text ends with what to do."""

from collections.abc import Callable
from typing import Any

from fastapi_rooms.domain.error_code import ErrorCode


class RoomsError(Exception):
    """Root of all errors raised by fastapi-rooms."""


class ConfigurationError(RoomsError, ValueError):
    """Something was put together in a way that cannot work; found at start-up or at decoration wherever possible."""


class MessageError(RoomsError, ValueError):
    """A message cannot be encoded. Raised at the sender, before anybody was sent anything."""


class RefusedError(RoomsError):
    """A client asked for what it may not have. Escaping from a `ws_route` message handler it becomes an error frame.

    Args:
        args: What the log says; the client is not told.
        code: In place of that of the class.
        data: What the client is told beside the code; anything that becomes JSON.

    Attributes:
        code: What the client is told: an `ErrorCode`, or a `str` of your own.
        data: What it is told beside it; None: nothing.
    """

    code: str = ErrorCode.REFUSED
    data: Any = None  # here, too, for those whose own `__init__` does not call this one

    def __init__(self, *args: object, code: str | None = None, data: Any = None) -> None:
        super().__init__(*args)
        if code is not None:
            self.code = code
        self.data = data


class InvalidName(RefusedError, ValueError):  # noqa: N818 - says what it is
    """A room or a user cannot be called that."""

    code = ErrorCode.INVALID_NAME


class JoinRefused(RefusedError):  # noqa: N818 - says what happened
    """A connection may not join a room: the app's `authorize_join` said no.

    Attributes:
        room: Which, where that is known; the client is told, since it may have asked for several.
    """

    code = ErrorCode.JOIN_REFUSED
    room: str | None = None

    def __init__(self, *args: object, room: str | None = None, code: str | None = None, data: Any = None) -> None:
        super().__init__(*args, code=code, data=data)
        self.room = room


class TooManyRooms(JoinRefused):
    """A connection is in as many rooms as it may be."""

    code = ErrorCode.TOO_MANY_ROOMS


class NotConnectedError(RoomsError, RuntimeError):
    """A connection was used before it was accepted, or through a manager that does not hold it."""


class ConnectionEnded(NotConnectedError):  # noqa: N818 - says what happened
    """Something was sent to a connection that has ended.

    In a `ws_route` handler, also out of a task group, it is quiet if that is the handler's own: nobody is there. If it
    is that of somebody else it ends the call, with a WARNING a minute: that for one message, after which the next one
    is handled, or the session, whose client is closed with 1011. `ConnectionManager.send_personal` returns False.

    Attributes:
        connection: The `Connection` that has ended; None if the app has raised this without one.
    """

    connection: Any = None

    def __init__(self, text: str = "", connection: Any = None) -> None:
        super().__init__(text)
        self.connection = connection  # `Any`, since its class is made of what is above this module


class ManagerNotStarted(RoomsError, RuntimeError):  # noqa: N818 - the name is part of the contract
    """A manager of many nodes was used before `start()`."""


class BackendUnavailable(RoomsError, ConnectionError):  # noqa: N818 - a state of the world, known by this name in the field
    """Other nodes could not be told, or nobody knows whether they were. Members on this node have been served."""


def details_of(error: RefusedError) -> dict[str, Any]:
    """Return what the error frame of a refusal has beside the code."""
    room = error.room if isinstance(error, JoinRefused) else None
    return {key: value for key, value in (("room", room), ("data", error.data)) if value is not None}


def is_nothing_but(error: BaseException, fits: Callable[[BaseException], bool]) -> bool:
    """Return whether an error fits, or is a group, as task groups make them, of nothing that does not."""
    return error.split(fits)[1] is None if isinstance(error, BaseExceptionGroup) else fits(error)


def tells_of_end(error: BaseException) -> bool:
    """Return whether an error is `ConnectionEnded`, or a group of nothing else."""
    return is_nothing_but(error, lambda one: isinstance(one, ConnectionEnded))
