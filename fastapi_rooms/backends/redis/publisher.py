"""For code that is no web process: a worker, a cron job, a script."""

from asyncio import Lock
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from fastapi_rooms.backends.contract import Backend, SupportsStore
from fastapi_rooms.backends.publications import ADVICE, NOT_TOLD, Excluded, Keep, Publications, Step, Steps
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.backends.redis.places import Source
from fastapi_rooms.domain.backend_state import BackendStatus, Gap
from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection_id import ConnectionId
from fastapi_rooms.domain.envelope import Envelope
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.messages import MessageType
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.tasks import HomeLoop

ELSEWHERE = (
    "use a Publisher on one event loop at a time. In threads that call asyncio.run for each message, take a "
    "SyncPublisher"
)
"""What to do in place of using a publisher on two loops that run."""


class _Deaf:
    """A receiver that hears nothing: a publisher is subscribed to nothing."""

    def receive(self, envelope: Envelope) -> None:
        """Take nothing."""

    def missed(self, gap: Gap) -> None:
        """Miss nothing."""


class PublisherUsers:
    """Has all connections of a user join and leave rooms, on all nodes. See `ConnectionManager.users`.

    Args:
        publications: Who knows the steps.
        carry_out: Who does them.
    """

    def __init__(self, publications: Publications, carry_out: Callable[[Steps], Awaitable[None]]) -> None:
        self._publications = publications
        self._carry_out = carry_out

    async def join_room(self, user_id: str, room: str) -> None:
        """Make all connections of a user members of a room. Nobody is asked. Raises as `Publisher.broadcast` does."""
        await self._carry_out(self._publications.move_user(user_id, room, joins=True))

    async def leave_room(self, user_id: str, room: str) -> None:
        """End all memberships of a user in a room. Raises as `Publisher.broadcast` does."""
        await self._carry_out(self._publications.move_user(user_id, room, joins=False))


