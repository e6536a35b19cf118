"""Fresh connections to one Redis server, by redis-py's own Connection.

redis-py's clients and pub/sub objects retry, reconnect and time out by themselves in ways that lose or repeat messages
without a word. Its plain Connection, used once and thrown away, gives the rest of the library: addresses, TLS,
credentials, the protocol.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.sentinel import MasterNotFoundError

from fastapi_rooms.domain.errors import BackendUnavailable, ConfigurationError

# What a user may say about a connection. Everything else (pools, retries, time-outs, decoding) is decided here. Nobody
# may leave out the name of the library: redis-py tells it at once, and a server that stands still does not answer.
_ALLOWED = frozenset(
    {
        "host",
        "port",
        "path",
        "username",
        "password",
        "credential_provider",
        "client_name",
        "socket_keepalive",
        "socket_keepalive_options",
        "socket_type",
    }
)

_LOST = (RedisError, OSError, EOFError, AttributeError, RuntimeError, ValueError)
"""What redis-py raises from a connection that is gone. The last three leak out of its parser and its streams: without
hiredis, what is no number where one belongs is a ValueError."""

_QUOTING = ", with args beginning with"
"""What comes before a password in an error: a server that does not know AUTH quotes what it was sent."""


class Lost(Exception):  # noqa: N818 - never leaves this package
    """A connection is gone."""


class Server:
    """One Redis server, and how to connect to it.

    Args:
        connection_class: redis-py's class for TCP, TLS or a unix socket.
        options: What redis-py takes for it; only what concerns address, credentials and TLS is used.
        timeout: How long a connection may take, in seconds.

    Raises:
        ConfigurationError: redis-py does not take the options.
    """

    def __init__(self, connection_class: type[AbstractConnection], options: Mapping[str, Any], timeout: float) -> None:
        self.connection_class = connection_class
        self.options = {k: v for k, v in options.items() if k in _ALLOWED or k.startswith("ssl_")}
        self._timeout = timeout
        try:
            self._make()
        except (RedisError, TypeError, ValueError) as error:
            raise ConfigurationError(f"redis-py takes no such options: {error}. Leave them out or mend them") from None

    def __str__(self) -> str:
        """Say where it is, without credentials."""
        if "path" in self.options:
            return f"unix:{self.options['path']}"
        host, port = self.address
        return f"{host}:{port}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; where nothing was said, the defaults of redis-py."""
        return self.options.get("host") or "localhost", int(self.options.get("port") or 6379)

    def at(self, host: str, port: int) -> "Server":
        """Return another server, reached in the same way."""
        return Server(self.connection_class, {**self.options, "host": host, "port": port}, self._timeout)

    async def dial(self) -> AbstractConnection:
        """Connect and authenticate.

        Raises:
            BackendUnavailable: It cannot be reached, does not answer in time, or refuses us.
        """
        connection = self._make()
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call] # redis-py left it without types
        except Exception as error:  # noqa: BLE001 - a credential provider of the user may raise anything
            await close(connection)
            failure = unavailable(f"Redis at {self} cannot be reached", error)
        except BaseException:
            await close(connection)
            raise
        else:
            return connection
        raise failure

    def _make(self) -> AbstractConnection:
        return self.connection_class(
            **self.options,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=self._timeout,
            health_check_interval=0,
        )

    async def ask(self, *command: str) -> Any:
        """Connect, send one command, return the answer and hang up.

        Raises:
            BackendUnavailable: There was none in time, or it was an error.
        """
        connection = await self.dial()
        try:
            async with asyncio.timeout(self._timeout):
                answer = await ask(connection, *command)
        except (Lost, TimeoutError) as error:
            raise BackendUnavailable(f"Redis at {self} did not answer {command[0]}: {_text(error)}") from error
        finally:
            await close(connection)
        if isinstance(answer, Exception):
            raise BackendUnavailable(f"Redis at {self} refused {command[0]}: {answer}") from answer
        return answer


async def ask(connection: AbstractConnection, *command: str) -> Any:
    """Send a command on a connection that nobody else reads, and return the answer; it may be an error.

    Raises:
        Lost: The connection is gone.
    """
    await send(connection, [pack(connection, *command)])
    return await read(connection)


def pack(connection: AbstractConnection, *command: str | bytes) -> bytes:
    """Return a command as bytes."""
    return b"".join(connection.pack_command(*command))


async def send(connection: AbstractConnection, commands: list[bytes]) -> None:
    """Write packed commands.

    Raises:
        Lost: The connection is gone.
    """
    # redis-py would make a new connection without a word. Nothing is subscribed there, and nobody reads from it.
    if not connection.is_connected:
        raise Lost("closed")
    try:
        await connection.send_packed_command([b"".join(commands)], check_health=False)
    except _LOST as error:
        raise Lost(_text(error)) from error


async def read(connection: AbstractConnection) -> Any:
    """Wait for what Redis says next; an error that answers a command is returned.

    Raises:
        Lost: The connection is gone.
    """
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as answer:
        return answer
    except _LOST as error:
        raise Lost(_text(error)) from error


def hang_up(connection: AbstractConnection) -> None:
    """End a connection at once. What is not written yet is lost. Its reader sees the end. Idempotent."""
    # redis-py only closes, which waits until all is written: to a Redis that stands still that is never, or much later.
    writer = connection._writer  # noqa: SLF001 - it has no other way to the transport; a test of facts watches the name
    if writer is not None:
        writer.transport.abort()


async def close(connection: AbstractConnection) -> None:
    """Hang up, and leave nothing behind. Only the owner of a connection calls this. Does not wait."""
    hang_up(connection)
    with suppress(*_LOST):
        await connection.disconnect(nowait=True)


def check_role(answer: object) -> None:
    """Check what a server said to ROLE.

    Raises:
        BackendUnavailable: It is not a master. What is published to it would reach nobody else.
    """
    role = answer[0] if isinstance(answer, list) and answer else answer
    if role != b"master":
        raise BackendUnavailable(f"this Redis server is no master any more: {role!r}")


def unavailable(what: str, error: BaseException, advice: str = "") -> BackendUnavailable:
    """Return an error. To be raised outside of the `except`, so that nothing but its cause is chained to it."""
    text, quoting, _ = _text(error).partition(_QUOTING)
    made = BackendUnavailable(f"{what}: {text}{advice}")
    made.__cause__ = None if quoting or isinstance(error, MasterNotFoundError) else error
    return made


def _text(error: BaseException) -> str:
    """Return what an error says, as part of a sentence of ours. Never shows what redis-py knows of a client."""
    if isinstance(error, MasterNotFoundError):
        return "no Sentinel that answers knows this master"  # old versions print passwords here
    return str(error).rstrip(".") or type(error).__name__
