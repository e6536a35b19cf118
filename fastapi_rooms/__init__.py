"""Rooms for FastAPI over WebSockets."""

from fastapi_rooms.backends.contract import Backend, BackendStatus, Gap
from fastapi_rooms.backends.redis.publisher import Publisher
from fastapi_rooms.backends.redis.sync_publisher import SyncPublisher
from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.errors import (
    BackendUnavailable,
    ConfigurationError,
    ManagerNotStarted,
    MessageError,
    NotConnectedError,
    RoomsError,
)
from fastapi_rooms.domain.messages import MessageType
from fastapi_rooms.domain.settings import Overflow, RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.dependencies import ConnectionDep, ManagerDep, current_connection, get_manager
from fastapi_rooms.web.extension import RoomsExtension
from fastapi_rooms.web.routes import Incoming, ws_route

__all__ = [
    "Backend",
    "BackendStatus",
    "BackendUnavailable",
    "CloseCode",
    "ConfigurationError",
    "Connection",
    "ConnectionDep",
    "ConnectionManager",
    "Counters",
    "DistributedWebSocketManager",
    "Gap",
    "Incoming",
    "ManagerDep",
    "ManagerNotStarted",
    "MessageError",
    "MessageType",
    "NotConnectedError",
    "Overflow",
    "Publisher",
    "RoomsError",
    "RoomsExtension",
    "RoomsSettings",
    "SyncPublisher",
    "current_connection",
    "get_manager",
    "ws_route",
]