class Publisher:
    """Sends to the connections of all nodes, from code that has none itself.

    `async with Publisher(url) as publisher: await publisher.broadcast_to_room("news", {"text": "…"})`

    Without `async with` it connects at the first call; then `await publisher.stop()` at the end.

    **Delivery** is at most once, to nodes that are connected. Nobody knows to how many connections, so the methods
    return nothing. **Order**: what one publisher sends to one room arrives in that order. **Cancellation** takes
    nothing back. When its event loop has ended it may be used on another one, but never on two that run: that raises
    `ConfigurationError`.

    Args:
        redis_url: As for `DistributedWebSocketManager`.
        settings: `key_prefix`, `publish_timeout` and `max_envelope_bytes` must fit those of the nodes.

    Raises:
        ConfigurationError: The URL leads nowhere.
    """

    def __init__(self, redis_url: Source | Backend, *, settings: RoomsSettings | None = None) -> None:
        self._settings = settings if settings is not None else RoomsSettings()
        self._backend = redis_url if isinstance(redis_url, Backend) else RedisBackend(redis_url, self._settings)
        self._store = self._backend if isinstance(self._backend, SupportsStore) else None  # None: it has none
        self._publications = Publications(self._settings, has_store=self._store is not None)
        self._home = HomeLoop(ELSEWHERE)  # settled on by each call, left by stop, and its lock is held by both
        self._is_started = False  # on that loop
        self._failure: BackendUnavailable | None = None  # why the last attempt to start has failed; None: none has

    def __repr__(self) -> str:
        return f"<Publisher {self._backend!r}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def status(self) -> BackendStatus:
        """Whether Redis is there."""
        return self._backend.status

    async def start(self) -> None:
        """Connect. Idempotent; called by the first call that sends.

        Raises:
            BackendUnavailable: Redis was not there within `publish_timeout`.
        """
        lock, failed_before = self._lock(), self._failure
        async with lock:
            if self._is_started:
                return
            if self._failure is not None and self._failure is not failed_before:
                raise BackendUnavailable(*self._failure.args)  # somebody has tried while this call waited
            try:
                await self._backend.start(self._publications.origin, _Deaf(), required=True)
            except BackendUnavailable as error:
                # The backend's advice is for nodes, which can begin without Redis.
                reason = error.__cause__ or f"no answer within {self._settings.publish_timeout:g} s"
                self._failure = BackendUnavailable(f"Redis is not there: {reason}. Start it, and send again")
                raise BackendUnavailable(*self._failure.args) from error.__cause__
            self._is_started = True

    async def stop(self) -> None:
        """Wait for what is under way, then hang up. Idempotent; it can be started again."""
        async with self._lock():
            await self._backend.stop()
            self._is_started = False
            self._home.leave()

    @property
    def users(self) -> PublisherUsers:
        """What concerns all connections of a user at once: rooms that they join and leave."""
        return PublisherUsers(self._publications, self._carry_out)

    async def broadcast(
        self,
        message: Any,
        message_type: MessageType | str | None = None,
        exclude: Excluded = (),
        *,
        exclude_user: str | None = None,
    ) -> None:
        """Send to everybody but the `connection_id`s that are left out, or a user with all connections.

        Raises:
            MessageError: The message cannot be encoded, or is too large.
            ConfigurationError: What is left out is no `connection_id`.
            InvalidName: No user can be called that.
            BackendUnavailable: Redis did not take it in time; nobody knows whether it arrived.
        """
        await self._carry_out(self._publications.broadcast(message, message_type, exclude, exclude_user))

    async def broadcast_to_room(
        self,
        room: str,
        message: Any,
        message_type: MessageType | str | None = None,
        exclude: Excluded = (),
        *,
        exclude_user: str | None = None,
    ) -> None:
        """Send to the members of a room. Leaves out whom `broadcast` does, and raises as it does."""
        steps = self._publications.broadcast_to_room(room, message, message_type, exclude, exclude_user)
        await self._carry_out(steps)

    async def send_to_user(self, user_id: str, message: Any, message_type: MessageType | str | None = None) -> None:
        """Send to all connections of a user. Raises as `broadcast` does."""
        await self._carry_out(self._publications.send_to_user(user_id, message, message_type))

    async def send_personal(
        self, connection_id: ConnectionId, message: Any, message_type: MessageType | str | None = None
    ) -> None:
        """Send to one connection, wherever it is. Raises as `broadcast` does."""
        await self._carry_out(self._publications.send_personal(connection_id, message, message_type))

    async def close_connection(
        self, connection_id: ConnectionId, code: int = CloseCode.NORMAL, reason: str = ""
    ) -> None:
        """Close one connection, behind what was sent to it before. Raises as `close_user` does."""
        await self._carry_out(self._publications.close_connection(connection_id, code, reason))

    async def close_room(self, room: str, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close all members of a room, behind what was sent to them before. Raises as `close_user` does."""
        await self._carry_out(self._publications.close_room(room, code, reason))

    async def close_user(
        self, user_id: str, code: int = CloseCode.NORMAL, reason: str = "", exclude: Excluded = ()
    ) -> None:
        """Close all connections of a user but those that are left out, behind what was sent to them before.

        It is also kept for `revocation_seconds`, for nodes that are cut off.

        Raises:
            ConfigurationError: The code may not be sent.
            BackendUnavailable: Redis did not take it in time.
        """
        await self._carry_out(self._publications.close_user(user_id, code, reason, exclude))

    def _lock(self) -> Lock:
        was_here = self._home.is_here()
        lock = self._home.settle()
        if not was_here:
            self._is_started = False  # each `asyncio.run` has another loop, on which nothing of the last one lives
        return lock

    async def _carry_out(self, steps: Steps) -> None:
        step = next(steps, None)
        while step is not None:
            await self.start()  # outside: a step after one that could not start would wait for Redis as long once more
            try:
                await self._do(step)
            except BackendUnavailable as error:
                step = steps.throw(error)
            else:
                step = next(steps, None)

    async def _do(self, step: Step) -> None:
        if isinstance(step, Keep):
            assert self._store is not None, "nothing is to be kept where there is no place for it"
            told = self._store.put(step.key, step.value, step.seconds)
        else:
            told = self._backend.publish(step)
        try:
            await told
        except BackendUnavailable as error:
            raise BackendUnavailable(f"{NOT_TOLD}: {error}{ADVICE}") from error
