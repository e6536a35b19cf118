"""A TCP proxy that can cut, stall and delay. It runs in a thread, so that a blocked test loop does not stop it."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

from brokers.ports import free_port

logger = logging.getLogger(__name__)


class Proxy:
    """Passes connections on to a port, until it is told otherwise. All methods may be called from any thread.

    Attributes:
        accepted: How many connections were made to it.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.accepted = 0
        self._target_port = target_port
        self._delay = 0.0
        self._listener: socket.socket | None = None  # None: it refuses
        self._pumps: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing: asyncio.Event  # set while bytes flow; made on the loop
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Proxy"]:
        self._thread.start()
        try:
            self._do(self._start())
            yield self
        finally:
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def cut(self) -> None:
        """End every connection and refuse new ones."""
        self._do(self._refuse())

    def drop(self) -> None:
        """End every connection; new ones are welcome."""
        self._do(self._drop())

    def stall(self) -> None:
        """Pass nothing on any more, on old connections and on new ones, which are accepted: a half-open network."""
        self._loop.call_soon_threadsafe(self._flowing.clear)
        self._do(asyncio.sleep(0))

    def delay(self, seconds: float) -> None:
        """Pass everything on that much later."""
        self._delay = seconds

    def restore(self) -> None:
        """Pass everything on again, also what was held back while stalled."""
        self._delay = 0.0
        self._do(self._start())

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> None:
        if not hasattr(self, "_flowing"):
            self._flowing = asyncio.Event()
        self._flowing.set()
        if self._listener is None:
            # Neither `start_server` nor `sock_accept`: what these have accepted when they are ended, and not yet handed
            # over, is left open.
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listener.settimeout(0)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await self._drop()

    async def _drop(self) -> None:
        while pumps := [pump for pump in self._pumps if not pump.done()]:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _end(self) -> None:
        await self._refuse()
        for _ in range(3):
            await asyncio.sleep(0)  # what was aborted is closed in the next tick

    def _accept(self, listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        accepted.settimeout(0)
        self.accepted += 1
        pump = self._loop.create_task(self._pass_on(accepted))
        pump.add_done_callback(lambda _: accepted.close())  # also if it is cancelled before it begins
        self._pumps.add(pump)

    async def _pass_on(self, accepted: socket.socket) -> None:
        task = asyncio.current_task()
        here: asyncio.StreamWriter | None = None
        there: asyncio.StreamWriter | None = None
        try:
            reader, here = await asyncio.open_connection(sock=accepted)
            await self._flowing.wait()
            back, there = await asyncio.open_connection("127.0.0.1", self._target_port)
            pumps = [asyncio.create_task(self._pump(reader, there)), asyncio.create_task(self._pump(back, here))]
            self._pumps.update(pumps)
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
        except (OSError, asyncio.CancelledError) as end:
            logger.debug("the target is away, or the connection was cut: %r", end)
        finally:
            for writer in (here, there):
                if writer is not None:
                    writer.transport.abort()
            self._pumps = {pump for pump in self._pumps if pump is not task and not pump.done()}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(self._delay)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
