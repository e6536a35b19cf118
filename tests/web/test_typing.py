"""What a user's type checker sees: `mypy --strict` on a user's project."""

import re

import pytest
from stage import EXAMPLE
from type_checker import SECONDS, check_types

pytestmark = pytest.mark.timeout(SECONDS)

AUTHENTICATED_USER = """\
from fastapi import WebSocket

async def authenticated_user(websocket: WebSocket) -> str:
    return websocket.cookies["user"]

"""

PROJECT = """\
from collections.abc import AsyncIterator
from typing import Annotated, Literal, reveal_type

from fastapi import APIRouter, Depends, FastAPI, WebSocket
from pydantic import BaseModel, Field

from fastapi_rooms import (
    CloseCode,
    Connection,
    ConnectionDep,
    ConnectionId,
    ConnectionManager,
    Incoming,
    ManagerDep,
    MessageType,
    Overflow,
    RoomsExtension,
    RoomsSettings,
    ws_route,
)

class Say(BaseModel):
    type: Literal["say"]
    text: str

class Move(BaseModel):
    type: Literal["move"]
    x: int

Action = Annotated[Say | Move, Field(discriminator="type")]

def user() -> str | None:
    return None

async def metadata() -> dict[str, int]:
    return {}

router = APIRouter()
app = FastAPI()
rooms = RoomsExtension(settings=RoomsSettings(overflow=Overflow.DROP_OLDEST, outbox_bytes=1024))
manager = ConnectionManager()

@rooms.ws_route("/a", room=user, user_id=Depends(user), metadata=metadata, dependencies=[Depends(user)], name="a")
async def one(message: Incoming[Say], connection: ConnectionDep, manager: ManagerDep) -> None:
    reveal_type(message)  # is ".*Say"
    reveal_type(connection)  # is ".*Connection"
    reveal_type(manager)  # is ".*ConnectionManager"
    reveal_type(connection.user_id)  # is "str | None"
    reveal_type(await manager.broadcast_to_room("r", message, exclude=connection))  # is "int"
    reveal_type(await connection.send(message, MessageType.JSON))  # is "bool"
    await connection.close(CloseCode.NORMAL)
    await manager.close(connection, 4001, "why")

reveal_type(one)  # is "def (message: .*Say, connection: .*Connection, manager: .*ConnectionManager) -> .*None]"

@ws_route(app, "/b")
async def several(message: Incoming[Action]) -> AsyncIterator[str]:
    reveal_type(message)  # is ".*Say | .*Move"
    yield message.type

@ws_route(router, "/c")
def plain(message: Incoming[str | bytes]) -> int:
    reveal_type(message)  # is "str | bytes"
    return len(message)

reveal_type(plain)  # is "def (message: str | bytes) -> int"

@ws_route(router, "/d")
async def session(connection: ConnectionDep) -> None:
    async for say in connection.messages(Say):
        reveal_type(say)  # is ".*Say"
        say.text.upper()
    async for text in connection.messages(str):
        reveal_type(text)  # is "str"

async def endpoint(websocket: WebSocket) -> None:
    connection = await manager.connect(websocket, "r", "u", {"a": 1}, subprotocol="s", headers=[(b"a", b"b")])
    reveal_type(connection)  # is ".*Connection"
    reveal_type(manager.disconnect(websocket))  # is ".*Connection | None"
    reveal_type(manager.get_room_members("r"))  # is ".*list[.*Connection]"
    reveal_type(manager.active_connections)  # is "int"
    reveal_type(manager.active_rooms)  # is ".*list[str]"
    reveal_type(await manager.join_room(connection, "r"))  # is "bool"
    reveal_type(await manager.send_to_user("u", Say(type="say", text="hi"), "json"))  # is "int"
    reveal_type(await manager.close_room("r", 1000, "done"))  # is "int"
    reveal_type(connection.connection_id)  # is ".*ConnectionId"
    await manager.send_personal(ConnectionId("0" * 32), "hi")
    await manager.broadcast("hi", exclude={connection.connection_id, websocket}, exclude_user="u")
    reveal_type(await manager.users.leave_room("u", "r"))  # is "int"
"""

