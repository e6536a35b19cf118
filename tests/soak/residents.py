"""Clients that behave well: they stay, come back when their node restarts, and note all that they hear and are told."""

import asyncio
import json
import time
from collections import Counter, deque
from random import Random
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from soak.history import Hearing, History, Session
from soak.nodes import Node

ANSWER_WITHIN = 30.0
"""For an answer that may have to wait for a Redis that is silent, on a node that stands still."""
ALL_ROOMS = [f"room-{number}" for number in range(8)]


class Asked(NamedTuple):
    """A command under way."""

    do: str
    room: str
    answer: asyncio.Future[None]


class Resident:
    """A client of one node. What it does while it is connected, subclasses say.

    Attributes:
        home: The rooms it is in when nothing goes on, the first of which it joins by its handshake.
        loud: Set while it is to do something.
        comes_back: Connects again when a connection has ended.
        is_home: It is connected, in these rooms alone, and waits for nothing.
        session: The present connection; None: there is none.
        frames, commands: How many messages it got and sent, since somebody set that to 0.
    """

    def __init__(self, name: str, node: Node, home: list[str], loud: asyncio.Event, chance: Random) -> None:
        self.name = name
        self.node = node
        self.home = home
        self.loud = loud
        self.chance = chance
        self.history: History  # set by the chapter
        self.session: Session | None = None
        self.frames = self.commands = 0
        self.is_home = False
        self._sent = 0  # commands, ever
        self._websocket: ClientConnection  # set with the session
        self._asked: deque[Asked] = deque()  # not answered, oldest first
        self._members = Counter[str]()  # rooms whose messages may come: joins sent, less leaves answered
        self.comes_back = True

    async def live(self) -> None:
        """Be connected, and come back when that has ended."""
        while self.comes_back:
            try:
                await self._stay()
            except InvalidStatus as refused:
                if not (self.node.is_disturbed and refused.response.status_code in (500, 503)):
                    self.history.oddities.append(f"{self.name} was not let in to {self.node}: {refused}")
            except (OSError, WebSocketException, TimeoutError) as error:
                if not self.node.is_disturbed:
                    self.history.oddities.append(f"{self.name} could not connect to {self.node}: {error!r}")
            self.session, self.is_home = None, False
            await asyncio.sleep(self.chance.uniform(0.05, 0.5))

    def begin_chapter(self, history: History) -> None:
        """Go on in another history. Nothing may be under way."""
        self.history = history
        if self.session is not None:
            now = time.time()
            self.session = Session(self.name, self.session.life, [Hearing(room, now) for room in self.home])
            history.sessions.append(self.session)

    async def behave(self) -> None:
        """Do what this client does, for as long as it is connected."""
        self.is_home = True
        await asyncio.Event().wait()

    # What it can do

    async def join(self, room: str) -> None:
        self._members[room] += 1
        await self._wait_for(await self._send("join", room))

    async def leave(self, room: str) -> None:
        for hearing in self.session.hearings:
            if hearing.room == room and hearing.until is None:
                hearing.until, hearing.is_cut = time.time(), True
        await self._wait_for(await self._send("leave", room))

    async def say(self, room: str, size: int = 0) -> asyncio.Future[None]:
        """Say something without waiting for what becomes of it."""
        return await self._send("say", room, talker=self.name, pad=_pad(self.name, size))

    async def settle(self) -> None:
        """Wait for the answers to all that was sent."""
        for asked in list(self._asked):
            await self._wait_for(asked.answer)

    async def _wait_for(self, answer: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await answer
        except TimeoutError:
            self._note(f"nothing was answered within {ANSWER_WITHIN} s")
            await self._websocket.close()

    async def _send(self, do: str, room: str, **details: Any) -> asyncio.Future[None]:
        self._sent += 1
        asked = Asked(do, room, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self.session.said.append(self._sent)
        self.commands += 1
        await self._websocket.send(json.dumps({"do": do, "number": self._sent, "room": room, **details}))
        return asked.answer

    # Being connected

    async def _stay(self) -> None:
        url = f"ws://127.0.0.1:{self.node.port}/ws?room={self.home[0]}"
        async with connect(
            url, max_size=None, max_queue=None, ping_interval=None, open_timeout=ANSWER_WITHIN, close_timeout=5
        ) as websocket:
            self._websocket = websocket
            life = websocket.response.headers["X-Life"]
            self.session = Session(self.name, life, [Hearing(self.home[0], time.time())])
            self.history.sessions.append(self.session)
            self._members = Counter([self.home[0]])
            self._asked.clear()
            listening, behaving = asyncio.create_task(self._listen()), asyncio.create_task(self._settle_in())
            try:
                await asyncio.wait([listening, behaving], return_when=asyncio.FIRST_COMPLETED)
            finally:
                behaving.cancel()
                await asyncio.wait([behaving])
            if not behaving.cancelled() and not isinstance(behaving.exception(), ConnectionClosed):
                behaving.result()
            await websocket.close()
            await listening

    async def _settle_in(self) -> None:
        for room in self.home[1:]:
            await self.join(room)
        await self.behave()

    async def _listen(self) -> None:
        try:
            while True:
                self._hear(json.loads(await self._websocket.recv()))
        except ConnectionClosed as end:
            self._end(1006 if end.rcvd is None else end.rcvd.code)

    def _end(self, code: int) -> None:
        session = self.session
        session.closed_at = time.time()
        session.close_code = code
        for hearing in session.hearings:
            if hearing.until is None:
                hearing.until, hearing.is_cut = session.closed_at, True
        for asked in self._asked:
            asked.answer.cancel()

    def _hear(self, message: dict[str, Any]) -> None:
        self.frames += 1
        if "said" in message:
            self._on_message(message["said"], message["pad"])
        elif "answers" in message:
            self._on_answer(message)
        else:
            self._note(f"got what nobody should have sent: {message}")

    def _on_message(self, said: dict[str, Any], pad: str) -> None:
        room, talker = said["room"], said["talker"]
        if not self._members[room]:
            self._note(f"heard {said} in a room it had left")
        if pad != _pad(talker, len(pad)):
            self._note(f"heard {said} with other words than were said: {pad[:80]}")
        try:
            heard = self.history.message(said["life"], said["call"], room, talker, said["sequence"], said["called"])
        except ValueError as changed:
            self._note(f"heard something that was changed on its way: {changed}")
        else:
            self.session.heard.append((heard, time.time()))

    def _on_answer(self, answer: dict[str, Any]) -> None:
        session, number = self.session, answer["answers"]
        session.answered.append(number)
        if not self._asked or answer["life"] != session.life:
            self._note(f"got an answer that it did not ask for: {answer}")
            return
        asked = self._asked.popleft()
        match asked.do:
            case "join":
                session.hearings.append(Hearing(asked.room, time.time()))
            case "leave":
                self._members[asked.room] -= 1
                for hearing in session.hearings:
                    if hearing.room == asked.room:
                        hearing.is_cut = False  # what was said before, came before the answer
            case "say":
                said = self.history.message(
                    session.life, answer["call"], asked.room, self.name, number, answer["called"]
                )
                said.outcome, said.returned = answer["outcome"], answer["returned"]
        if not asked.answer.done():
            asked.answer.set_result(None)

    def _note(self, oddity: str) -> None:
        self.session.oddities.append(oddity)


class Auditor(Resident):
    """Stays in its rooms and listens."""


class Talker(Resident):
    """Says something in any room, several times a second, whether it has been answered or not."""

    async def behave(self) -> None:
        while True:
            if not self.loud.is_set():
                await self.settle()
                self.is_home = True
                await self.loud.wait()
                self.is_home = False
            await self.say(self.chance.choice(ALL_ROOMS), self.chance.choice((0, 10, 200, 3000)))
            await asyncio.sleep(self.chance.uniform(0.1, 0.4))


class Walker(Resident):
    """Joins and leaves rooms, and says something now and then."""

    async def behave(self) -> None:
        visited: list[str] = []
        while True:
            if not self.loud.is_set():
                while visited:
                    await self.leave(visited.pop())
                await self.settle()
                self.is_home = True
                await self.loud.wait()
                self.is_home = False
            elsewhere = [room for room in ALL_ROOMS if room not in (*self.home, *visited)]
            step = self.chance.random()
            if step < 0.4 and len(visited) < 4:
                visited.append(self.chance.choice(elsewhere))
                await self.join(visited[-1])
            elif step < 0.8 and visited:
                await self.leave(visited.pop(self.chance.randrange(len(visited))))
            else:
                await self.say(self.chance.choice([*self.home, *visited]))
            await asyncio.sleep(self.chance.uniform(0.1, 0.6))


def _pad(talker: str, size: int) -> str:
    """Return words that only this talker says."""
    return (f"{talker}: äß🙂 " * (size // 10 + 1))[:size]
