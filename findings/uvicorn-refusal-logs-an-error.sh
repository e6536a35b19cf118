#!/usr/bin/env bash
# uvicorn 0.54.0 with FastAPI 0.165.0: each WebSocket that is refused with an HTTP status is an ERROR in the log.
#
# Guess before it was run: `raise HTTPException(401)` in a dependency of a WebSocket route is answered with 401, and
# that is one line at INFO, as for an HTTP route.
#
# Seen: the client gets 401 with its headers and body, as it should. The log says `connection rejected (401
# Unauthorized)` at INFO, and then at ERROR "ASGI callable returned without completing handshake.": the app has returned
# when the protocol's own task, which sends the answer, has not had its turn yet. Where the app waits for three turns of
# the loop after it has answered, there is no such line.
#
# Why users care: error trackers raise an event for each stranger without a token, and whoever knocks can fill the log.
# fastapi-rooms waits those turns, for its own refusals and for an HTTPException of the app.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install \
  uvicorn==0.54.0 websockets==17.4 fastapi==0.165.0 starlette==1.10.0
cat > "$folder/look.py" <<'PYTHON'
import asyncio
import logging
import socket

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

app = FastAPI()


class Refused(Exception):
    pass


async def three_turns():
    for _ in range(3):
        await asyncio.sleep(0)


@app.exception_handler(Refused)
async def answer_and_wait(websocket, error):
    return JSONResponse({"detail": "who are you?"}, 401, background=BackgroundTask(three_turns))


def refuse():
    raise HTTPException(401, "who are you?")


def refuse_and_wait():
    raise Refused


@app.websocket("/plain")
async def plain(websocket: WebSocket, _: None = Depends(refuse)):
    raise AssertionError("nobody gets here")


@app.websocket("/waits")
async def waits(websocket: WebSocket, _: None = Depends(refuse_and_wait)):
    raise AssertionError("nobody gets here")


def knock(port, path):
    with socket.create_connection(("127.0.0.1", port), 10) as one:
        one.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        data = b""
        while chunk := one.recv(4096):
            data += chunk
    return data.split(b"\r\n", 1)[0].decode(), data.rsplit(b"\r\n", 1)[-1].decode()


class Keeping(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


async def main():
    kept = Keeping()
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="websockets-sansio", log_config=None))
    logging.getLogger("uvicorn.error").addHandler(kept)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    seen = {}
    for path in ("/plain", "/waits"):
        kept.lines.clear()
        answer = await asyncio.to_thread(knock, server.servers[0].sockets[0].getsockname()[1], path)
        while server.server_state.tasks or server.server_state.connections:
            await asyncio.sleep(0.01)
        seen[path] = (*answer, list(kept.lines))
    server.should_exit = True
    await serving
    for path, (status, body, lines) in seen.items():
        print(path, status, body, lines)
        assert (status, body) == ("HTTP/1.1 401 Unauthorized", '{"detail":"who are you?"}')
    assert seen["/plain"][2] == ["ASGI callable returned without completing handshake."]
    assert seen["/waits"][2] == []


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
