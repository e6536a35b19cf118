"""The publishing side: one connection, on which the commands of a node are sent in order, none waiting for another."""

import asyncio
from collections import deque
from collections.abc import Callable

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from fastapi_rooms.backends.redis.alarm import Alarm
from fastapi_rooms.backends.redis.dialing import pack, send
from fastapi_rooms.backends.redis.supervised import Dial, SupervisedConnection
from fastapi_rooms.domain.errors import BackendUnavailable

MIN_REST_SECONDS = 0.25
"""A command with less time left is not sent on: no server could meet its deadline, and the line would drop."""


class Command:
    """A command under way. Its future gets a result or BackendUnavailable by the deadline."""

    __slots__ = ("deadline", "future", "redirects", "words")

    def __init__(self, words: tuple[bytes, ...], deadline: float, future: asyncio.Future[object]) -> None:
        self.words = words
        self.deadline = deadline
        self.future = future
        self.redirects = 0  # how often a server sent it elsewhere

    def succeed(self, reply: object) -> None:
        """Tell the caller what Redis answered, if the caller still wants to know."""
        if not self.future.done():
            self.future.set_result(reply)

    def fail(self, error: BackendUnavailable) -> None:
        """Tell the caller why there is no answer. Each gets an exception of its own, which it may raise and change."""
        if not self.future.done():
            self.future.set_exception(BackendUnavailable(*error.args))


class PublishLine(SupervisedConnection):
    """Sends commands, each at most once, in the order of the calls.

    Args:
        name: What its task is called.
        dial: Makes a fresh connection.
        on_change: Called when a connection was made or lost.
        timeout: How long a command may take, in seconds. One that takes longer ends the connection, since the
            commands behind it wait for the same Redis.
        on_error: Called with a command that Redis answered with an error. Returns whether it has taken care of the
            command; if not, the command fails.
    """

    def __init__(
        self,
        name: str,
        dial: Dial,
        on_change: Callable[[], object],
        timeout: float,
        on_error: Callable[[Command, ResponseError], bool] | None = None,
    ) -> None:
        super().__init__(name, dial, on_change)
        self._timeout = timeout
        self._on_error = on_error
        self._unwritten: list[bytes] = []
        self._unanswered: deque[Command] = deque()  # oldest first; written or not
        self._alarm = Alarm(self._due, self._on_alarm)

    def send(self, *words: bytes) -> asyncio.Future[object]:
        """Send a command. The future gets the answer or BackendUnavailable; without a connection that is at once."""
        command = self.make(*words)
        self.put(command)
        return command.future

    def make(self, *words: bytes) -> Command:
        """Make a command whose time begins now."""
        loop = asyncio.get_running_loop()
        return Command(words, loop.time() + self._timeout, loop.create_future())

    def put(self, command: Command) -> None:
        """Send a command that was made before."""
        connection = self._connection
        if connection is None:
            command.fail(self.last_error or BackendUnavailable("there is no connection to Redis yet"))
            return
        if command.redirects and command.deadline - asyncio.get_running_loop().time() < MIN_REST_SECONDS:
            command.fail(BackendUnavailable("it was sent from server to server until its time was over"))
            return
        self._unwritten.append(pack(connection, *command.words))
        self._unanswered.append(command)
        self._wake.set()
        self._alarm.set()

    def is_idle(self) -> bool:
        """Return whether every command has been answered."""
        return not self._unanswered

    def unanswered(self) -> list[Command]:
        """Return the commands under way, oldest first."""
        return list(self._unanswered)

    async def flush(self) -> None:
        """Wait until every command that is under way now has an answer or has failed, also if nobody waits for it."""
        if self._unanswered:
            last = self.send(b"PING")  # it is answered, or lost, behind them, and nobody else can cancel it
            await asyncio.wait([last])
            last.exception()  # seen

    def _due(self) -> float | None:
        return self._unanswered[0].deadline if self._unanswered else None

    def _on_alarm(self) -> None:
        self.drop(f"Redis did not answer within {self._timeout:g} s")

    def _begin(self) -> None:
        self._unwritten.clear()

    def _end(self, error: BackendUnavailable) -> None:
        self._alarm.stop()
        self._unwritten.clear()
        failed, self._unanswered = self._unanswered, deque()
        for command in failed:
            command.fail(error)

    def _take(self, reply: object) -> None:
        if not self._unanswered:
            self.drop("Redis answered what was not asked")
            return
        command = self._unanswered.popleft()
        if not isinstance(reply, ResponseError):
            command.succeed(reply)
            return
        is_taken_care_of = self._on_error is not None and self._on_error(command, reply)
        if not is_taken_care_of:
            command.fail(BackendUnavailable(f"Redis refused {command.words[0].decode()}: {reply}"))

    async def _write(self, connection: AbstractConnection) -> None:
        commands, self._unwritten = self._unwritten, []
        if commands:
            await send(connection, commands)
