"""Rooms for FastAPI over WebSockets."""

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.errors import ConfigurationError, MessageError, NotConnectedError, RoomsError
from fastapi_rooms.domain.messages import MessageType
from fastapi_rooms.domain.settings import Overflow, RoomsSettings
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.dependencies import ConnectionDep, ManagerDep, current_connection, get_manager
from fastapi_rooms.web.extension import RoomsExtension
from fastapi_rooms.web.routes import Incoming, ws_route

__all__ = [
    "CloseCode",
    "ConfigurationError",
    "Connection",
    "ConnectionDep",
    "ConnectionManager",
    "Counters",
    "DistributedWebSocketManager",
    "Incoming",
    "ManagerDep",
    "MessageError",
    "MessageType",
    "NotConnectedError",
    "Overflow",
    "RoomsError",
    "RoomsExtension",
    "RoomsSettings",
    "current_connection",
    "get_manager",
    "ws_route",
]
