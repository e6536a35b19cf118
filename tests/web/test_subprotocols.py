"""`ws_route(subprotocols=...)`: negotiated as RFC 6455 has it, and known to handlers."""

import pytest
from fastapi import WebSocket
from support import until

from fastapi_rooms import (
    BearerSubprotocol,
    ConfigurationError,
    ConnectionDep,
    Incoming,
    RoomsExtension,
)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["chat.v1"], "chat.v1"),
        (["chat.v1", "chat.v2"], "chat.v2"),
        (["graphql-ws", "chat.v1"], "chat.v1"),
        (["graphql-ws"], None),
        (None, None),
    ],
)
async def test_the_best_that_both_speak_is_accepted_and_known(stage, rooms, offered, chosen, wire):
    @rooms.ws_route("/ws", subprotocols=["chat.v2", "chat.v1"])
    async def chat(message: Incoming[str], connection: ConnectionDep) -> str:
        return str(connection.subprotocol)

    async with stage.plays(rooms) as server, server.client("/ws", subprotocols=offered) as client:
        assert client.websocket.subprotocol == chosen
        await client.send("which?")
        assert await client.receive() == str(chosen)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["bearer", "bearer.ann"], "bearer"), (["bearer", "bearer.ann", "chat.v1"], "chat.v1")],
)
async def test_a_token_beside_them_is_never_chosen(stage, rooms, offered, chosen):
    @rooms.ws_route("/ws", user_id=BearerSubprotocol(), subprotocols=["chat.v1", "bearer.ann"])
    async def chat(message: Incoming[str], connection: ConnectionDep) -> str:
        return f"{connection.user_id} {connection.subprotocol}"

    async with stage.plays(rooms) as server, server.client("/ws", subprotocols=offered) as client:
        await client.send("which?")
        assert await client.receive() == f"ann {chosen}"


async def test_a_route_of_ones_own_tells_the_connection_too(stage):
    rooms = RoomsExtension()
    found = []

    @rooms.router.websocket("/ws")
    async def own(websocket: WebSocket) -> None:
        connection = await rooms.manager.connect(websocket, subprotocol="chat.v1")
        found.append(connection.subprotocol)
        await connection.close()
        await connection.wait_until_closed()

    async with stage.plays(rooms) as server, server.client("/ws", subprotocols=["chat.v1"]) as client:
        await client.closed()
        await until(lambda: found)
    assert found == ["chat.v1"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("chat.v1", r"subprotocols takes a list: write \['chat.v1'\]"),
        ([""], "'' can be no subprotocol"),
        (["chat v1"], "'chat v1' can be no subprotocol"),
        (["chat,v1"], "'chat,v1' can be no subprotocol"),
        ([1], "1 can be no subprotocol"),
    ],
)
def test_what_can_be_none_is_refused_at_decoration(rooms, wrong, said):
    with pytest.raises(ConfigurationError, match=said):
        rooms.ws_route("/ws", subprotocols=wrong)
