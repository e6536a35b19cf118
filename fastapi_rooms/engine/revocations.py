"""Users who were closed on all nodes: kept for a time, for nodes that were cut off and could not hear it."""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime

from fastapi_rooms.backends.contract import SupportsStore
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.revocation import Revocation, UnreadableError, decode_revocation, revocation_key
from fastapi_rooms.tasks import end_tasks

logger = logging.getLogger("fastapi_rooms")


class Revocations:
    """Keeps them where all nodes can see them, and applies them here.

    Nodes compare times that each took from its own clock, so their clocks have to agree, as NTP has them.

    Args:
        store: What the nodes share.
        seconds: For how long.
        registry: Who is connected here.
        close: Called to close a connection.
    """

    def __init__(
        self, store: SupportsStore, seconds: float, registry: Registry, close: Callable[[Connection, Close], None]
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._registry = registry
        self._close = close
        self._tasks: set[asyncio.Task[None]] = set()  # look up and apply, one for each gap that was reported

    async def keep(self, user_id: str, close: Close) -> None:
        """Keep that a user was closed now.

        Raises:
            BackendUnavailable: It is not kept, or nobody knows.
        """
        await self._store.put(revocation_key(user_id), Revocation(datetime.now(UTC), close).encode(), self._seconds)

    def apply_soon(self) -> None:
        """Look up the users of this node, and close those connections that are older than a revocation."""
        task = asyncio.get_running_loop().create_task(
            self._apply(), name="fastapi_rooms revocations", context=Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End what runs."""
        await end_tasks(self._tasks)

    async def _apply(self) -> None:
        users = list(self._registry.users())
        try:
            values = await self._store.peek([revocation_key(user_id) for user_id in users])
        except BackendUnavailable as error:
            logger.warning("could not look up who was closed meanwhile, until the next gap is over: %s", error)
            return
        for user_id, value in zip(users, values, strict=True):
            if value is None:
                continue
            try:
                self._apply_to(user_id, decode_revocation(value))
            except UnreadableError as error:
                logger.warning("what is kept about a closed user cannot be read: %s", error)

    def _apply_to(self, user_id: str, revocation: Revocation) -> None:
        for connection in list(self._registry.of_user(user_id)):
            if connection.connected_at <= revocation.at:
                logger.info("%r was closed while this node was cut off", connection)
                self._close(connection, revocation.close)
