#!/usr/bin/env bash
# uvicorn 0.54.0 (websockets 17.4, Starlette not involved): who is closed for a missing pong is told 1011, the app 1005.
#
# Guess before it was run: the app's `websocket.disconnect` has the code of the close frame that the server has just
# sent, 1011 with "keepalive ping timeout", as it has that of every other close that the server makes (1009, 1007).
#
# Seen: the client reads a close frame with 1011 and that reason. The app gets {"type": "websocket.disconnect",
# "code": 1005} without a reason, exactly as for a client whose connection broke.
#
# Why users care: dashboards that count 1011 as "the server made a mistake" see none, and dead clients look like clients
# that hung up without a code. fastapi-rooms looks at the protocol object for what it has sent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install uvicorn==0.54.0 websockets==17.4
cat > "$folder/look.py" <<'PYTHON'
import asyncio
import socket
import struct

import uvicorn

events = []


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] != "websocket.disconnect":
        pass
    events.append(event)


def client(port):
    """A client that reads, and answers no ping."""
    with socket.create_connection(("127.0.0.1", port), 10) as one:
        one.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        data = b""
        while chunk := one.recv(4096):
            data += chunk
    frames = data.split(b"\r\n\r\n", 1)[1]
    while frames[0] != 0x88:
        frames = frames[2 + frames[1] :]
    return struct.unpack("!H", frames[2:4])[0], frames[4 : 2 + frames[1]].decode()


async def main():
    config = uvicorn.Config(
        app, port=0, ws="websockets-sansio", ws_ping_interval=0.1, ws_ping_timeout=0.1, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    told = await asyncio.to_thread(client, server.servers[0].sockets[0].getsockname()[1])
    while not events:
        await asyncio.sleep(0.01)
    server.should_exit = True
    await serving
    print("the client was told", told, "and the app", events[0])
    assert told == (1011, "keepalive ping timeout"), told
    assert events == [{"type": "websocket.disconnect", "code": 1005}], events


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
