"""Calling a user's handler: once per message, or once for the whole session."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool

from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.error_code import ErrorCode
from fastapi_rooms.domain.errors import BackendUnavailable, ConnectionEnded, RefusedError, details_of, tells_of_end
from fastapi_rooms.domain.incoming import Decoder, error_message, reference_in
from fastapi_rooms.domain.seldom import Seldom
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.engine.outbound.in_context import run_in_context
from fastapi_rooms.engine.sessions import sessions_of
from fastapi_rooms.web.answer import Answer
from fastapi_rooms.web.outcome import say_if_another_has_ended

logger = logging.getLogger("fastapi_rooms")


class Handler:
    """A user's function and what it wants to be given.

    Args:
        function: `async def`, an async generator, or `def` (which runs in a thread).
        message_parameter: The name of its `Incoming` parameter; None if it owns the session.
        message_type: What `Incoming` stands for.
        answer: What is sent of what it returns or yields; None: all of it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        message_parameter: str | None,
        message_type: Any,
        answer: Answer | None = None,
    ) -> None:
        self._function = function
        self._message_parameter = message_parameter
        self._decoder = Decoder(message_type)  # built once, not per connection
        self._answer = answer
        self._unavailable_said = Seldom()
        self.end_said = Seldom()  # whether to say again how a connection ended: clients decide how often they do
        self._is_plain = inspect.iscoroutinefunction(function)
        self._is_async = self._is_plain or inspect.isasyncgenfunction(function)

    async def run(  # noqa: C901 - one frame on purpose: it is there for each message
        self, connection: Connection, manager: ConnectionManager, values: dict[str, Any]
    ) -> None:
        """Serve a connection until the client is gone or the handler returns or raises."""
        name = self._message_parameter
        if name is None:
            sessions_of(manager).reader(connection).start()
            await self._call(connection, values)
            return
        before = copy_context()
        received = sessions_of(manager).received(connection, self._decoder)
        received.keeps_payload = True  # an error frame says which message it answers
        async for message in received:
            values[name] = message
            try:
                if not _is_as(before):  # an earlier message has set a variable: this one must not find it
                    await run_in_context(before.copy(), self._call(connection, values))
                elif self._is_plain:  # nearly always: `_call`, spelt out
                    result = await self._function(**values)
                    if result is not None and inspect.isasyncgen(result):
                        await self._stream(connection, result)
                    elif result is not None:
                        await connection.send(result if self._answer is None else self._answer.fit(result))
                else:
                    await self._call(connection, values)
            except (ConnectionEnded, ExceptionGroup) as error:
                if not self._may_go_on(connection, error):
                    raise
            except RefusedError as error:
                logger.debug("%r was refused: %.200r", connection, error)  # clients decide how often
                told = error_message(error.code, **details_of(error), **reference_in(received.payload))
                await manager.send_personal(connection, told)
            except BackendUnavailable as error:
                # Members on this node were served, and the client may try again: no reason to close.
                if self._unavailable_said.is_due(asyncio.get_running_loop().time()):
                    logger.info(
                        "%r was told that other nodes are out of reach: %s (said once a minute)", connection, error
                    )
                told = error_message(ErrorCode.UNAVAILABLE, **reference_in(received.payload))
                await manager.send_personal(connection, told)
            values[name] = message = result = None  # a connection that waits keeps no message # noqa: PLW2901

    def _may_go_on(self, connection: Connection, error: Exception) -> bool:
        """Return whether an error says no more than that somebody has gone: then what else was sent is handled."""
        if connection.is_open:
            return say_if_another_has_ended(connection.websocket, error, self.end_said)
        return tells_of_end(error)

    async def _call(self, connection: Connection, values: dict[str, Any]) -> None:
        if self._is_async:
            result = self._function(**values)
        else:
            result = await run_in_threadpool(partial(self._function, **values))
        if inspect.isawaitable(result):
            result = await result
        if inspect.isasyncgen(result):
            await self._stream(connection, result)
        elif result is not None:
            await connection.send(result if self._answer is None else self._answer.fit(result))

    async def _stream(self, connection: Connection, values: AsyncGenerator[Any, Any]) -> None:
        """Send values as they come, no faster than the client takes them; stop when it is gone."""
        async with aclosing(values):
            async for value in values:
                await connection.send(value if self._answer is None else self._answer.fit(value))


def _is_as(before: Context) -> bool:
    """Return whether the context variables have the values that they had. At each message, so a look at one pointer."""
    try:
        return copy_context() == before
    except Exception:  # noqa: BLE001 - values are compared if they are other objects, and some cannot be
        return False
