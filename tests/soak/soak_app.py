"""A node of the soak test: `SOAK_REDIS=redis://… SOAK_LIFE=a1 SOAK_JOURNAL=a1.jsonl uvicorn …`.

What must outlive the process goes to the journal, a line each; everything else is asked for by HTTP.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from fastapi_rooms import (
    BackendUnavailable,
    Connection,
    ConnectionDep,
    Disconnected,
    Gap,
    Hooks,
    Incoming,
    ManagerDep,
    RoomsExtension,
    RoomsSettings,
    health_router,
)

LIFE = os.environ["SOAK_LIFE"]
JOURNAL = Path(os.environ["SOAK_JOURNAL"])
BUSY_SECONDS = 4.0
OURS = ("fastapi_rooms", "uvicorn", "websockets", "starlette", "fastapi", "soak_app", "asyncio", "_asyncio", "uvloop")

if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive the test, however that ends

calls = count()  # of broadcast_to_room by residents, in their order
hooked: Counter[str] = Counter()


def note(what: str, **details: Any) -> None:
    with JOURNAL.open("a") as journal:
        journal.write(json.dumps({"what": what, "at": time.time(), **details}) + "\n")


def note_gap(gap: Gap) -> None:
    hooked["gaps"] += 1
    note("gap", since=gap.since.timestamp(), until=gap.until.timestamp(), rooms=sorted(gap.rooms))


def count_end(end: Disconnected) -> None:
    hooked["disconnected"] += 1
    hooked[f"disconnected with {end.code}"] += 1


def count_join(connection: Connection, room: str) -> None:
    hooked["joined"] += 1


def count_leave(connection: Connection, room: str) -> None:
    hooked["left"] += 1


async def count_connection(connection: Connection) -> None:
    hooked["connected"] += 1


rooms = RoomsExtension(
    os.environ["SOAK_REDIS"],
    settings=RoomsSettings(
        key_prefix=os.environ["SOAK_PREFIX"],
        outbox_bytes=256 * 1024,
        drain_timeout=3.0,
        send_timeout=2.0,
        inbox_timeout=2.0,
        disconnect_grace=1.0,
        max_rooms_per_connection=64,
    ),
    hooks=Hooks(connected=count_connection, disconnected=count_end, joined=count_join, left=count_leave, gap=note_gap),
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
    async with rooms.lifespan(app) as state:
        yield state
        since = rooms.manager.status.degraded_since
        note("end", degraded_since=None if since is None else since.timestamp())


class Say(BaseModel):
    do: Literal["say"]
    number: int
    room: str
    talker: str
    pad: str = ""


class Step(BaseModel):
    do: Literal["join", "leave"]
    number: int
    room: str


class Noise(BaseModel):
    do: Literal["noise"]
    room: str
    pad: str


Command = Annotated[Say | Step | Noise, Field(discriminator="do")]


async def say(command: Say, manager: ManagerDep) -> dict[str, Any]:
    told = {"life": LIFE, "call": next(calls), "called": time.time()}
    outcome = "ok"
    message = {"said": {**told, "room": command.room, "talker": command.talker, "sequence": command.number}}
    try:
        await manager.broadcast_to_room(command.room, {**message, "pad": command.pad})
    except BackendUnavailable:
        outcome = "unavailable"
    return {"answers": command.number, **told, "outcome": outcome, "returned": time.time()}


def first_room(room: str | None = None) -> str | None:
    return room


def who(user: str | None = None) -> str | None:
    return user


@rooms.ws_route("/ws", room=first_room, user_id=who)
async def obey(command: Incoming[Command], connection: ConnectionDep, manager: ManagerDep) -> dict[str, Any] | None:
    match command:
        case Say():
            return await say(command, manager)
        case Step(do="join"):
            await manager.join_room(connection, command.room)
        case Step():
            await manager.leave_room(connection, command.room)
        case Noise():
            await manager.broadcast_to_room(command.room, command.pad)
            return None
    return {"answers": command.number, "life": LIFE}


@rooms.ws_route("/busy")
async def be_busy(message: Incoming[str]) -> None:
    await asyncio.sleep(BUSY_SECONDS)


@rooms.ws_route("/stream")
async def stream(message: Incoming[str]) -> AsyncIterator[bytes]:
    while True:
        yield bytes(16 * 1024)


app = FastAPI(lifespan=lifespan)
app.include_router(rooms.router)
app.include_router(health_router(rooms))


@app.post("/close/{user}")
async def close(user: str, manager: ManagerDep) -> bool:
    try:
        await manager.close_user(user, 4003, "go")
    except BackendUnavailable:
        return False
    return True


@app.get("/stats")
async def stats() -> dict[str, Any]:
    return asdict(rooms.manager.stats())


@app.get("/rest")
async def rest() -> dict[str, Any]:
    """Say what is held. Takes a while: for when nothing goes on."""
    gc.collect()
    objects = gc.get_objects()
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in objects)
    tracked = len(objects)
    del objects
    manager = rooms.manager
    return {
        "stats": asdict(manager.stats()),
        "hooked": hooked,
        "rooms": {room: len(manager.get_room_members(room)) for room in manager.active_rooms},
        "node_id": manager.node_id,
        "tasks": Counter(_what(task) for task in asyncio.all_tasks()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "objects": {kind: number for kind, number in kinds.items() if kind.startswith(OURS)},
        "tracked": tracked,
        "memory": _memory(),
    }


def _what(task: asyncio.Task[Any]) -> str:
    name = task.get_name()
    return task.get_coro().__qualname__ if name.startswith("Task-") else name


def _memory() -> int:
    """Return the resident bytes, without what was freed and is only kept for later."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
