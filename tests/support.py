"""What the integration tests stand on: a real uvicorn in a thread, real clients, and waiting for facts."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any

import httpx
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

DEADLINE = 10.0
"""How long a test waits for a fact before it fails."""

TICKS = 20
"""How many ticks `until` lets pass before it looks at the clock."""


class FairClock:
    """A clock that stands still while this machine keeps those waiting who have something to do.

    What promises to be done within some time cannot keep that where others have the processor. How long that was is
    measured: by a thread that sleeps a little, again and again, and sees how much later it is woken than it asked for.
    """

    PAUSE = 0.01
    ROUGHLY = 0.001
    """How late every thread is woken, on a machine that does nothing else."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._thread: threading.Thread | None = None

    def __call__(self) -> float:
        """Return the time in seconds. From the first call on it is measured what is lost."""
        if self._thread is None or not self._thread.is_alive():  # as after a fork
            self._thread = threading.Thread(target=self._measure, name="fair clock", daemon=True)
            self._thread.start()
        return time.monotonic() - self._lost

    def _measure(self) -> None:
        while True:
            due = time.monotonic() + self.PAUSE
            time.sleep(self.PAUSE)
            late = time.monotonic() - due
            if late > self.ROUGHLY:
                self._lost += late


fair_time = FairClock()


class LiveServer:
    """A uvicorn server in a thread of its own, on a free port."""

    def __init__(self, app: Any, loop: str = "asyncio", **options: Any) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, loop=loop, log_level="info", log_config=None, **options)
        self.uvicorn = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="uvicorn", daemon=True)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.uvicorn.serve()

        with asyncio.Runner(loop_factory=self.uvicorn.config.get_loop_factory()) as runner:
            runner.run(serve())

    def start(self) -> "LiveServer":
        self._thread.start()
        end = time.monotonic() + DEADLINE
        while not self.uvicorn.started:
            assert self._thread.is_alive(), "the server ended at its start"
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.005)
        return self

    def stop(self, seconds: float = DEADLINE) -> float:
        """Stop as SIGTERM would; return how long it took."""
        begin = time.monotonic()
        self.uvicorn.should_exit = True
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the server did not stop within {seconds} s"
        return time.monotonic() - begin

    @property
    def port(self) -> int:
        return self.uvicorn.servers[0].sockets[0].getsockname()[1]

    def url(self, path: str, scheme: str = "ws") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call a function on the server's loop, and await what it returns there."""

        async def run() -> Any:
            result = function(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), self.loop))

    def tasks(self) -> set[str]:
        """Names of the tasks on the server's loop."""
        done: concurrent.futures.Future[set[str]] = concurrent.futures.Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result({t.get_name() for t in asyncio.all_tasks(self.loop)}))
        return done.result(DEADLINE)

    @contextlib.asynccontextmanager
    async def client(self, path: str, **options: Any) -> AsyncIterator["Client"]:
        async with connect(self.url(path), **options) as websocket:
            yield Client(websocket)

    def http(self) -> httpx.AsyncClient:
        return http_client(self.url("", "http"))


def http_client(url: str, **options: Any) -> httpx.AsyncClient:
    """Make a client for plain HTTP: what certificates there are it need not read, which takes 50 ms."""
    return httpx.AsyncClient(base_url=url, verify=False, **options)


class Client:
    """A real client with deadlines."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket

    async def send(self, message: Any) -> None:
        await self.websocket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def receive(self) -> str | bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.websocket.recv()

    async def receive_json(self) -> Any:
        return json.loads(await self.receive())

    async def closed(self) -> tuple[int, str]:
        """Wait for the end, whatever comes before it; return code and reason."""
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    await self.websocket.recv()
        except ConnectionClosed as end:
            return (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "")

    def vanish(self) -> None:
        """Go without a close frame."""
        self.websocket.transport.abort()


class RawClient:
    """A client that does only what it is told: it neither reads nor answers by itself."""

    def __init__(self, server: LiveServer, path: str, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert b" 101 " in head.splitlines()[0], head

    def send_frame(self, opcode: int, payload: bytes, *, fin: bool = True) -> None:
        """Send a masked frame; the mask is zero, so the payload is as given."""
        size = len(payload)
        first = (0x80 if fin else 0) | opcode
        if size < 126:
            head = struct.pack("!BB", first, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", first, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", first, 0x80 | 127, size)
        self.socket.sendall(head + bytes(4) + payload)

    def read_to_end(self) -> bytes:
        """Read until the server ends the socket; a reset counts as the end."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := self.socket.recv(1 << 20):
                data += chunk
        return data

    def read_to_close(self) -> list[tuple[int, bytes]]:
        """Read frames up to the close frame, and answer it as a client should."""
        data = b""
        while True:
            chunk = self.socket.recv(1 << 20)
            assert chunk, "the server ended the socket without a close frame"
            data += chunk
            with contextlib.suppress(AssertionError, IndexError, struct.error):  # a frame is cut off: read on
                received = frames(data)
                if received[-1][0] == 0x88:
                    self.send_frame(8, received[-1][1])
                    return received

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def live(app: Any, loop: str = "asyncio", **options: Any) -> Iterator[LiveServer]:
    server = LiveServer(app, loop, **options).start()
    try:
        yield server
    finally:
        server.stop()


class HesitantAccept:
    """An ASGI middleware that keeps the app waiting in its accept after the client has seen the answer."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.answered = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_and_wait(message: Any) -> None:
            await send(message)
            if message["type"] == "websocket.accept":
                self.answered.set()
                await self.go_on.wait()

        await self.app(scope, receive, send_and_wait if scope["type"] == "websocket" else send)


async def until(fact: Callable[[], Any], what: str = "", seconds: float = DEADLINE, pause: float = 0.005) -> Any:
    """Wait until something is true and return it; fail with what was waited for. The fact may be `async`.

    Facts tell nobody, so it looks again and again: at first tick by tick, which is enough for most of what happens on
    this loop, then every `pause` seconds.
    """
    looks = 0
    try:
        async with asyncio.timeout(seconds) as deadline:
            while not (value := await _looked_at(fact)):
                looks += 1
                await asyncio.sleep(0 if looks < TICKS else pause)
    except TimeoutError:
        if not deadline.expired():
            raise  # the fact's own
        raise TimeoutError(f"not within {seconds} s: {what or _in_words(fact)}") from None
    return value


async def _looked_at(fact: Callable[[], Any]) -> Any:
    value = fact()
    return await value if inspect.isawaitable(value) else value


def _in_words(fact: Callable[[], Any]) -> str:
    """Return the line that waits for a fact, or its name."""
    if getattr(fact, "__name__", "") != "<lambda>":
        return repr(fact)
    try:
        return " ".join(inspect.getsource(fact).split())
    except OSError:  # it was not read from a file
        return repr(fact)


def counted(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers that are not 0."""
    return {name: number for name, number in numbers.items() if number}


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Parse unmasked server frames into (first byte, payload); fails on a frame that is cut off."""
    found = []
    position = 0
    while position < len(data):
        first, size = data[position], data[position + 1]
        position += 2
        assert not size & 0x80, "a server must not mask"
        if size == 126:
            (size,) = struct.unpack_from("!H", data, position)
            position += 2
        elif size == 127:
            (size,) = struct.unpack_from("!Q", data, position)
            position += 8
        assert position + size <= len(data), "a frame is cut off"
        found.append((first, data[position : position + size]))
        position += size
    return found


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)
