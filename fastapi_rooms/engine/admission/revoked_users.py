"""Users who were closed everywhere, kept for a time.

For connections that were only being made, and for nodes that were cut off: neither could hear it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from datetime import UTC, datetime

from fastapi_rooms.backends.contract import SupportsStore
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.expiring import Expiring
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.revocation import Revocation, UnreadableError, decode_revocations, revocation_keys
from fastapi_rooms.tasks import end_tasks, wait_for

logger = logging.getLogger("fastapi_rooms")

MAX_HERE = 100_000
"""How many are kept in this process, some 30 MB. Beyond that the oldest is forgotten."""
USERS_PER_TURN = 500
"""How many users are looked up before others have their turn of the loop."""


class RevokedUsers:
    """Keeps them here, and where all nodes can see them; applies those of other nodes here.

    Nodes compare times that each took from its own clock, so their clocks have to agree, as NTP has them.

    Args:
        seconds: For how long; None: not at all.
        retry_seconds: After how long a look-up that failed is tried again.
        registry: Who is connected here.
        close: Called to close a connection.

    Attributes:
        store: What the nodes share; None: this node is all, or the backend has no such place.
    """

    def __init__(
        self,
        seconds: float | None,
        retry_seconds: float,
        registry: Registry,
        close: Callable[[Connection, Close], object],
    ) -> None:
        self._seconds = seconds
        self._retry_seconds = retry_seconds
        self._registry = registry
        self._close = close
        self._here = Expiring(MAX_HERE)
        self.store: SupportsStore | None = None
        self._missed: set[str] = set()  # users who may have been closed while this node did not hear
        self._applying: asyncio.Task[None] | None = None  # looks them up; None or done: there are none
        self._keeping: set[asyncio.Task[None]] = set()

    def note(self, user_id: str, close: Close, excluded: frozenset[str] = frozenset()) -> Revocation:
        """Remember on this node that a user is closed now, but for the connections with some ids."""
        revocation = Revocation(datetime.now(UTC), close, excluded)
        if self._seconds is not None:
            self._here.put(revocation.key_for(user_id), revocation.encode(), self._seconds, time.monotonic())
        return revocation

    def is_revoked(self, user_id: str, since: datetime, connection_id: str | None = None) -> bool:
        """Return whether a user was closed since then, as far as this node knows.

        Args:
            user_id: Who.
            since: Since when the connection, or the ticket, is there.
            connection_id: Which connection, since it may have been left out; None: it is none.
        """
        return any(one.ends(since, connection_id) for one in self._known(user_id))

    def keep_soon(self, user_id: str, revocation: Revocation) -> asyncio.Task[None] | None:
        """Keep one for the other nodes, ahead of what is published afterwards; None: there is no place for it.

        The task raises `BackendUnavailable` if it is not kept, or nobody knows.
        """
        if self.store is None or self._seconds is None:
            return None
        told = self.store.put(revocation.key_for(user_id), revocation.encode(), self._seconds)
        task = asyncio.get_running_loop().create_task(
            wait_for(told), name="fastapi_rooms revocation", context=Context()
        )
        self._keeping.add(task)
        task.add_done_callback(self._kept)
        return task

    async def look_up(self, user_id: str) -> None:
        """Ask the other nodes' place about a user who has just come; if it is out of reach, nothing is known."""
        if self.store is None or self._seconds is None:
            return
        try:
            values = await self.store.peek(revocation_keys(user_id))
        except BackendUnavailable:
            return  # the node is degraded: it will look up everybody when it hears again
        self._remember(user_id, values)

    def apply_soon(self, users: Iterable[str]) -> None:
        """Look up users of this node, and close those connections that are older than a revocation."""
        if self.store is None or self._seconds is None:
            return
        self._missed.update(user_id for user_id in users if self._registry.of_user(user_id))
        loop = asyncio.get_running_loop()
        if self._missed and (self._applying is None or self._applying.done() or self._applying.get_loop() is not loop):
            self._applying = loop.create_task(
                self._apply(self.store), name="fastapi_rooms revocations", context=Context()
            )

    async def stop(self) -> None:
        """End what runs."""
        self._missed.clear()
        await end_tasks([*self._keeping, *([] if self._applying is None else [self._applying])])

    def _known(self, user_id: str) -> list[Revocation]:
        return decode_revocations(self._here.peek(revocation_keys(user_id), time.monotonic()))

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("that a user was closed is not kept for nodes that are cut off: %s", error)

    async def _apply(self, store: SupportsStore) -> None:
        while self._missed:
            some = list(self._missed)[:USERS_PER_TURN]
            self._missed.difference_update(some)  # now: whoever is missed from here on is looked up again
            try:
                values = await store.peek([key for user_id in some for key in revocation_keys(user_id)])
            except Exception as error:  # noqa: BLE001 - whatever a store raises: it may be asked again
                self._missed.update(some)
                logger.warning("could not look up who was closed meanwhile, and will try again: %s", error)
                await asyncio.sleep(self._retry_seconds)
                continue
            for user_id, kept in zip(some, zip(values[::2], values[1::2], strict=True), strict=True):
                self._remember(user_id, kept)
            await asyncio.sleep(0)

    def _remember(self, user_id: str, values: Sequence[bytes | None]) -> None:
        """Act on what is kept of a user under his two keys, if anything is."""
        assert self._seconds is not None, "whoever looks up has seen that something is kept"
        try:
            kept = decode_revocations(values)
        except UnreadableError as error:
            logger.warning("what is kept about a closed user cannot be read: %s", error)
            return
        for revocation in kept:
            key = revocation.key_for(user_id)
            if all(known.key_for(user_id) != key or known.at < revocation.at for known in self._known(user_id)):
                self._here.put(key, revocation.encode(), self._seconds, time.monotonic())
        for connection in list(self._registry.of_user(user_id)):
            ends = [one for one in kept if one.ends(connection._made_at, connection.connection_id)]
            if ends:
                logger.info("%r was closed while this node did not hear", connection)
                self._close(connection, ends[0].close)
