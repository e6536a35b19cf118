"""The one reader of a connection: from accept to disconnect it calls `receive`, whatever the handler does.

So pongs and closes are always seen, which keeps a healthy client connected while its handler works (uvicorn stops
reading after each message that nobody has taken).

A handler that is called per message and waits for the next one reads by itself: no task, no queue, no hop. When it does
not come back within the tick in which it got a message, a task takes over and reads on for it, from then on for good.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum
from time import monotonic
from typing import Any

from starlette.websockets import WebSocketState

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Owner
from fastapi_rooms.domain.error_code import ErrorCode
from fastapi_rooms.domain.incoming import error_message, reference_in
from fastapi_rooms.domain.messages import Message
from fastapi_rooms.domain.rate import Allowance
from fastapi_rooms.engine.inbound.event import end_of, held_bytes, is_larger, payload_of
from fastapi_rooms.engine.inbound.inbox import Inbox, Payload
from fastapi_rooms.engine.inbound.readers import Readers

logger = logging.getLogger("fastapi_rooms")


MAX_DROPPED = 100
"""How many messages above the rate a client may send in a row before it is closed."""


class State(Enum):
    """How far a reader has come. It only ever moves down this list, and may leave ENDED out."""

    READING = "reading"
    """More may come."""
    ENDED = "ended"
    """The client is gone: nothing more will come, and what came is still handled."""
    GIVEN_UP = "given up"
    """This node has ended the connection: what came is not handled any more either."""


class Waiting(Enum):
    """Who waits for the next message."""

    NOBODY = "nobody"
    """The handler is at work, or there is none."""
    INBOX = "inbox"
    """A handler, which gets it from the inbox: a task reads."""
    INLINE = "inline"
    """A handler, which receives by itself: no task reads."""


# Looked up once: on Python 3.11 each look into an Enum is a call, and these are looked at for every message.
READING, _ENDED, _GIVEN_UP = State
NOBODY, _INBOX, _INLINE = Waiting


class Reader:
    """Takes what the client sends, into the inbox or straight to the handler, and tells when the client is gone."""

    __slots__ = (
        "_allowance",
        "_connection",
        "_inbox",
        "_on_end",
        "_owner",
        "_shared",
        "received",
        "state",
        "task",
        "waiting",
    )

    def __init__(self, connection: Connection, owner: Owner, readers: Readers) -> None:
        self.state = READING
        self.waiting = NOBODY
        self.task: asyncio.Task[None] | None = None  # set by `start`; None: whoever waits reads inline
        self.received = 0  # messages, with those that were dropped: whoever sends too much is not silent
        self._connection = connection
        self._owner = owner
        self._shared = readers
        self._on_end: Callable[[], object] | None = None  # set by `call_at_end`
        self._inbox: Inbox | None = None  # made when a task reads: who reads inline has nothing that waits
        self._allowance: Allowance | None = None  # made with the first message, if there is a rate, or dropped one

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state is not READING

    @property
    def has_given_up(self) -> bool:
        """Whether what came is not handled any more either."""
        return self.state is _GIVEN_UP

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the next message."""
        return self.waiting is not NOBODY

    @property
    def is_inline(self) -> bool:
        """Whether that somebody receives by itself."""
        return self.waiting is _INLINE

    @property
    def inbox(self) -> Inbox:
        """What was read and not taken yet."""
        if self._inbox is None:
            self._inbox = Inbox(self._shared.settings)
            if self.has_ended:
                self._inbox.end()
        return self._inbox

    @property
    def is_held_up(self) -> bool:
        """Whether the client is not read from, since its handler has too much to do."""
        return self._inbox is not None and self._inbox.is_full

    @property
    def is_attended(self) -> bool:
        """Whether somebody waits for the end, and sees to it that the close frame gets out."""
        return self._on_end is not None

    @property
    def is_at_work(self) -> bool:
        """Whether the handler has a message in hand: it took one and has not come back for the next."""
        return self.received > 0 and not self.is_awaited and not self.has_ended

    def start(self) -> None:
        """Read in a task from now on, unless a task or a waiting handler reads already, or nothing will come."""
        if self.task is None and not self.is_inline and not self.has_ended:
            self.task = asyncio.get_running_loop().create_task(self._read(), name="fastapi_rooms reader")
            self._shared.tasks.add(self.task)
            self.task.add_done_callback(self._shared.tasks.discard)

    def wait_by_inbox(self) -> None:
        """Take note that somebody waits for the next message, whoever reads it."""
        self.waiting = _INBOX

    def wait_no_more(self) -> None:
        """Take note that nobody waits: a message is handed over, or the wait is over."""
        self.waiting = NOBODY

    def call_at_end(self, callback: Callable[[], object] | None) -> None:
        """Call back when the client is gone or was closed, at once if that has happened; None: nobody.

        And again for each message that is still taken afterwards.
        """
        self._on_end = callback
        if callback is not None and self.has_ended:
            callback()

    def end(self) -> None:
        """Take no more messages, and give the queued ones up: this node has ended the connection."""
        if self.state is READING:
            self._end(_GIVEN_UP)
            self.drop_unhandled()

    def drop_unhandled(self) -> None:
        """Drop and count what came and is not handled any more: its handler has ended, or is to."""
        if self._inbox is not None and (count := self._inbox.end_and_drop()):
            self._shared.counters.unhandled_messages += count
            logger.info("%r has ended with %d messages that its handler had not taken", self._connection, count)

    def note_taken(self) -> None:
        """Take note that a message was taken from the inbox: who sent it and went has its handler for a while more."""
        if self.state is _ENDED and self._on_end is not None:
            self._on_end()

    def stop(self) -> None:
        """Stop reading; does nothing from within the reader, which is at its end then."""
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def receive_inline(self) -> Awaitable[MutableMapping[str, Any]]:
        """Receive the next ASGI event, for who waits for it by itself; `take` or `fail` follows.

        Of Starlette's `receive` this is just what is left once a socket is accepted: see `Received` for why.
        """
        self.waiting = _INLINE
        return self._connection.websocket._receive()

    def take(self, event: MutableMapping[str, Any]) -> Payload | None:
        """Return what an event brings to the handler that received it by itself; None: `refuse`.

        From the end of this tick on, a task reads in its place if it has not come back.
        """
        payload = payload_of(event)
        self.waiting = _INBOX  # it holds on to what it received
        if payload is None or self.state is not READING:
            return None
        if is_larger(payload, self._shared.max_bytes) or not self._count():
            return None
        self._shared.add(self)
        return payload

    def put_back(self, payload: Payload) -> None:
        """Let a message that was taken be the next one again: whoever took it was cancelled before he handed it on."""
        if not self.has_given_up:
            self.inbox.put_back(payload, held_bytes(payload))
            self.start()  # who receives by itself does not look into the inbox

    async def refuse(self, event: MutableMapping[str, Any]) -> bool:
        """Act on an event that brought nothing to the handler; return whether to go on.

        The client is gone, was closed meanwhile, sent too much, or too often.
        """
        payload = None if self.has_ended else payload_of(event)
        if payload is not None:
            if is_larger(payload, self._shared.max_bytes):
                await self._refuse_size()
            elif await self.drop(payload):
                return True
        self._leave(event)
        return False

    async def drop(self, payload: Payload) -> bool:
        """Drop a message above the rate, and say so of the first in a row; return whether to go on."""
        self._shared.counters.rate_limited_messages += 1
        dropped = self._allowed().drop(monotonic())
        told = error_message(ErrorCode.RATE_LIMITED, **reference_in(payload)) if dropped == 1 else None
        del payload  # not kept while others have their turn
        await asyncio.sleep(0)  # a server may have many of them ready: the others get their turn
        if told is not None:
            await self._owner.send_personal(self._connection, told)
        elif dropped >= MAX_DROPPED:
            if self._connection.is_open:
                self._shared.counters.flooders += 1
                logger.info("%r did not slow down: closed with 1008", self._connection)
            await self._owner.close(self._connection, CloseCode.POLICY_VIOLATION, "too many messages")
            return False
        return True

    async def answer(self, message: Message) -> None:
        """Send to the client by itself, without waiting; one that has gone gets nothing."""
        await self._owner.send_personal(self._connection, message)

    async def fail(self, error: Exception) -> None:
        """End because the server failed, for who received by itself."""
        self.waiting = _INBOX
        await self._fail(error)
        self._leave(None)

    async def _read(self) -> None:
        inbox = self.inbox
        event: MutableMapping[str, Any] | None = None
        try:
            while True:
                event = await self._connection.websocket._receive()
                payload = payload_of(event)
                if payload is None:
                    return
                if self.has_given_up:  # nobody handles it: only its end is waited for
                    event = payload = None
                    await asyncio.sleep(0)
                    continue
                if is_larger(payload, self._shared.max_bytes):
                    await self._refuse_size()
                    return
                if self._count():
                    inbox.put(payload, held_bytes(payload))
                elif not await self.drop(payload):
                    return
                event = payload = None  # a connection that waits keeps no message
                if inbox.is_full and not await self._wait_for_space():
                    return
        except Exception as error:  # noqa: BLE001 - whatever a server raises
            await self._fail(error)
        finally:
            self._leave(event)
            self.task = None  # a cancelled task keeps its frames, and so this reader and its connection

    def _count(self) -> bool:
        """Count a message; False if it is above the rate."""
        self.received += 1
        readers = self._shared
        if readers.rate is not None and not self._allowed().take(monotonic()):
            return False
        if readers.limiter is None:  # otherwise it may still be dropped: `Received` counts it
            readers.counters.received_messages += 1
        return True

    def _allowed(self) -> Allowance:
        if self._allowance is None:
            self._allowance = Allowance(self._shared.rate)
        return self._allowance

    async def _refuse_size(self) -> None:
        self._shared.counters.oversized_messages += 1
        await self._owner.close(
            self._connection, CloseCode.TOO_BIG, f"a message may have {self._shared.max_bytes} bytes"
        )

    async def _wait_for_space(self) -> bool:
        since = monotonic()
        try:
            async with asyncio.timeout(self._shared.settings.inbox_timeout):
                await self.inbox.space()
        except TimeoutError:
            if self._connection.is_open:  # else it has ended for another reason, which is counted
                self._shared.counters.full_inboxes += 1
                logger.info("%r sent faster than its handler works: closed with 1013", self._connection)
            await self._owner.close(self._connection, CloseCode.TRY_AGAIN_LATER, "too many messages are waiting")
            return False
        per_second = self._shared.settings.messages_per_second
        if per_second is not None:
            self._allowed().credit(since, monotonic(), per_second, self._shared.settings.inbox_timeout)
        return True

    async def _fail(self, error: Exception) -> None:
        logger.error("the reader of %r failed: closed with 1011", self._connection, exc_info=error)
        await self._owner.close(self._connection, CloseCode.INTERNAL_ERROR)

    def _leave(self, event: MutableMapping[str, Any] | None) -> None:
        if event is not None and event["type"] == "websocket.disconnect":
            self._connection.websocket.client_state = WebSocketState.DISCONNECTED  # as Starlette's `receive` does
            self._connection._outbox.note_close_by_server()  # the event may say that there was no close frame
            self._connection._note_close(*end_of(event))
        self._end(_ENDED)
        self._owner.disconnect(self._connection)

    def _end(self, state: State) -> None:
        if self.state is not READING:
            return
        self.state = state
        if self._inbox is not None:
            self._inbox.end()
        if self._on_end is not None:
            self._on_end()
