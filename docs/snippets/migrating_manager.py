from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from fastapi_rooms import ConnectionManager

manager = ConnectionManager()
app = FastAPI()


@app.websocket("/ws/{name}")
async def chat(websocket: WebSocket, name: str) -> None:
    await manager.connect(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            await manager.broadcast(f"{name}: {text}")
    except WebSocketDisconnect:
        manager.disconnect(websocket)
        await manager.broadcast(f"{name} left")
