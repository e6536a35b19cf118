"""Workers that are forked after the app was imported, as by `gunicorn --preload`: each is a node of its own."""

import asyncio
import os
import subprocess
import sys
from uuid import uuid4

from support import DEADLINE, until
from websockets.asyncio.client import connect

PRELOADING = """
import os
import signal
import sys

import uvicorn
from fastapi import FastAPI

from fastapi_rooms import Incoming, ManagerDep, RoomsExtension, RoomsSettings

rooms = RoomsExtension(sys.argv[1], settings=RoomsSettings(key_prefix=sys.argv[2]), required=True)

@rooms.ws_route("/ws", room="hall")
async def talk(message: Incoming[str], manager: ManagerDep) -> None:
    await manager.broadcast_to_room("hall", message)

app = FastAPI()
app.include_router(rooms.router)

config = uvicorn.Config(app, port=0, log_level="info")
config.load()  # the app is there before the workers
for _ in range(2):
    if os.fork() == 0:
        uvicorn.Server(config).run()
        os._exit(0)
signal.pause()
"""


def ports(log):
    return [int(line.rpartition(":")[2].split()[0]) for line in log.read_text().splitlines() if "running on" in line]


async def test_workers_that_are_forked_after_the_import_hear_each_other(shared_broker, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as output:
        parent = subprocess.Popen(
            [sys.executable, "-c", PRELOADING, shared_broker.url, uuid4().hex],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        one, two = await until(lambda: len(ports(log)) == 2 and ports(log), log.read_text(), seconds=30)
        async with connect(f"ws://127.0.0.1:{one}/ws") as ann, connect(f"ws://127.0.0.1:{two}/ws") as bob:
            await ann.send("hello")
            for client in (ann, bob):
                assert await asyncio.wait_for(client.recv(), DEADLINE) == "hello"
    finally:
        os.killpg(parent.pid, 9)
        parent.wait()
