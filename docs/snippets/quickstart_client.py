from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from quickstart import app


@pytest.fixture
def client() -> Iterator[TestClient]:
    # `with` starts the lifespan, and one event loop for all sockets
    with TestClient(app) as client:
        yield client


def test_everybody_in_the_room_hears_what_is_said(client: TestClient) -> None:
    client.post("/login", params={"name": "Ann"})  # the client keeps the cookie
    with (
        client.websocket_connect("/ws/lobby") as first,
        client.websocket_connect("/ws/lobby") as second,
    ):
        first.send_json({"type": "say", "text": "hello"})
        heard = {"type": "said", "name": "Ann", "text": "hello"}
        assert first.receive_json() == heard
        assert second.receive_json() == heard


def test_what_does_not_fit_is_answered(client: TestClient) -> None:
    client.post("/login", params={"name": "Ann"})
    with client.websocket_connect("/ws/lobby") as socket:
        socket.send_json({"type": "shout", "text": "HELLO"})
        answer = socket.receive_json()
        assert answer["code"] == "invalid_message"
        assert answer["errors"][0]["type"] == "union_tag_invalid"
