"""The one reader of a connection: from accept to disconnect it calls `receive`, whatever the handler does.

So pongs and closes are always seen, which keeps a healthy client connected while its handler works (uvicorn stops
reading after each message that nobody has taken).
"""

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Owner
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.inbox import Inbox, Payload

logger = logging.getLogger("fastapi_rooms")


class Reader:
    """Moves what the client sends into the inbox, and tells when the client is gone."""

    __slots__ = ("_connection", "_counters", "_on_end", "_owner", "_settings", "inbox", "is_awaited", "task")

    def __init__(self, connection: Connection, owner: Owner, settings: RoomsSettings, counters: Counters) -> None:
        self.inbox = Inbox(settings)
        self.is_awaited = False  # somebody waits for the next message; written by `Messages`
        self._connection = connection
        self._owner = owner
        self._settings = settings
        self._counters = counters
        self._on_end: Callable[[], object] | None = None  # set by `call_at_end`
        self.task = asyncio.get_running_loop().create_task(self._read(), name="fastapi_rooms reader")

    def call_at_end(self, callback: Callable[[], object] | None) -> None:
        """Call back when the client is gone or was closed, at once if that has happened; None: nobody."""
        self._on_end = callback
        if callback is not None and self.inbox.has_ended:
            callback()

    def end(self) -> None:
        """Take no more messages, and give the queued ones up: this node has ended the connection."""
        self._end(discard=True)

    def stop(self) -> None:
        """Stop reading; does nothing from within the reader, which is at its end then."""
        if self.task is not asyncio.current_task():
            self.task.cancel()

    async def _read(self) -> None:
        receive = self._connection.websocket.receive
        try:
            # Each frame of a coroutine that waits costs memory in every connection: `receive` is called right here.
            while (payload := _payload(await receive())) is not None:
                size = _size(payload)
                if size > self._settings.max_message_bytes:
                    self._counters.oversized_messages += 1
                    await self._owner.close(
                        self._connection,
                        CloseCode.TOO_BIG,
                        f"a message may have {self._settings.max_message_bytes} bytes",
                    )
                    return
                self.inbox.put(payload, size)
                if self.inbox.is_full and not await self._wait_for_room():
                    return
        except Exception:
            logger.exception("the reader of %r failed: closed with 1011", self._connection)
            await self._owner.close(self._connection, CloseCode.INTERNAL_ERROR)
        finally:
            self._end(discard=False)
            self._owner.disconnect(self._connection)

    async def _wait_for_room(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.inbox_timeout):
                await self.inbox.room()
        except TimeoutError:
            self._counters.full_inboxes += 1
            logger.info("%r sent faster than its handler works: closed with 1013", self._connection)
            await self._owner.close(self._connection, CloseCode.TRY_AGAIN_LATER, "too many messages are waiting")
            return False
        return True

    def _end(self, *, discard: bool) -> None:
        if self.inbox.has_ended:
            return
        self.inbox.end(discard=discard)
        if self._on_end is not None:
            self._on_end()


def _payload(event: MutableMapping[str, Any]) -> Payload | None:
    """Return what an ASGI event brings; None when the client is gone."""
    if event["type"] == "websocket.disconnect":
        return None
    text: str | None = event.get("text")
    data: bytes | None = event.get("bytes")
    return text if text is not None else data or b""


def _size(payload: Payload) -> int:
    """Return the size in bytes, of UTF-8 for a text."""
    if isinstance(payload, bytes) or payload.isascii():
        return len(payload)
    return len(payload.encode("utf-8", "surrogatepass"))
