#!/usr/bin/env bash
# gunicorn 27.0.1 with `-k asgi`: at SIGTERM no WebSocket is closed; who stays for --graceful-timeout sees 1006 then.
#
# Guess before it was run: clients are told 1001 (going away) soon after the signal, or at the latest when the graceful
# timeout is over; the app gets `websocket.disconnect` or is cancelled, and then `lifespan.shutdown`.
#
# Seen: with --graceful-timeout 3 nothing happens for 3 s: who is connected is answered by the app as before. Then the
# connections end without a close frame, which is 1006. The app gets no disconnect, is not cancelled, and gets no
# `lifespan.shutdown` either, although gunicorn exits with 0: the master counts from the signal and kills the worker,
# which counts from when it has noticed the signal. With nobody connected `lifespan.shutdown` comes.
#
# Why users care: WebSockets do not end by themselves, so each deploy takes the whole timeout (30 s unless it is set),
# and then neither `finally` nor what follows `yield` in the lifespan is run: nobody is said to have left, and nothing
# is told to other nodes. fastapi-rooms has `manager.drain()`, which is called before the signal there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install gunicorn==27.0.1 websockets==17.4
cat > "$folder/app.py" <<'PYTHON'
from pathlib import Path


def note(what):
    with Path(__file__).with_name("seen").open("a") as file:
        print(what, file=file)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        note((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})
    if scope["type"] != "websocket":
        return
    try:
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": event["text"]})
        note("websocket.disconnect")
    finally:
        note("the end of the endpoint")
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TIMEOUT = 3
folder = Path(__file__).parent
seen = folder / "seen"


def wait_for(what):
    end = time.monotonic() + 15
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def answers(port):
    try:
        with connect(f"ws://127.0.0.1:{port}/", proxy=None, open_timeout=10) as one:
            return echoes(one)
    except OSError:
        return False


def echoes(one):
    one.send("still there?")
    return one.recv(5) == "still there?"


def stop(*, clients):
    """Have gunicorn stop while so many clients are connected.

    Returns how often they were answered after that, what they saw, after how long, the exit code, and what the app saw.
    """
    seen.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("gunicorn"), "app:app", "-k", "asgi", "-b", f"127.0.0.1:{port}"]
    options = ["--graceful-timeout", str(TIMEOUT), "--no-control-socket", "--log-level", "critical"]
    server = subprocess.Popen(command + options, cwd=folder, env={})
    try:
        wait_for(lambda: answers(port))
        wait_for(lambda: "the end of the endpoint" in seen.read_text())
        seen.write_text("")
        with ExitStack() as stack:
            connected = [
                stack.enter_context(connect(f"ws://127.0.0.1:{port}/", proxy=None, open_timeout=10, close_timeout=1))
                for _ in range(clients)
            ]
            assert all(echoes(one) for one in connected)
            server.terminate()
            signalled = time.monotonic()
            answered, codes, ends = 0, [], []
            while connected and time.monotonic() < signalled + TIMEOUT - 1:
                answered += sum(echoes(one) for one in connected)
                time.sleep(0.25)
            for one in connected:
                try:
                    raise AssertionError(f"the client got {one.recv(15)}")
                except ConnectionClosed as error:
                    codes.append((int(one.close_code), error.rcvd))
                ends.append(time.monotonic() - signalled)
        code = server.wait(15)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
    return answered, codes, ends, code, seen.read_text().splitlines()


alone, beside = stop(clients=0), stop(clients=2)
print("with nobody connected the app saw", alone[4])
answered, codes, ends, code, noted = beside
print(f"two clients were answered {answered} times after the signal, and saw", [code for code, _ in codes], end=" ")
print("after", [f"{seconds:.1f} s" for seconds in ends], "while the app saw", noted, "and gunicorn exited with", code)
assert alone == (0, [], [], 0, ["lifespan.shutdown"]), alone
assert answered >= 8, answered
assert codes == [(1006, None)] * 2, codes
assert all(TIMEOUT - 0.5 < seconds < TIMEOUT + 3 for seconds in ends), ends
assert (code, noted) == (0, []), (code, noted)
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
