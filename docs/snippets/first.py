from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from fastapi_rooms import Incoming, ManagerDep, RoomsExtension

rooms = RoomsExtension()


class Say(BaseModel):
    name: str
    text: str


@rooms.ws_route("/ws/{room_id}", room="{room_id}")
async def chat(room_id: str, message: Incoming[Say], manager: ManagerDep) -> None:
    await manager.broadcast_to_room(room_id, message)


app = FastAPI()
app.include_router(rooms.router)


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return """<!doctype html>
<meta charset="utf-8"><title>Lobby</title>
<form>
  <input value="Ann" size="8"> <input autofocus autocomplete="off"> <button>Say</button>
</form>
<ul></ul>
<script>
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws/lobby");
  const show = (line) => {
    const item = document.createElement("li");
    item.textContent = line;
    document.querySelector("ul").append(item);
  };
  socket.onopen = () => show("connected");
  socket.onclose = (event) => show(`closed with ${event.code}`);
  socket.onmessage = (event) => {
    const { name, text } = JSON.parse(event.data);
    show(`${name}: ${text}`);
  };
  document.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const [name, text] = document.querySelectorAll("input");
    socket.send(JSON.stringify({ name: name.value, text: text.value }));
    text.value = "";
  };
</script>"""
