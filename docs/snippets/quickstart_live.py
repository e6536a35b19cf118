import json
from collections.abc import Iterator

import httpx
import pytest
from live_server import live_server
from quickstart import app
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with live_server(app) as address:
        yield address


def log_in(address: str, name: str) -> str:
    response = httpx.post(f"http://{address}/login", params={"name": name})
    return response.cookies["session"]


def enter(address: str, room: str, name: str) -> ClientConnection:
    cookie = {"Cookie": f"session={log_in(address, name)}"}
    return connect(f"ws://{address}/ws/{room}", additional_headers=cookie)


def test_everybody_in_the_room_hears_what_is_said(address: str) -> None:
    with (
        enter(address, "lobby", "Ann") as ann,
        enter(address, "lobby", "Bob") as bob,
    ):
        ann.send('{"type": "say", "text": "hello"}')
        heard = {"type": "said", "name": "Ann", "text": "hello"}
        assert json.loads(ann.recv(timeout=5)) == heard
        assert json.loads(bob.recv(timeout=5)) == heard


def test_strangers_stay_outside(address: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{address}/ws/lobby")
    assert refused.value.response.status_code == 401
