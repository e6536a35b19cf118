"""The manager that most FastAPI apps begin with: a list of sockets, and a loop that sends to one after the other."""

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from benchmarks.servers.options import Options


class Fanout:
    """A list of sockets per room. What the loop does is all that the servers in `steps` change."""

    def __init__(self) -> None:
        self.rooms: dict[str, list[WebSocket]] = defaultdict(list)

    def add(self, room: str, websocket: WebSocket) -> None:
        """Take a socket in."""
        self.rooms[room].append(websocket)

    def remove(self, room: str, websocket: WebSocket) -> None:
        """Forget a socket."""
        self.rooms[room].remove(websocket)

    async def broadcast(self, room: str, text: str) -> None:
        """Send to one after the other."""
        for websocket in self.rooms[room]:
            await websocket.send_text(text)


def app_of(fanout: Fanout) -> FastAPI:
    """Return an app around any such manager."""
    app = FastAPI()

    @app.websocket("/ws/{room}")
    async def endpoint(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        fanout.add(room, websocket)
        try:
            while True:
                await fanout.broadcast(room, await websocket.receive_text())
        except WebSocketDisconnect:
            fanout.remove(room, websocket)

    return app


def make_app(_: Options) -> FastAPI:
    """Return the app with the plain loop."""
    return app_of(Fanout())
