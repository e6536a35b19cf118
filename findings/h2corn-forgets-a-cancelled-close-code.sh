#!/usr/bin/env bash
# h2corn 2.0.0: who does not read, and whose `websocket.close` is cancelled before the app returns, is told 1000.
#
# Guess before it was run: the app has said 1013, so that is what a client finds that wakes later. Or the close has been
# taken back with the cancellation, and the connection just ends, which clients call 1006.
#
# Seen: `send` of the close waits behind the messages that the client has not read. If it is left to wait, the client
# finds all of them and then 1013 with its reason. If it is cancelled, as by asyncio.wait_for or task.cancel, and the
# app returns, the client finds all of them and then 1000 without a reason. If the app sends the same close once more
# before it returns, it is 1013 again.
#
# Why users care: a time-out around `close` is what one writes for slow clients, and 1000 says that all is done. A
# client that looks at the code comes back after 1013 and not after 1000, so those that were too slow stay away.
# fastapi-rooms leaves a close frame that is being written with the server.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install h2corn==2.0.0
cat > "$folder/app.py" <<'PYTHON'
import asyncio
from pathlib import Path

CLOSE = {"type": "websocket.close", "code": 1013, "reason": "too slow"}


def note(what):
    Path(__file__).with_name("seen").write_text(what)


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        try:
            await asyncio.wait_for(send({"type": "websocket.send", "text": "x" * 65536}), 1)
        except TimeoutError:
            break
    if scope["path"] == "/waits":
        note("closing")
        await send(CLOSE)
        return
    try:
        await asyncio.wait_for(send(CLOSE), 0.5)
    except TimeoutError:
        note("cancelled")
    if scope["path"] == "/says-it-again":
        await send(CLOSE)
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

folder = Path(__file__).parent
seen = folder / "seen"


def wait_for(what):
    end = time.monotonic() + 15
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def client(port, path, wakes_at):
    """A client that reads nothing until the app has come so far, and then everything."""
    seen.write_text("")
    with socket.socket() as one:
        one.settimeout(15)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        one.connect(("127.0.0.1", port))
        one.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        wait_for(lambda: seen.read_text() == wakes_at)
        time.sleep(0.5)
        data = b""
        while chunk := one.recv(65536):
            data += chunk
    frame = data.rpartition(b"\x88")[2]  # No other frame has this byte.
    assert len(frame) == 1 + frame[0], f"{path}: the last frame is no close frame"
    return struct.unpack("!H", frame[1:3])[0], frame[3:].decode()


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
server = subprocess.Popen(
    [Path(sys.executable).with_name("h2corn"), "app:app", "--bind", f"127.0.0.1:{port}", "--no-access-log"],
    cwd=folder,
    env={},
    stderr=subprocess.DEVNULL,
)
try:
    wait_for(lambda: answers(port))
    told = {
        path: client(port, path, wakes_at)
        for path, wakes_at in (("/waits", "closing"), ("/cancels", "cancelled"), ("/says-it-again", "cancelled"))
    }
finally:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
print(told)
assert told == {"/waits": (1013, "too slow"), "/cancels": (1000, ""), "/says-it-again": (1013, "too slow")}
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
