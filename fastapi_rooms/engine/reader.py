"""The one reader of a connection: from accept to disconnect it calls `receive`, whatever the handler does.

So pongs and closes are always seen, which keeps a healthy client connected while its handler works (uvicorn stops
reading after each message that nobody has taken).

A handler that is called per message and waits for the next one reads by itself: no task, no queue, no hop. When it does
not come back within the tick in which it got a message, a task takes over and reads on for it, from then on for good.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Context
from typing import Any

from starlette.websockets import WebSocketState

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Owner
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.engine.inbox import Inbox, Payload

logger = logging.getLogger("fastapi_rooms")


class TakeOvers:
    """The readers whose handlers got a message in this tick: those still busy at its end get a task that reads on."""

    def __init__(self) -> None:
        self._context = Context()  # an empty one: a reader outlives the message that happened to come first
        self._readers: list[Reader] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # where the end-of-tick call is due; None: not due

    def add(self, reader: "Reader") -> None:
        """Look at a reader at the end of this tick."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            self._readers.append(reader)
        else:
            self._readers = [reader]  # those of a loop that has ended are not read for any more
            self._loop = loop
            loop.call_soon(self._take_over, context=self._context)

    def _take_over(self) -> None:
        self._loop = None
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.start()


class Reader:
    """Takes what the client sends, into the inbox or straight to the handler, and tells when the client is gone."""

    __slots__ = (
        "_connection",
        "_counters",
        "_inbox",
        "_on_end",
        "_owner",
        "_settings",
        "_take_overs",
        "_tasks",
        "has_ended",
        "is_awaited",
        "is_inline",
        "task",
    )

    def __init__(
        self,
        connection: Connection,
        owner: Owner,
        settings: RoomsSettings,
        counters: Counters,
        take_overs: "TakeOvers",
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self.has_ended = False  # nothing more will come
        self.is_awaited = False  # somebody waits for the next message; written by `Received`
        self.is_inline = False  # that somebody receives by itself; written by `Received`
        self.task: asyncio.Task[None] | None = None  # set by `start`; None: whoever waits reads inline
        self._connection = connection
        self._owner = owner
        self._settings = settings
        self._counters = counters
        self._tasks = tasks  # the manager's, which ends what is left
        self._on_end: Callable[[], object] | None = None  # set by `call_at_end`
        self._take_overs = take_overs
        self._inbox: Inbox | None = None  # made when a task reads: who reads inline has nothing that waits

    @property
    def inbox(self) -> Inbox:
        """What was read and not taken yet."""
        if self._inbox is None:
            self._inbox = Inbox(self._settings)
            if self.has_ended:
                self._inbox.end()
        return self._inbox

    def start(self) -> None:
        """Read in a task from now on, unless a task or a waiting handler reads already, or nothing will come."""
        if self.task is None and not self.is_inline and not self.has_ended:
            self.task = asyncio.get_running_loop().create_task(self._read(), name="fastapi_rooms reader")
            self._tasks.add(self.task)
            self.task.add_done_callback(self._tasks.discard)

    def call_at_end(self, callback: Callable[[], object] | None) -> None:
        """Call back when the client is gone or was closed, at once if that has happened; None: nobody."""
        self._on_end = callback
        if callback is not None and self.has_ended:
            callback()

    def end(self) -> None:
        """Take no more messages, and give the queued ones up: this node has ended the connection."""
        self._end(discard=True)

    def stop(self) -> None:
        """Stop reading; does nothing from within the reader, which is at its end then."""
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def receive(self) -> Awaitable[MutableMapping[str, Any]]:
        """Receive the next ASGI event: of Starlette's `receive`, just what is left once a socket is accepted.

        Its frame would cost time in every message, and memory in every connection that waits.
        """
        return self._connection.websocket._receive()

    def take(self, event: MutableMapping[str, Any]) -> Payload | None:
        """Return what an event brings to the handler that received it by itself; None: `give_up`.

        From the end of this tick on, a task reads in its place if it has not come back.
        """
        payload = _payload(event)
        if payload is None or self.has_ended or _size(payload) > self._settings.max_message_bytes:
            return None
        self._take_overs.add(self)
        return payload

    async def give_up(self, event: MutableMapping[str, Any]) -> None:
        """End after an event that brought nothing: the client is gone, was closed meanwhile, or sent too much."""
        if not self.has_ended and _payload(event) is not None:
            await self._refuse()
        self._leave(event)

    async def fail(self, error: Exception) -> None:
        """End because the server failed."""
        await self._fail(error)
        self._leave(None)

    async def _read(self) -> None:
        inbox = self.inbox
        event: MutableMapping[str, Any] | None = None
        try:
            while True:
                # Each frame of a coroutine that waits costs memory in every connection: it is received right here.
                event = await self.receive()
                payload = _payload(event)
                if payload is None:
                    return
                size = _size(payload)
                if size > self._settings.max_message_bytes:
                    await self._refuse()
                    return
                inbox.put(payload, size)
                event = payload = None  # a connection that waits keeps no message
                if inbox.is_full and not await self._wait_for_space():
                    return
        except Exception as error:  # noqa: BLE001 - whatever a server raises
            await self._fail(error)
        finally:
            self._leave(event)
            self.task = None  # a cancelled task keeps its frames, and so this reader and its connection

    async def _refuse(self) -> None:
        self._counters.oversized_messages += 1
        limit = self._settings.max_message_bytes
        await self._owner.close(self._connection, CloseCode.TOO_BIG, f"a message may have {limit} bytes")

    async def _wait_for_space(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.inbox_timeout):
                await self.inbox.space()
        except TimeoutError:
            self._counters.full_inboxes += 1
            logger.info("%r sent faster than its handler works: closed with 1013", self._connection)
            await self._owner.close(self._connection, CloseCode.TRY_AGAIN_LATER, "too many messages are waiting")
            return False
        return True

    async def _fail(self, error: Exception) -> None:
        logger.error("the reader of %r failed: closed with 1011", self._connection, exc_info=error)
        await self._owner.close(self._connection, CloseCode.INTERNAL_ERROR)

    def _leave(self, event: MutableMapping[str, Any] | None) -> None:
        if event is not None and event["type"] == "websocket.disconnect":
            self._connection.websocket.client_state = WebSocketState.DISCONNECTED  # as Starlette's `receive` does
        self._end(discard=False)
        self._owner.disconnect(self._connection)

    def _end(self, *, discard: bool) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        if self._inbox is not None:
            self._inbox.end(discard=discard)
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
