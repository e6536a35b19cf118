"""What publishers do, without doing it: one core for those who await and for those who block.

A call is a generator of steps. Whoever drives it

- asks for the first step at the call: on the way there the message is checked and encoded, and the trace of the caller
  is taken;
- does one step after the other, and throws in the `BackendUnavailable` of a step that failed. The generator decides
  whether there is another step; what it raises is what the caller gets;
- drops it after any other exception, such as a cancellation. It holds nothing that must be released.
"""

import os
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from fastapi_rooms.domain.connection_id import ConnectionId, check_connection_id, check_connection_ids
from fastapi_rooms.domain.envelope import (
    EVERYBODY,
    Envelope,
    Target,
    check_size,
    connection_target,
    room_target,
    user_target,
)
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.messages import Close, Message, MessageType, encode
from fastapi_rooms.domain.move import Move
from fastapi_rooms.domain.names import check_name
from fastapi_rooms.domain.revocation import Revocation
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.telemetry.caller_trace import CallerTrace

NOT_TOLD = "the nodes were not told, or not for certain"
"""How the error of a step that has failed begins; the reason follows."""

ADVICE = ". Send again later"
"""How it ends."""


class Keep(NamedTuple):
    """A step: keep a value for all nodes, as `SupportsStore.put` does."""

    key: str
    value: bytes
    seconds: float


Step = Keep | Envelope
"""What is to be done; an envelope is to be published."""

Steps = Generator[Step, None, None]

Excluded = ConnectionId | Iterable[ConnectionId]
"""Who is left out: one `connection_id` or many."""


class Publications:
    """Turns what a publisher is asked for into steps. Thread-safe; each call has steps of its own.

    Args:
        settings: How large an envelope may be, and for how long a close is kept.
        has_store: Whether there is a place for what is kept. Otherwise nothing is.
    """

    def __init__(self, settings: RoomsSettings, *, has_store: bool = True) -> None:
        self._origin = ""  # of the process below
        self._process = 0  # 0: it was not asked for yet
        self._max_bytes = settings.max_envelope_bytes
        self._revocation_seconds = settings.revocation_seconds if has_store else None
        self._caller_trace = CallerTrace()

    @property
    def origin(self) -> str:
        """The `node_id` under which this process publishes. One that was forked has another than its parent."""
        process = os.getpid()
        if self._process != process:
            self._origin = uuid4().hex
            self._process = process  # afterwards: other threads may ask at once
        return self._origin

    def broadcast(
        self,
        message: Any,
        message_type: MessageType | str | None,
        exclude: Excluded = (),
        exclude_user: str | None = None,
    ) -> Steps:
        """Send to everybody."""
        yield self._envelope(EVERYBODY, encode(message, message_type), exclude, exclude_user)

    def broadcast_to_room(
        self,
        room: str,
        message: Any,
        message_type: MessageType | str | None,
        exclude: Excluded = (),
        exclude_user: str | None = None,
    ) -> Steps:
        """Send to the members of a room."""
        yield self._envelope(room_target(room), encode(message, message_type), exclude, exclude_user)

    def send_to_user(self, user_id: str, message: Any, message_type: MessageType | str | None) -> Steps:
        """Send to all connections of a user."""
        yield self._envelope(user_target(user_id), encode(message, message_type))

    def send_personal(self, connection_id: ConnectionId, message: Any, message_type: MessageType | str | None) -> Steps:
        """Send to one connection."""
        target = connection_target(check_connection_id(connection_id))
        yield self._envelope(target, encode(message, message_type))

    def close_connection(self, connection_id: ConnectionId, code: int, reason: str) -> Steps:
        """Close one connection."""
        yield self._envelope(connection_target(check_connection_id(connection_id)), Close(code, reason))

    def close_room(self, room: str, code: int, reason: str) -> Steps:
        """Close all members of a room."""
        yield self._envelope(room_target(room), Close(code, reason))

    def move_user(self, user_id: str, room: str, *, joins: bool) -> Steps:
        """Have all connections of a user join or leave a room."""
        yield self._envelope(user_target(user_id), Move(room_target(room).name, joins))

    def close_user(self, user_id: str, code: int, reason: str, exclude: Excluded = ()) -> Steps:
        """Close all connections of a user but those that are left out.

        It is kept before it is told: otherwise a node that begins to listen in between would miss both. If both fail,
        what is raised is why it was not told.
        """
        target, excluded = user_target(user_id), check_connection_ids(exclude)
        revocation = Revocation(datetime.now(UTC), Close(code, reason), excluded)
        envelope = self._envelope(target, revocation.close, excluded)
        failure: BackendUnavailable | None = None
        if self._revocation_seconds is not None:
            try:
                yield Keep(revocation.key_for(user_id), revocation.encode(), self._revocation_seconds)
            except BackendUnavailable as error:
                failure = error
        yield envelope  # those who hear are told, although others are not
        if failure is not None:
            raise failure

    def _envelope(
        self,
        target: Target,
        content: Message | Close | Move,
        exclude: Excluded = (),
        exclude_user: str | None = None,
    ) -> Envelope:
        excluded = check_connection_ids(exclude)
        excluded_user = None if exclude_user is None else check_name("exclude_user", exclude_user)
        envelope = Envelope(self.origin, target, content, excluded, self._caller_trace.get(), excluded_user)
        check_size(envelope, self._max_bytes)
        return envelope
