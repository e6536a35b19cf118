"""`Publisher` for code without an event loop."""

import os
from collections.abc import Callable
from math import ceil
from types import TracebackType
from typing import Any, Self

import redis
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from fastapi_rooms.backends.publications import ADVICE, NOT_TOLD, Excluded, Keep, Publications, Step, Steps
from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.backends.redis.dialing import Server, unavailable
from fastapi_rooms.backends.redis.places import ClusterSeeds, Place, SentinelMaster, Source, locate
from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection_id import ConnectionId
from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.domain.messages import MessageType
from fastapi_rooms.domain.settings import RoomsSettings

# Who does not say which library it is has two answers less to wait for.
_NAMELESS = {"driver_info": None} if hasattr(redis, "driver_info") else {"lib_name": None, "lib_version": None}


class SyncPublisherUsers:
    """Has all connections of a user join and leave rooms, on all nodes. See `ConnectionManager.users`.

    Args:
        publications: Who knows the steps.
        carry_out: Who does them.
    """

    def __init__(self, publications: Publications, carry_out: Callable[[Steps], None]) -> None:
        self._publications = publications
        self._carry_out = carry_out

    def join_room(self, user_id: str, room: str) -> None:
        """Make all connections of a user members of a room. Nobody is asked. Raises as `Publisher.broadcast` does."""
        self._carry_out(self._publications.move_user(user_id, room, joins=True))

    def leave_room(self, user_id: str, room: str) -> None:
        """End all memberships of a user in a room. Raises as `Publisher.broadcast` does."""
        self._carry_out(self._publications.move_user(user_id, room, joins=False))


