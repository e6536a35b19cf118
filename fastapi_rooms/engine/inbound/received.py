"""The messages of one client, validated: what a handler iterates over.

`__anext__` is one long function on purpose, and receives right there: each frame of a coroutine that waits costs memory
in every connection, and time in every message. For the same reason a connection that waits keeps no message: it lets go
of what it has handled.
"""

from asyncio import CancelledError
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection, Phase
from fastapi_rooms.domain.error_code import ErrorCode
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.incoming import Decoder, InvalidMessageError, error_message, reference_in
from fastapi_rooms.domain.messages import BARE_PONG, PONG, Message, MessageType, is_bare_control, is_control, is_pong
from fastapi_rooms.engine.inbound.inbox import Payload
from fastapi_rooms.engine.inbound.reader import NOBODY, READING, Reader
from fastapi_rooms.engine.inbound.readers import AskLimiter, Readers


class Received(AsyncIterator[Any]):
    """Yields what fits, answers what does not, ends with the client."""

    __slots__ = ("_connection", "_decoder", "_invalid_in_a_row", "_reader", "_readers", "keeps_payload", "payload")

    def __init__(self, connection: Connection, reader: Reader, decoder: Decoder, readers: Readers) -> None:
        self._connection = connection
        self._reader = reader
        self._decoder = decoder
        self._readers = readers
        self._invalid_in_a_row = 0
        self.keeps_payload = False  # whether whoever takes a message wants to see afterwards what it was made of
        self.payload: Payload | None = None  # of the message that was handed on last, until the next one is asked for

    async def __anext__(self) -> Any:  # noqa: C901, PLR0912 - one frame on purpose, see above
        reader = self._reader
        if reader.waiting is not NOBODY:
            raise ConfigurationError(
                "two iterators wait for the messages of one connection: iterate once, and hand on what comes"
            )
        event: MutableMapping[str, Any] | None
        self.payload = None
        try:
            while True:
                if reader.task is not None or reader.state is not READING:
                    reader.wait_by_inbox()
                    payload = await reader.inbox.get()
                    reader.note_taken()
                else:
                    payload = None
                    try:
                        event = await reader.receive_inline()
                    except Exception as error:  # noqa: BLE001 - whatever a server raises
                        await reader.fail(error)
                    else:
                        payload = reader.take(event)
                        if payload is None and await reader.refuse(event):
                            event = None
                            continue
                if payload is None:
                    break
                if self._readers.limiter is not None and not await self._is_allowed(self._readers.limiter, payload):
                    event = None
                    if not reader.has_given_up and await reader.drop(payload):
                        payload = None
                        continue
                    break
                if self._readers.expects_pongs and is_pong(payload):
                    self._invalid_in_a_row = 0
                    event = payload = None
                    continue
                try:
                    value = self._decoder.decode(payload)
                except InvalidMessageError as error:
                    if await self._answer(payload, error):
                        event = payload = None
                        continue
                    break
                self._invalid_in_a_row = 0
                if self.keeps_payload:
                    self.payload = payload
                return value
        finally:
            reader.wait_no_more()
        if not reader.is_attended and self._connection._phase is Phase.ENDED:
            # Of an endpoint of the app's own. The server hangs up when it returns, which must not be before the close
            # frame is out.
            await self._connection._outbox.wait_until_done()
        raise StopAsyncIteration

    async def _is_allowed(self, limiter: AskLimiter, payload: Payload) -> bool:
        """Ask the app about a message; False, too, if this node has ended the connection meanwhile."""
        try:
            is_allowed = await limiter(self._connection, "message")
        except CancelledError:
            self._reader.put_back(payload)
            raise
        if not is_allowed or self._reader.has_given_up:
            return False
        self._readers.counters.received_messages += 1
        return True

    async def _answer(self, payload: Payload, error: InvalidMessageError) -> bool:
        """Answer what the handler's type does not claim; return whether to go on."""
        if (control := is_control(payload)) is not None:
            await self._note_control(control, PONG)
            return True
        if not self._decoder.takes_as_it_is(payload) and (control := is_bare_control(payload)) is not None:
            await self._note_control(control, BARE_PONG)
            return True
        self._readers.counters.invalid_messages += 1
        self._invalid_in_a_row += 1
        told = error_message(ErrorCode.INVALID_MESSAGE, errors=error.errors, **reference_in(payload))
        await self._reader.answer(told)
        if self._invalid_in_a_row < self._readers.settings.max_invalid_messages:
            return True
        self._readers.counters.unreadable += self._connection.is_open
        await self._connection.close(CloseCode.INVALID_DATA, "too many invalid messages")
        return False

    async def _note_control(self, control: MessageType, pong: Message) -> None:
        """Take note of a sign of life, and answer one that asks for an answer."""
        self._invalid_in_a_row = 0
        if control is MessageType.PING:
            await self._reader.answer(pong)
