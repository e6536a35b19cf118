"""How long a handler goes on when its client does not."""

import asyncio

from fastapi_rooms.engine.inbound.reader import Reader


class Attendance:
    """Cancels the task it was made in when the client is gone or was closed; a busy handler after the grace time.

    What the client sent before is still handled, each message with a grace of its own.

    What `asyncio.timeout` does, in one small object: there is one for each connection, for as long as it lives.
    """

    __slots__ = ("_cancelling", "_grace", "_has_cancelled", "_reader", "_task", "_timer")

    def __init__(self, reader: Reader, grace: float) -> None:
        task = asyncio.current_task()
        assert task is not None, "a route runs in a task"
        self._task: asyncio.Task[object] = task
        self._cancelling = task.cancelling()  # requests of others, before ours
        self._reader = reader
        self._grace = grace
        self._timer: asyncio.Handle | None = None  # set at the end of the client, if the handler is busy then
        self._has_cancelled = False
        reader.call_at_end(self)

    def __call__(self) -> None:
        """Notice the end of the client, or that a message was taken after that: its handler has the grace anew."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        if self._reader.is_inline:  # nothing of a handler runs while its next message is read inline
            self._timer = loop.call_soon(self._cancel)  # not now: whoever calls may run in this very task
        else:
            self._timer = loop.call_later(self._grace, self._cancel)

    def leave(self) -> bool:
        """Stop looking; return whether a cancellation that comes out of the handler is ours alone."""
        self._reader.call_at_end(None)
        self._reader.drop_unhandled()
        if self._timer is not None:
            self._timer.cancel()
        return self._has_cancelled and self._task.uncancel() <= self._cancelling

    def _cancel(self) -> None:
        self._has_cancelled = True
        self._task.cancel()
