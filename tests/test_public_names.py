"""What users import: adding or losing a name is a decision, not an accident."""

import pydoc

import pytest

import fastapi_rooms

NAMES = [
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


def test_the_public_names_are_these():
    assert fastapi_rooms.__all__ == NAMES
    assert all(hasattr(fastapi_rooms, name) for name in NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("Dep") and n != "Incoming"])
def test_every_public_thing_and_its_methods_are_described(name):
    public = getattr(fastapi_rooms, name)
    assert pydoc.getdoc(public)
    if isinstance(public, type):
        for attribute, value in vars(public).items():
            if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                assert pydoc.getdoc(value), f"{name}.{attribute} has no docstring"


def test_the_manager_of_many_nodes_is_announced_and_says_so_without_the_password():
    with pytest.raises(fastapi_rooms.ConfigurationError, match="one process") as refusal:
        fastapi_rooms.DistributedWebSocketManager("redis://:secret@localhost")
    assert "secret" not in str(refusal.value)
