#!/usr/bin/env bash
# websockets 17.4 on asyncio, Linux: `write_limit` does not bound how many old messages a client gets that had paused.
#
# Guess before it was run: with write_limit=4096 and messages of 200 bytes `await send()` waits after some 20 messages to
# a client that reads nothing, perhaps a few hundred with what the kernel has of its own.
#
# Seen: thousands of them are taken before `send()` waits. The limit is that of the transport's buffer in the process,
# which only begins to fill when the kernel takes no more, and that is megabytes on a loopback. Such a client gets all of
# them, in order, before the newest. With the socket option TCP_NOTSENT_LOWAT at 16 KiB beside it, it is a fraction:
# what is left lies in the receive buffer of the client.
#
# Why users care: for values of which only the newest counts (prices, positions) a small limit in the server is no
# protection from stale ones. fastapi-rooms sets both under `overflow="drop_oldest"`, where the socket is in reach.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install websockets==17.4
cat > "$folder/look.py" <<'PYTHON'
import asyncio
import socket

from websockets.asyncio.server import serve

LIMIT, SIZE = 4096, 200


async def taken(*, lowat):
    """Return how many messages `send` takes for a client that reads nothing."""
    count = 0
    stuck = asyncio.Event()

    async def handler(websocket):
        nonlocal count
        if lowat:
            raw = websocket.transport.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16 * 1024)
        while True:
            try:
                async with asyncio.timeout(1):
                    await websocket.send("x" * SIZE)
            except TimeoutError:
                stuck.set()
                return
            count += 1

    async with serve(handler, "127.0.0.1", 0, write_limit=LIMIT, compression=None, close_timeout=0.1) as server:
        port = server.sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(
                f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            await asyncio.wait_for(stuck.wait(), 60)
    return count


async def main():
    plain, bounded = await taken(lowat=False), await taken(lowat=True)
    print(f"{LIMIT // SIZE} fit into the limit; {plain} were taken, and {bounded} with TCP_NOTSENT_LOWAT")
    assert plain > 100 * LIMIT // SIZE, plain
    assert bounded < plain / 2, (plain, bounded)


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
