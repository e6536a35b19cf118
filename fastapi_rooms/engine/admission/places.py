"""How many may be here: who is asked about takes a place like who is connected, and whose socket has not left, too.

Otherwise a crowd that comes at once would have the app asked about each of it. No cost grows with the number of others.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi_rooms.domain.address import address_key
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.domain.tally import Tally
from fastapi_rooms.engine.outbound.flusher import Flusher

logger = logging.getLogger("fastapi_rooms")


class Places:
    """Counts the places of one node, of each user and of each address.

    Args:
        settings: How many there are.
        registry: Who is connected.
        flusher: Whose socket is here, although its connection has ended.
    """

    def __init__(self, settings: RoomsSettings, registry: Registry, flusher: Flusher) -> None:
        self._settings = settings
        self.registry = registry
        self._flusher = flusher
        self._is_said = False  # that a client has no address
        self._asked = 0  # about how many the app is being asked
        self._asked_users = Tally()
        self._asked_addresses = Tally()  # if they are limited

    @contextmanager
    def kept_for(self, connection: Connection) -> Iterator[None]:
        """Keep a place for a connection while the app is asked about it."""
        user_id, address = connection.user_id, self.address_of(connection)
        self._asked += 1
        if user_id is not None:
            self._asked_users.add(user_id)
        if address is not None:
            self._asked_addresses.add(address)
        try:
            yield
        finally:
            self._asked -= 1
            if user_id is not None:
                self._asked_users.drop(user_id)
            if address is not None:
                self._asked_addresses.drop(address)

    def lacking(self, connection: Connection) -> Refusal | None:
        """Return of which limit there is no place left for one more; None: there is."""
        lacking = self._lacking(connection)
        if lacking is None:
            return None
        self._flusher.look_for_left()  # who was closed and comes back at once finds a place: its own
        return self._lacking(connection)

    def address_of(self, connection: Connection) -> str | None:
        """Return what counts as the address of a connection; None if addresses do not count, or it has none."""
        if self._settings.max_connections_per_address is None:
            return None
        client = connection.websocket.client
        if client is None or not client.host:
            if not self._is_said:
                self._is_said = True
                logger.warning(
                    "max_connections_per_address counts nothing here: the server knows no address of this client, as "
                    "on a unix socket. Behind a proxy, have the server trust its headers (uvicorn: --proxy-headers "
                    "with --forwarded-allow-ips), or count there (said once)"
                )
            return None
        return address_key(client.host)

    def giving_way(self, connection: Connection) -> list[Connection]:
        """Return which others of its user have to go now that it is registered, or is open, the oldest first.

        It takes the place of such as have come as far as itself. Who only is being connected may hang up yet, so it
        drives nobody out who is open; and who is open leaves alone who is being connected and will do the same to it.
        With the policy `refuse` there was a place for it, so nobody has to go.
        """
        most, user_id = self._settings.max_connections_per_user, connection.user_id
        if most is None or user_id is None:
            return []
        here = self.registry.of_user(user_id)
        if len(here) <= most:  # nearly always, and without a look at them
            return []
        others = [other for other in here if other is not connection and other.is_open is connection.is_open]
        return others[: max(0, len(others) + 1 - most)]

    def _lacking(self, connection: Connection) -> Refusal | None:
        settings, user_id, address = self._settings, connection.user_id, self.address_of(connection)
        if self._are_taken(settings.max_connections, max(len(self.registry), self._flusher.sockets), self._asked):
            return Refusal.MAX_CONNECTIONS
        if user_id is not None:
            here = 0 if settings.user_limit_policy == "replace" else len(self.registry.of_user(user_id))
            if self._are_taken(settings.max_connections_per_user, here, self._asked_users[user_id]):
                return Refusal.MAX_CONNECTIONS_PER_USER
        if address is not None and self._are_taken(
            settings.max_connections_per_address, self.registry.from_address(address), self._asked_addresses[address]
        ):
            return Refusal.MAX_CONNECTIONS_PER_ADDRESS
        return None

    @staticmethod
    def _are_taken(places: int | None, here: int, asked: int) -> bool:
        return places is not None and here + asked >= places