NODES = """\
import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import Annotated, reveal_type

from fastapi import Depends, FastAPI
from redis.asyncio import Redis, RedisCluster

from fastapi_rooms import (
    Backend,
    BackendStatus,
    BackendUnavailable,
    ConnectionManager,
    DistributedWebSocketManager,
    Gap,
    ManagerDep,
    Publisher,
    RoomsExtension,
    RoomsSettings,
    SyncPublisher,
    get_manager,
)
from fastapi_rooms.backends.contract import Receiver
from fastapi_rooms.domain.envelope import Envelope, Target
from fastapi_rooms.testing import BackendConformance, LocalCluster, Recorder

app = FastAPI()

class Mine:
    @property
    def status(self) -> BackendStatus:
        return BackendStatus(connected=True, degraded_since=None)

    async def start(self, node_id: str, receiver: Receiver, *, required: bool = False) -> None:
        receiver.missed(Gap(since=self.since(), until=self.since(), targets=frozenset()))

    def since(self) -> datetime:
        return datetime.now(UTC)

    async def stop(self) -> None: ...

    async def publish(self, envelope: Envelope) -> None:
        reveal_type(envelope.encode())  # is "bytes"

    def subscribe(self, targets: Collection[Target]) -> Awaitable[None]:
        return asyncio.sleep(0)

    def unsubscribe(self, targets: Collection[Target]) -> None: ...

def tell(gap: Gap) -> None:
    reveal_type(gap.rooms)  # is "frozenset[str]"
    reveal_type(gap.until - gap.since)  # is "datetime.timedelta"

async def tell_later(gap: Gap) -> int:
    return len(gap.users)

mine: Backend = Mine()
cluster = LocalCluster(3)
managers = [
    DistributedWebSocketManager("redis://localhost", settings=RoomsSettings(publish_failure="log"), on_gap=tell),
    DistributedWebSocketManager(Redis(), on_gap=tell_later),
    DistributedWebSocketManager(RedisCluster("localhost", 7000)),
    DistributedWebSocketManager(Mine()),
    *[DistributedWebSocketManager(backend) for backend in cluster],
]
RoomsExtension("redis://localhost", required=True, on_gap=tell)
RoomsExtension(cluster.backends[0])
hook: Callable[[], Awaitable[None]] = managers[0].start
one_or_many: ConnectionManager = managers[0]

@app.get("/status")
async def status(
    manager: Annotated[DistributedWebSocketManager, Depends(get_manager)], any_manager: ManagerDep
) -> dict[str, int]:
    reveal_type(manager.status)  # is ".*BackendStatus"
    reveal_type(manager.status.degraded_since)  # is "datetime.datetime | None"
    reveal_type(manager.node_id)  # is "str"
    if isinstance(any_manager, DistributedWebSocketManager):
        reveal_type(any_manager.status.connected)  # is "bool"
    try:
        reveal_type(await manager.broadcast("hi"))  # is "int"
    except BackendUnavailable as error:
        reveal_type(error.errno)  # is "int | None"
    return {"gaps": manager.status.gaps}

async def work() -> None:
    await managers[0].start(required=True)
    await managers[0].stop()
    async with Publisher("redis://localhost", settings=RoomsSettings(key_prefix="shop")) as publisher:
        reveal_type(publisher)  # is ".*Publisher"
        await publisher.broadcast_to_room("r", {"a": 1}, "json")
        await publisher.close_user("u", 4000, "why")
        await publisher.users.join_room("u", "r")
        reveal_type(publisher.status)  # is ".*BackendStatus"
    with SyncPublisher("redis://localhost") as sync_publisher:
        reveal_type(sync_publisher)  # is ".*SyncPublisher"
        sync_publisher.broadcast(b"all")
        sync_publisher.send_to_user("u", "you")
    cluster.cut(0)
    cluster.restore(0)
    recorder: Receiver = Recorder()
    reveal_type(await Recorder().received(3))  # is "list[.*Envelope]"

class TestMine(BackendConformance):
    async def make_backend(self) -> Backend:
        return Mine()

    async def cut(self, backend: Backend) -> None:
        reveal_type(backend)  # is ".*Backend"
"""

UNIONS = """\
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fastapi_rooms import Connection

class Say(BaseModel):
    type: Literal["say"]

class Move(BaseModel):
    type: Literal["move"]

async def session(connection: Connection) -> None:
    async for message in connection.messages(Say | Move):
        print(message.type)
    async for action in connection.messages(Annotated[Say | Move, Field(discriminator="type")]):
        print(action.type)
"""

