#!/usr/bin/env bash
# hypercorn 0.18.0 on Python 3.12 and newer: at SIGTERM it closes no WebSocket, and does not end while one is open.
#
# Guess before it was run: as on Python 3.11, `--graceful-timeout` bounds how long clients are waited for; when it is
# over the app is cancelled, and the sockets are ended.
#
# Seen (3.12.1 and 3.13.0): with `--graceful-timeout 1` a client is answered as before three seconds after the signal, and
# no frame and no end comes. When it closes by itself, hypercorn ends at once, with 0. On 3.11.7 it is gone after 1.1 s.
# From 3.12.1 on asyncio's `Server.wait_closed` waits until the connections of the server have gone, as it promises.
#
# Why users care: a deploy stands still until its time is over and the process is killed, and then clients see an
# end without a close frame. `await manager.drain()` before the signal closes them with 1012, so that it ends.
#
# Looks for a Python of 3.12 or newer on the path and in pyenv (or PYTHON=...). With 3.11 it sees what was guessed.
set -euo pipefail
in_pyenv() { echo "$(pyenv prefix "$1" 2> /dev/null || true)/bin/python"; }
for python in "${PYTHON:-}" python3.13 python3.12 "$(in_pyenv 3.13)" "$(in_pyenv 3.12)" python3; do
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null && break
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install hypercorn==0.18.0 websockets==17.4
cat > "$folder/app.py" <<'PYTHON'
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import socket
import subprocess
import sys
import time
from pathlib import Path

from websockets.sync.client import connect

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
server = subprocess.Popen(
    [Path(sys.executable).with_name("hypercorn"), "app:app", "-b", f"127.0.0.1:{port}", "--graceful-timeout", "1"],
    cwd=Path(__file__).parent,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)


def opened():
    end = time.monotonic() + 15
    while True:
        try:
            return connect(f"ws://127.0.0.1:{port}/", close_timeout=5)
        except OSError:
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.05)


try:
    with opened() as client:
        client.send("before")
        assert client.recv(timeout=5) == "before"
        server.terminate()
        time.sleep(3)
        if sys.version_info < (3, 12):
            assert server.poll() is not None
            print(sys.version.split()[0], "ended within 3 s of SIGTERM, with --graceful-timeout 1")
        else:
            client.send("after")
            assert client.recv(timeout=5) == "after", "it was closed"
            assert server.poll() is None
            print(sys.version.split()[0], "answered 3 s after SIGTERM, with --graceful-timeout 1")
    began = time.monotonic()
    code = server.wait(timeout=10)
    print(f"ended with {code}, {time.monotonic() - began:.1f} s after the client had gone")
    assert code == 0, code
finally:
    if server.poll() is None:
        server.kill()
    server.wait()
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
