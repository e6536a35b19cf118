"""Rooms for FastAPI over WebSockets."""

from fastapi_rooms.backends.contract import Backend, SupportsStore
from fastapi_rooms.backends.redis.publisher import Publisher
from fastapi_rooms.backends.redis.sync_publisher import SyncPublisher
from fastapi_rooms.domain.backend_state import BackendStatus, Gap
from fastapi_rooms.domain.close_codes import CloseCode, may_reconnect
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.connection_id import ConnectionId
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.error_code import ErrorCode
from fastapi_rooms.domain.errors import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionEnded,
    InvalidName,
    JoinRefused,
    ManagerNotStarted,
    MessageError,
    NotConnectedError,
    RefusedError,
    RoomsError,
    TooManyRooms,
)
from fastapi_rooms.domain.limits import Limits
from fastapi_rooms.domain.messages import MessageType
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.settings import Overflow, RoomsSettings
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.hooks import Disconnected, Hooks, Refused
from fastapi_rooms.engine.manager import ConnectionManager
from fastapi_rooms.web.bearer import BearerSubprotocol
from fastapi_rooms.web.credentials import refuse_credentials
from fastapi_rooms.web.dependencies import ConnectionDep, ManagerDep, current_connection, get_manager
from fastapi_rooms.web.extension import RoomsExtension
from fastapi_rooms.web.gate import check_handshake
from fastapi_rooms.web.health import health_router
from fastapi_rooms.web.identity import Identity
from fastapi_rooms.web.incoming_mark import Incoming
from fastapi_rooms.web.tickets import Tickets
from fastapi_rooms.web.ws_route import ws_route

__all__ = [
    "Backend",
    "BackendStatus",
    "BackendUnavailable",
    "BearerSubprotocol",
    "CloseCode",
    "ConfigurationError",
    "Connection",
    "ConnectionDep",
    "ConnectionEnded",
    "ConnectionId",
    "ConnectionManager",
    "Counters",
    "Disconnected",
    "DistributedWebSocketManager",
    "ErrorCode",
    "Gap",
    "HandshakeRefused",
    "Hooks",
    "Identity",
    "Incoming",
    "InvalidName",
    "JoinRefused",
    "Limits",
    "ManagerDep",
    "ManagerNotStarted",
    "MessageError",
    "MessageType",
    "NotConnectedError",
    "Overflow",
    "Publisher",
    "Refusal",
    "Refused",
    "RefusedError",
    "RoomsError",
    "RoomsExtension",
    "RoomsSettings",
    "Stats",
    "SupportsStore",
    "SyncPublisher",
    "Tickets",
    "TooManyRooms",
    "check_handshake",
    "current_connection",
    "get_manager",
    "health_router",
    "may_reconnect",
    "refuse_credentials",
    "ws_route",
]