WRONG = """\
from typing import Literal

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel

from fastapi_rooms import (
    Connection,
    ConnectionManager,
    DistributedWebSocketManager,
    Incoming,
    Publisher,
    RoomsExtension,
    RoomsSettings,
    SyncPublisher,
    ws_route,
)
from fastapi_rooms.testing import LocalCluster

class Say(BaseModel):
    type: Literal["say"]
    text: str

class Receiving:
    def publish(self, envelope: object) -> None: ...

rooms = RoomsExtension()

@rooms.ws_route("/ws")
async def handler(message: Incoming[Say], connection: Connection, manager: ConnectionManager) -> None:
    message.txt  # error: attr-defined
    await manager.broadcast_to_room(7, message)  # error: arg-type
    await manager.close(connection, "4001")  # error: arg-type
    await manager.broadcast("hi", exclude=7)  # error: arg-type
    await manager.join_room(connection)  # error: call-arg
    await connection.close(reason=7)  # error: arg-type
    connection.rooms.add("mine")  # error: attr-defined
    await manager.send_personal("ann", "hi")  # error: arg-type
    await manager.broadcast("hi", exclude="ann")  # error: arg-type
    await manager.broadcast("hi", exclude=["ann"])  # error: list-item
    await manager.broadcast("hi", exclude_user=connection)  # error: arg-type
    await manager.users.join_room(connection, "r")  # error: arg-type
    connection.rooms = set()  # error: misc
    connection.metadata = 7  # error: .*
    async for text in connection.messages(str):
        text.text  # error: attr-defined
    manager.get_room_members("r").pop().send_json({})  # error: attr-defined

@ws_route("/ws", "/ws")  # error: arg-type
async def no_router(message: Incoming[str]) -> None: ...

@rooms.ws_route(7)  # error: arg-type
async def no_path(message: Incoming[str]) -> None: ...

@rooms.ws_route("/ws", room=7)  # error: arg-type
async def no_room(message: Incoming[str]) -> None: ...

@rooms.ws_route("/ws", user_id="alice")  # error: arg-type
async def no_user(message: Incoming[str]) -> None: ...

@rooms.ws_route("/ws", rooms="typo")  # error: call-arg
async def no_argument(message: Incoming[str]) -> None: ...

RoomsExtension(settings={"outbox_bytes": 1})  # error: arg-type
RoomsExtension(7)  # error: arg-type
RoomsExtension("redis://localhost", on_gap=lambda: None)  # error: .*
RoomsSettings(publish_failure="ignore")  # error: arg-type
DistributedWebSocketManager()  # error: call-arg
DistributedWebSocketManager(Receiving())  # error: arg-type
DistributedWebSocketManager("redis://localhost").status.connected = True  # error: misc
Publisher("redis://localhost").broadcast_to_room("hi")  # error: call-arg
SyncPublisher("redis://localhost").close_user(7)  # error: arg-type
SyncPublisher("redis://localhost").broadcast("hi", exclude="ann")  # error: arg-type
SyncPublisher("redis://localhost").send_personal("ann", "hi")  # error: arg-type
LocalCluster("redis://localhost")  # error: arg-type
FastAPI(lifespan=rooms.router)  # error: arg-type
handler("hi", None, None)  # error: arg-type
"""


@pytest.fixture(scope="module")
def mypy(request, tmp_path_factory):
    """Check a whole project once; return the messages of one of its files as {line: [message]}."""
    project = tmp_path_factory.mktemp("project")
    sources = {
        "example.py": AUTHENTICATED_USER + EXAMPLE,
        "project.py": PROJECT,
        "nodes.py": NODES,
        "unions.py": UNIONS,
        "wrong.py": WRONG,
    }
    for name, source in sources.items():
        (project / name).write_text(source)
    result = check_types(request.config, project, sources)
    found: dict[str, dict[int, list[str]]] = {name: {} for name in sources}
    for line in result.stdout.splitlines():
        if match := re.fullmatch(r"(\w+\.py):(\d+): (.*)", line):
            found[match[1]].setdefault(int(match[2]), []).append(match[3])
    return found.__getitem__


def errors(messages: dict[int, list[str]]) -> list[str]:
    return [f"{line}: {text}" for line, texts in messages.items() for text in texts if text.startswith("error")]


def test_the_first_example_passes_mypy_strict(mypy):
    assert mypy("example.py") == {}


@pytest.mark.parametrize(
    ("name", "source", "count"), [("project.py", PROJECT, 20), ("nodes.py", NODES, 13)], ids=["one node", "many nodes"]
)
def test_a_project_passes_and_every_type_is_what_it_says(mypy, name, source, count):
    assert errors(mypy(name)) == []
    revealed = mypy(name)
    lines = [line for line in enumerate(source.splitlines(), 1) if "reveal_type(" in line[1]]
    assert len(lines) >= count
    for number, line in lines:
        expected = re.escape(re.search(r'# is "(.*)"$', line)[1]).replace(r"\.\*", ".*")
        (note,) = revealed[number]
        assert re.fullmatch(f'note: Revealed type is "{expected}"', note), f"{line}\n{note}"


def test_messages_takes_unions_and_annotated_types(mypy):
    assert errors(mypy("unions.py")) == []


WRONG_LINES = [line for line in enumerate(WRONG.splitlines(), 1) if "# error: " in line[1]]


@pytest.mark.parametrize(("number", "line"), WRONG_LINES, ids=[line.split("  #")[0].strip() for _, line in WRONG_LINES])
def test_a_mistake_is_an_error(mypy, number, line):
    expected = line.rsplit("# error: ", 1)[1]
    found = [text for text in mypy("wrong.py").get(number, []) if text.startswith("error")]
    assert any(re.search(rf"\[{expected}\]$", text) for text in found), found


def test_nothing_else_is_an_error(mypy):
    marked = {number for number, _ in WRONG_LINES}
    assert [error for error in errors(mypy("wrong.py")) if int(error.split(":")[0]) not in marked] == []
