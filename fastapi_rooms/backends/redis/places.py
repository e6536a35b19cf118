"""Where Redis is: one server, a master that Sentinel names, or a cluster. Found by a URL or a ready redis-py client."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import redis
import redis.sentinel
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from fastapi_rooms.backends.redis.asking import first_answer
from fastapi_rooms.backends.redis.dialing import Lost, Server, ask, check_role, close
from fastapi_rooms.domain.errors import BackendUnavailable, ConfigurationError

Source = str | Redis | RedisCluster | redis.Redis | redis.RedisCluster
"""How a user says where Redis is: by a URL or a ready client. Of the client, address, credentials and TLS are used."""

_FORMS = (
    "redis://host:6379, rediss://host:6380 (TLS), unix:///path, redis+sentinel://host:26379,host:26379/master-name or "
    "redis+cluster://host:7000,host:7001"
)
_SENTINEL_PREFIX = "sentinel_"
_SYNC_ONLY = ("ssl_validate_ocsp", "ssl_ocsp", "ssl_password", "ssl_ca_path")


@dataclass(frozen=True, slots=True)
class OneServer:
    """A server at a fixed address."""

    server: Server

    def __str__(self) -> str:
        """Say where it is, without credentials."""
        return str(self.server)

    async def dial(self) -> AbstractConnection:
        """Connect. Raises BackendUnavailable."""
        return await self.server.dial()


@dataclass(frozen=True, slots=True)
class SentinelMaster:
    """The server that Sentinel names as master. Sentinel is asked anew for every connection."""

    service: str
    sentinels: tuple[Server, ...]
    server: Server
    """How to connect to the master. Its address comes from Sentinel."""
    timeout: float

    def __str__(self) -> str:
        """Say where it is, without credentials."""
        return f"master {self.service!r} of the Sentinels at {', '.join(map(str, self.sentinels))}"

    async def dial(self) -> AbstractConnection:
        """Ask the Sentinels, and connect to the master that the first answer names. Raises BackendUnavailable."""
        return await self._dial(await self._master())

    async def is_replaced(self, address: tuple[str, int]) -> bool:
        """Ask the Sentinels, and return whether another server is master now and can be reached.

        A master that stood still while it was replaced goes on as a master until Sentinel tells it, 10 s later.
        """
        try:
            async with asyncio.timeout(self.timeout / 4):  # without an answer by then nobody was replaced
                named = await self._master()
                if named == address:
                    return False
                await close(await self._dial(named))
        except (BackendUnavailable, TimeoutError):
            return False
        return True

    async def _dial(self, address: tuple[str, int]) -> AbstractConnection:
        connection = await self.server.at(*address).dial()
        try:
            async with asyncio.timeout(self.timeout):
                check_role(await ask(connection, "ROLE"))
        except (Lost, TimeoutError) as error:
            await close(connection)
            raise BackendUnavailable(f"the {self} did not tell its role") from error
        except BaseException:
            await close(connection)
            raise
        return connection

    async def _master(self) -> tuple[str, int]:
        return await first_answer(map(self._master_by, self.sentinels))

    async def _master_by(self, sentinel: Server) -> tuple[str, int]:
        answer = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        if not answer:
            raise BackendUnavailable(f"the Sentinel at {sentinel} knows no master {self.service!r}")
        try:
            host, port = answer
            return host.decode(), int(port)
        except (TypeError, AttributeError, ValueError) as error:
            raise BackendUnavailable(f"the Sentinel at {sentinel} named no address: {error}") from error


@dataclass(frozen=True, slots=True)
class ClusterSeeds:
    """Servers of a Redis Cluster, any of which tells where the others are."""

    servers: tuple[Server, ...]

    def __str__(self) -> str:
        """Say where it is, without credentials."""
        return f"cluster at {', '.join(map(str, self.servers))}"


Place = OneServer | SentinelMaster | ClusterSeeds


def locate(source: Source, timeout: float) -> Place:
    """Return where Redis is. No error and no `str` of the result shows a password.

    Raises:
        ConfigurationError: It is no URL or client that can be used.
    """
    if isinstance(source, str):
        return _by_url(source, timeout)
    if isinstance(source, redis.RedisCluster):
        options = source.nodes_manager.connection_kwargs
        base = Server(SSLConnection if options.get("ssl") else _asynchronous(options), options, timeout)
        return ClusterSeeds(
            tuple(base.at(node.host, int(node.port)) for node in source.nodes_manager.nodes_cache.values())
        )
    if isinstance(source, RedisCluster):
        options = source.connection_kwargs
        base = Server(_asynchronous(options), options, timeout)
        return ClusterSeeds(
            tuple(base.at(node.host, int(node.port)) for node in source.get_nodes() or source.startup_nodes)
        )
    if isinstance(source, Redis | redis.Redis):
        return _by_client(source, timeout)
    raise ConfigurationError(
        f"a Redis URL or a client of redis-py is needed, not {type(source).__module__}.{type(source).__name__}: "
        f"write {_FORMS}"
    )


def _asynchronous(options: Mapping[str, Any]) -> type[AbstractConnection]:
    """Return the class of redis.asyncio that connects as the one in a client's options does."""
    given: type[Any] = options.get("connection_class", Connection)
    if issubclass(given, AbstractConnection):
        return given
    if issubclass(given, redis.UnixDomainSocketConnection):
        return UnixDomainSocketConnection
    return SSLConnection if issubclass(given, redis.SSLConnection) else Connection