class SyncPublisher:
    """Sends to the connections of all nodes, from code that has neither connections nor an event loop. Thread-safe.

    `with SyncPublisher(url) as publisher: publisher.broadcast_to_room("news", {"text": "…"})`

    It connects at the first call. **Delivery** is at most once, to nodes that are connected; a call that fails is not
    repeated. **Order** is that of the calls of one thread.

    Args:
        redis_url: As for `DistributedWebSocketManager`; a client of `redis.asyncio` lends its address, credentials and
            TLS settings.
        settings: `key_prefix` and `max_envelope_bytes` must fit those of the nodes; `publish_timeout` is how long a
            call may take.

    Raises:
        ConfigurationError: The URL leads nowhere.
    """

    def __init__(self, redis_url: Source, *, settings: RoomsSettings | None = None) -> None:
        self._settings = settings if settings is not None else RoomsSettings()
        self._place = locate(redis_url, self._settings.publish_timeout)
        self._channels = Channels(self._settings.key_prefix)
        self._publications = Publications(self._settings)
        self._word = "SPUBLISH" if isinstance(self._place, ClusterSeeds) else "PUBLISH"
        # Per process, since one that is forked must not use its parent's sockets and locks. Made at the first call: a
        # cluster is asked for its table then.
        self._clients: dict[int, Any] = {}

    def __repr__(self) -> str:
        return f"<SyncPublisher {self._place}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Idempotent; the next call connects again."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    @property
    def users(self) -> SyncPublisherUsers:
        """What concerns all connections of a user at once: rooms that they join and leave."""
        return SyncPublisherUsers(self._publications, self._carry_out)

    def broadcast(
        self,
        message: Any,
        message_type: MessageType | str | None = None,
        exclude: Excluded = (),
        *,
        exclude_user: str | None = None,
    ) -> None:
        """Send to everybody but the `connection_id`s that are left out, or a user with all connections.

        Raises as `Publisher.broadcast` does.
        """
        self._carry_out(self._publications.broadcast(message, message_type, exclude, exclude_user))

    def broadcast_to_room(
        self,
        room: str,
        message: Any,
        message_type: MessageType | str | None = None,
        exclude: Excluded = (),
        *,
        exclude_user: str | None = None,
    ) -> None:
        """Send to the members of a room. Leaves out whom `broadcast` does, and raises as it does."""
        self._carry_out(self._publications.broadcast_to_room(room, message, message_type, exclude, exclude_user))

    def send_to_user(self, user_id: str, message: Any, message_type: MessageType | str | None = None) -> None:
        """Send to all connections of a user. Raises as `broadcast` does."""
        self._carry_out(self._publications.send_to_user(user_id, message, message_type))

    def send_personal(
        self, connection_id: ConnectionId, message: Any, message_type: MessageType | str | None = None
    ) -> None:
        """Send to one connection, wherever it is. Raises as `broadcast` does."""
        self._carry_out(self._publications.send_personal(connection_id, message, message_type))

    def close_connection(self, connection_id: ConnectionId, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close one connection, behind what was sent to it before. Raises as `close_user` does."""
        self._carry_out(self._publications.close_connection(connection_id, code, reason))

    def close_room(self, room: str, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close all members of a room, behind what was sent to them before. Raises as `close_user` does."""
        self._carry_out(self._publications.close_room(room, code, reason))

    def close_user(self, user_id: str, code: int = CloseCode.NORMAL, reason: str = "", exclude: Excluded = ()) -> None:
        """Close all connections of a user but those that are left out, behind what was sent to them before.

        It is also kept for `revocation_seconds`, for nodes that are cut off. Raises as `Publisher.close_user` does.
        """
        self._carry_out(self._publications.close_user(user_id, code, reason, exclude))

    def _carry_out(self, steps: Steps) -> None:
        step = next(steps, None)
        while step is not None:
            try:
                self._do(step)
            except BackendUnavailable as error:
                step = steps.throw(error)
            else:
                step = next(steps, None)

    def _do(self, step: Step) -> None:
        if isinstance(step, Keep):
            key = self._channels.of_key(step.key)
            self._tell("SET", key, step.value, "PX", ceil(step.seconds * 1000))
        else:
            self._tell(self._word, self._channels.of(step.target), step.encode())

    def _tell(self, *command: Any) -> None:
        try:
            self._connected_client().execute_command(*command)
        except Exception as error:  # noqa: BLE001 - redis-py raises anything when it is closed meanwhile
            failure = unavailable(f"{NOT_TOLD}: Redis at {self._place}", error, ADVICE)
        else:
            return
        raise failure

    def _connected_client(self) -> Any:
        process = os.getpid()
        client = self._clients.get(process)
        if client is None:
            made = _client(self._place, self._settings.publish_timeout)
            client = self._clients.setdefault(process, made)  # in one step
            if client is not made:
                made.close()  # another thread was faster
        return client


def _client(place: Place, timeout: float) -> Any:
    """Return redis-py's client for a place; nothing that it does is tried twice."""
    # A call may have to connect and then to wait for the answer.
    options: dict[str, Any] = {
        "socket_timeout": timeout / 2,
        "socket_connect_timeout": timeout / 2,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if isinstance(place, ClusterSeeds):
        server = place.servers[0]
        # redis-py asks one server after the other where the slots are, and then the one that has ours.
        each = timeout / (len(place.servers) + 2)
        options |= {"socket_timeout": each, "socket_connect_timeout": each}
        nodes = [ClusterNode(*one.address) for one in place.servers]  # type: ignore[no-untyped-call] # left without types
        credentials = {name: value for name, value in server.options.items() if name not in ("host", "port")}
        is_tls = issubclass(server.connection_class, SSLConnection)
        return redis.RedisCluster(
            startup_nodes=nodes, require_full_coverage=False, ssl=is_tls, **credentials, **options
        )
    if isinstance(place, SentinelMaster):
        each = timeout / 2 / len(place.sentinels)
        quick = {**options, "socket_timeout": each, "socket_connect_timeout": each}
        sentinel = Sentinel([])  # type: ignore[no-untyped-call]
        sentinel.sentinels = [_one_client(one, quick) for one in place.sentinels]
        credentials = {name: value for name, value in place.server.options.items() if name not in ("host", "port")}
        is_tls = issubclass(place.server.connection_class, SSLConnection)
        return sentinel.master_for(place.service, ssl=is_tls, **credentials, **options)  # type: ignore[no-untyped-call]
    return _one_client(place.server, options)


def _one_client(server: Server, options: dict[str, Any]) -> redis.Redis:
    connection_class: type[redis.Connection | redis.UnixDomainSocketConnection] = redis.Connection
    brevity: dict[str, Any] = _NAMELESS
    if issubclass(server.connection_class, SSLConnection):
        connection_class = redis.SSLConnection
        brevity = {}  # TLS 1.3 says something by itself, which redis-py takes for dirt if nothing is read before
    elif issubclass(server.connection_class, UnixDomainSocketConnection):
        connection_class = redis.UnixDomainSocketConnection
    pool = redis.ConnectionPool(connection_class=connection_class, **{**brevity, **server.options, **options})
    return redis.Redis.from_pool(pool)
