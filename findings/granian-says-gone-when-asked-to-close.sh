#!/usr/bin/env bash
# granian 2.8.9: an app that sends `websocket.close` is told at once that the client has gone, while it is still there.
#
# Guess before it was run: `websocket.disconnect` comes when the client has answered the close frame or its connection
# has ended, and has the code of the close, 4001 here.
#
# Seen: whoever waits in `receive` gets {"type": "websocket.disconnect", "code": 1005} in the instant in which another
# task sends the close. The client that reads nothing at that time has not even got the close frame: `send` of it still
# waits. When the client reads, a second later, it finds 4001 with its reason behind the messages, and only then `send`
# returns. If `send` is cancelled because of the disconnect, the client finds the end of its connection without a close
# frame, 1006. Of a client that closes by itself with 4002 the app gets that code.
#
# Why users care: a task that reads until the disconnect, beside one that writes, is how many endpoints are built. Here
# it ends before a client that is behind has been told, and where its end cancels the writer (a cancel scope around
# both, say), the close code is lost. fastapi-rooms does not take that disconnect for the end of whom it is closing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install granian==2.8.9
cat > "$folder/app.py" <<'PYTHON'
import asyncio
import json
import time
from pathlib import Path


def note(what, event=None):
    with Path(__file__).with_name("seen").open("a") as file:
        print(json.dumps([time.monotonic(), what, event]), file=file)


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/listens":
        note("told", await receive())
        return

    async def listen():
        note("told", await receive())

    listening = asyncio.create_task(listen())
    while True:
        try:
            await asyncio.wait_for(send({"type": "websocket.send", "text": "x" * 65536}), 1)
        except TimeoutError:
            break
    note("closing")
    closing = asyncio.ensure_future(send({"type": "websocket.close", "code": 4001, "reason": "bye"}))
    if scope["path"] == "/cancels":
        await listening
        closing.cancel()
    await asyncio.wait([closing])
    note("cancelled" if closing.cancelled() else "taken")
    await listening
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

folder = Path(__file__).parent
seen = folder / "seen"


def noted():
    return {what: (when, event) for when, what, event in map(json.loads, seen.read_text().splitlines())}


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


def connect(port, path):
    seen.write_text("")
    one = socket.socket()
    one.settimeout(15)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    one.connect(("127.0.0.1", port))
    one.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return one


def closes(port):
    """A client that closes with 4002. Returns what the app was told."""
    with connect(port, "/listens") as one:
        while not one.recv(4096).endswith(b"\r\n\r\n"):
            pass
        one.sendall(b"\x88\x82\0\0\0\0" + (4002).to_bytes(2))
        wait_for(lambda: "told" in noted())
    return noted()["told"][1]


def reads_late(port, path):
    """A client that reads a second after the app was told that it has gone.

    Returns whether it ends with the close frame, what had been noted when it began to read, and what was in the end.
    """
    with connect(port, path) as one:
        wait_for(lambda: "told" in noted())
        time.sleep(1)
        before = noted()
        data = b""
        with suppress(ConnectionResetError):
            while chunk := one.recv(65536):
                data += chunk
        wait_for(lambda: noted().keys() & {"taken", "cancelled"})
    return data.endswith(b"\x88\x05" + (4001).to_bytes(2) + b"bye"), before, noted()


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
server = subprocess.Popen(
    [Path(sys.executable).with_name("granian"), "app:app", "--interface", "asgi", "--port", str(port), "--no-log"],
    cwd=folder,
    env={},
)
try:
    wait_for(lambda: answers(port))
    by_itself = closes(port)
    told, before, after = reads_late(port, "/closes")
    told_although, _, cancelled = reads_late(port, "/cancels")
finally:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
(closing, _), (gone, event), (taken, _) = after["closing"], after["told"], after["taken"]
print("the app was told of who closes with 4002:", by_itself)
print(f"and of whom it closes with 4001: {event}, {gone - closing:.3f} s after it began to send that")
print(f"while the client took that after {taken - closing:.3f} s: {told}; when it was cancelled: {told_although}")
assert by_itself == {"type": "websocket.disconnect", "code": 4002}, by_itself
assert event == {"type": "websocket.disconnect", "code": 1005}, event
assert "taken" not in before, before
assert gone - closing < 0.5 < 1 < taken - closing, after
assert told
assert not told_although and "cancelled" in cancelled, cancelled
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
