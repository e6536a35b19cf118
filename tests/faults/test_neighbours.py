"""One node dies without a word, and the others do not notice."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager

from support import DEADLINE, until
from websockets.asyncio.client import connect

from faults.nodes import ROOM, UNDISTURBED, check_hearing, member, running, speaking

APP = """
import os
from fastapi import FastAPI
from fastapi_rooms import Incoming, ManagerDep, RoomsExtension

rooms = RoomsExtension(os.environ["REDIS_URL"])

@rooms.ws_route("/rooms/{room}", room="{room}")
async def talk(message: Incoming[str], room: str, manager: ManagerDep) -> None:
    await manager.broadcast_to_room(room, message)

app = FastAPI(lifespan=rooms.lifespan)
app.include_router(rooms.router)
"""


@asynccontextmanager
async def process(folder, url):
    """Run a node in a process of its own; yield it and its port."""
    (folder / "main.py").write_text(APP)
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"]
    environment = {**os.environ, "REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment) as node:
        try:
            line = ""
            while "running on" not in line:
                line = await asyncio.to_thread(node.stderr.readline)
                assert line, "the node ended at its start"
            yield node, int(line.split("127.0.0.1:")[1].split()[0])
        finally:
            node.kill()


async def test_a_node_that_is_killed_disturbs_nobody(broker, tmp_path):
    with running(broker.url, broker.url) as nodes:
        one, two = nodes
        async with (
            process(tmp_path, broker.url) as (victim, port),
            member(one) as local,
            member(two) as remote,
            connect(f"ws://127.0.0.1:{port}/rooms/{ROOM}") as client,
            connect(f"ws://127.0.0.1:{port}/rooms/cellar"),
        ):
            await client.send("last words")
            await remote.hears("last words")
            assert "rooms:room:cellar" in broker.channels()
            async with speaking(one, per_second=200) as speaker, speaking(two, per_second=200) as other:
                await remote.hears_again(speaker, time.monotonic())
                victim.kill()
                await asyncio.to_thread(victim.wait)
                killed = time.monotonic()
                await asyncio.wait_for(client.wait_closed(), DEADLINE)
                await until(lambda: len(broker.clients()) == 4, "Redis knows")
                await remote.hears_again(speaker, killed + 0.5)
                await local.hears_again(other, killed + 0.5)
            assert broker.channels() == {
                "rooms:all",
                f"rooms:room:{ROOM}",
                *(f"rooms:node:{node.manager.node_id}:0" for node in nodes),
            }
            await one.say("the end")
            await remote.hears("the end")
            await two.say("the very end")
            await local.hears("the very end")
        check_hearing(speaker, remote, [])
        check_hearing(other, local, [])
        assert speaker.failed == other.failed == []
        assert [node.status for node in nodes] == [UNDISTURBED] * 2
        assert one.gaps == two.gaps == []
