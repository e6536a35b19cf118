#!/usr/bin/env bash
# uvicorn 0.54.0 (websockets 17.4) with `--uds`: a proxy is believed with `--forwarded-allow-ips '*'` and nothing else.
#
# Guess before it was run: who can open the socket is the proxy, on this machine, so that it is believed by default, as
# one that connects from 127.0.0.1. If not, the path of the socket has to be named, since `--help` speaks of such paths.
#
# Seen: over the socket `client` is None. With the default, with the path of the socket, with `unix`, `unix:` and the
# path, `localhost`, the networks of all addresses, or `*,127.0.0.1`, it stays None and the scheme `ws`: who has no
# address is on no list, and `*` is the wildcard only where it stands alone. With `*` the headers are believed. Neither
# is worth a WARNING in the log.
#
# Why users care: behind a proxy on a unix socket, limits per address count nothing until `*` is set, and pages that came
# by TLS look foreign. The `doctor` of fastapi-rooms says so, and a limit per address that counts nothing is a WARNING.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install uvicorn==0.54.0 websockets==17.4
cat > "$folder/app.py" <<'PYTHON'
import json


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps([scope["client"], scope["scheme"]])})
    await send({"type": "websocket.close"})
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

SET_BY_THE_PROXY = "192.0.2.1"
folder = Path(__file__).parent
path = folder / "socket"


def connect(family, address):
    end = time.monotonic() + 15
    while True:
        one = socket.socket(family)
        one.settimeout(10)
        try:
            one.connect(address)
        except OSError:
            one.close()
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.05)
        else:
            return one


def look(family, address, *options):
    """Start uvicorn and return the client and the scheme that the app sees behind a proxy, and the log."""
    server = subprocess.Popen(
        [Path(sys.executable).with_name("uvicorn"), "app:app", "--ws", "websockets-sansio", "--log-level", "warning"]
        + [*options],
        cwd=folder,
        env={},
        stderr=subprocess.PIPE,
    )
    try:
        with connect(family, address) as one:
            one.sendall(
                "GET / HTTP/1.1\r\nHost: rooms.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                f"X-Forwarded-For: {SET_BY_THE_PROXY}\r\n"
                "X-Forwarded-Proto: https\r\n\r\n".encode()
            )
            data = b""
            while b"\x88" not in data:
                chunk = one.recv(4096)
                assert chunk, data
                data += chunk
    finally:
        server.terminate()
        try:
            _, log = server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    frame = data.split(b"\r\n\r\n", 1)[1]
    client, scheme = json.loads(frame[2 : 2 + frame[1]])
    return client and client[0], scheme, log.decode()


lists = [str(path), "unix", f"unix:{path}", "localhost", "0.0.0.0/0,::/0", "*,127.0.0.1", "*"]
seen = {None: look(socket.AF_UNIX, str(path), "--uds", str(path))}
for allowed in lists:
    seen[allowed] = look(socket.AF_UNIX, str(path), "--uds", str(path), "--forwarded-allow-ips", allowed)
for allowed, (client, scheme, log) in seen.items():
    print((allowed or "the default").replace(str(path), "PATH"), client, scheme, log or "and nothing in the log")
believed = seen.pop("*")
assert set(seen.values()) == {(None, "ws", "")}, seen
assert believed == (SET_BY_THE_PROXY, "wss", ""), believed
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
