"""What the tests of many nodes say, and to whom."""

from uuid import uuid4

import pytest

from fastapi_rooms.domain.envelope import room_target, user_target
from fastapi_rooms.domain.settings import RoomsSettings

KITCHEN, ANN = room_target("kitchen"), user_target("ann")
LOG = RoomsSettings(publish_failure="log")

EVERY_CALL = {
    "broadcast": lambda manager: manager.broadcast("hi"),
    "broadcast_to_room": lambda manager: manager.broadcast_to_room("kitchen", "hi"),
    "send_to_user": lambda manager: manager.send_to_user("ann", "hi"),
    "send_personal": lambda manager: manager.send_personal(uuid4().hex, "hi"),
    "close_user": lambda manager: manager.close_user("ann"),
    "close_room": lambda manager: manager.close_room("kitchen"),
    "close": lambda manager: manager.close(uuid4().hex),
}
every_call = pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