def _by_client(client: Redis | redis.Redis, timeout: float) -> Place:
    pool: Any = client.connection_pool
    if not isinstance(pool, SentinelConnectionPool | redis.sentinel.SentinelConnectionPool):
        return OneServer(_by_pool(pool, timeout))
    is_tls = issubclass(
        pool.connection_class, SentinelManagedSSLConnection | redis.sentinel.SentinelManagedSSLConnection
    )
    sentinels = tuple(_by_pool(one.connection_pool, timeout) for one in pool.sentinel_manager.sentinels)
    server = Server(SSLConnection if is_tls else Connection, pool.connection_kwargs, timeout)
    return SentinelMaster(pool.service_name, sentinels, server, timeout)


def _by_pool(pool: Any, timeout: float) -> Server:
    connection_class = _asynchronous({"connection_class": pool.connection_class})
    # Some options exist only for clients without an event loop, in old versions two more. Unused ones are left out;
    # used ones stay, and are refused.
    options = {n: value for n, value in pool.connection_kwargs.items() if value or not n.startswith(_SYNC_ONLY)}
    return Server(connection_class, options, timeout)


def _by_url(url: str, timeout: float) -> Place:
    # No error is chained or quoted here: it would show parts of the URL, and so the password.
    try:
        parts = urlsplit(url)
        _check_parts(parts)
        base, _, kind = parts.scheme.partition("+")
        hosts = parts.netloc.rpartition("@")[2].split(",")
        if base in ("redis", "rediss") and kind == "sentinel":
            return _sentinel_by_url(parts, base, hosts, timeout)
        if base in ("redis", "rediss") and kind == "cluster":
            return ClusterSeeds(tuple(_server(_with_host(parts, base, host, parts.path), timeout) for host in hosts))
        return OneServer(_server(url, timeout))  # refuses any other scheme
    except ValueError:
        pass
    raise ConfigurationError(
        f"this is no URL that leads to Redis (it is not shown, it may hold a password): write {_FORMS}. Special "
        "characters of a password have to be percent-encoded"
    )


def _check_parts(parts: SplitResult) -> None:
    """Refuse a URL whose password holds a `#`, `/` or `?`: what follows would be taken for a host, and shown."""
    if parts.fragment or (parts.scheme != "unix" and "@" in parts.path):
        raise ValueError("not where it belongs")
    if parts.query:
        parse_qs(parts.query, strict_parsing=True)


def _sentinel_by_url(parts: SplitResult, base: str, hosts: list[str], timeout: float) -> SentinelMaster:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("no name of a master")
    options = {
        name.removeprefix(_SENTINEL_PREFIX): values[0]
        for name, values in parse_qs(parts.query).items()
        if name.startswith(_SENTINEL_PREFIX)
    }
    sentinels = tuple(
        _server(f"{base}://{host if ':' in host.rpartition(']')[2] else f'{host}:26379'}", timeout, options)
        for host in hosts
    )
    return SentinelMaster(
        unquote(service), sentinels, _server(_with_host(parts, base, hosts[0], f"/{database}"), timeout), timeout
    )


def _with_host(parts: SplitResult, scheme: str, host: str, path: str) -> str:
    credentials, at, _ = parts.netloc.rpartition("@")
    return parts._replace(scheme=scheme, netloc=f"{credentials}{at}{host}", path=path).geturl()


def _server(url: str, timeout: float, more: Mapping[str, Any] | None = None) -> Server:
    options: dict[str, Any] = {**parse_url(url), **(more or {})}
    connection_class = options.pop("connection_class", Connection)
    if issubclass(connection_class, UnixDomainSocketConnection) and not options.get("path"):
        raise ValueError("no path of a socket")
    if issubclass(connection_class, SSLConnection):
        options.setdefault("ssl_check_hostname", True)  # redis-py's own default since 6.0
    return Server(connection_class, options, timeout)
