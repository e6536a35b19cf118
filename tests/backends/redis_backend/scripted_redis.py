"""A server that speaks Redis' protocol over a real socket, and says what a test tells it to say."""

import asyncio
from collections import deque

from support import DEADLINE, until

from fastapi_rooms.backends.redis.places import locate

OK = b"+OK\r\n"


def bulk(*words):
    """An array of strings, as Redis sends it."""
    parts = [b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%s" % (len(words), b"".join(parts))


class Visit:
    """One connection to the server.

    Attributes:
        commands: What was received and not taken yet, without what redis-py says of itself at the beginning.
    """

    def __init__(self, server, reader, writer):
        self.server = server
        self.commands = deque()
        self.is_over = False
        self._reader = reader
        self._writer = writer

    def say(self, data):
        self._writer.write(data)

    def hang_up(self):
        """End it at once."""
        self._writer.transport.abort()

    def end(self):
        """End it behind what was said."""
        self._writer.close()

    async def command(self):
        """Wait for the next command."""
        await until(lambda: self.commands, "a command")
        return self.commands.popleft()

    async def listen(self):
        try:
            while command := await self._read():
                if command[0] in (b"CLIENT", b"AUTH"):
                    self.server.on_greeting(self, command)
                else:
                    self.commands.append(command)
                    self.server.on_command(self, command)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.is_over = True
            self.hang_up()

    async def _read(self):
        head = await self._reader.readline()
        words = []
        for _ in range(int(head[1:] or 0)):
            size = int((await self._reader.readline())[1:])
            words.append((await self._reader.readexactly(size + 2))[:-2])
        return words


class ScriptedRedis:
    """Listens on a port of its own.

    Attributes:
        greeting: What is answered to each of the words that redis-py says of itself; None: nothing.
        greetings: These words.
        visits: The connections, oldest first.
    """

    def __init__(self):
        self.greeting = OK
        self.greetings = []
        self.visits = []
        self._server = None
        self._tasks = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._welcome, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for visit in self.visits:
            visit.hang_up()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DEADLINE)

    @property
    def port(self):
        return self._server.sockets[0].getsockname()[1]

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def dial(self):
        return locate(self.url, 1.0).dial()

    async def visit(self, number=0):
        """Wait for the n-th connection."""
        await until(lambda: len(self.visits) > number, f"connection {number}")
        return self.visits[number]

    def on_greeting(self, visit, command):
        self.greetings.append(command)
        if self.greeting is not None:
            visit.say(self.greeting)

    def on_command(self, visit, command):
        """Answer a command at once. For subclasses."""

    async def _welcome(self, reader, writer):
        self._tasks.append(asyncio.current_task())
        visit = Visit(self, reader, writer)
        self.visits.append(visit)
        await visit.listen()


class PubSubServer(ScriptedRedis):
    """Confirms subscriptions when it is told to, and complains about a second command for a channel under way."""

    words = (b"SUBSCRIBE", b"UNSUBSCRIBE")

    def __init__(self):
        super().__init__()
        self.is_prompt = True
        self.subscribed = set()  # by the last connection
        self.owed = deque()  # (command, channel), oldest first
        self.complaints = []
        self.batches = []  # how many channels each command had

    def on_command(self, visit, command):
        word, *channels = command
        if visit is not self.visits[-1]:
            return
        if word not in self.words:
            self.complaints.append(f"unknown: {word}")
        self.batches.append(len(channels))
        under_way = {channel for _, channel in self.owed}
        for channel in channels:
            if channel in under_way:
                self.complaints.append(f"a second command for {channel}")
            under_way.add(channel)
            self.owed.append((word.lower(), channel))
        if self.is_prompt:
            self.answer(len(self.owed))

    def answer(self, count=1):
        """Confirm what is owed, oldest first."""
        for _ in range(min(count, len(self.owed))):
            word, channel = self.owed.popleft()
            if word == self.words[0].lower():
                self.subscribed.add(channel)
            else:
                self.subscribed.discard(channel)
            self.visits[-1].say(bulk(word, channel, len(self.subscribed)))

    def take_away(self, channel):
        """End a subscription without being asked."""
        self.subscribed.discard(channel)
        self.visits[-1].say(bulk(self.words[1].lower(), channel, len(self.subscribed)))

    def lose(self):
        """Lose the connection with all that was subscribed."""
        self.visits[-1].hang_up()
        self.forget()

    def forget(self):
        self.subscribed.clear()
        self.owed.clear()

    async def _welcome(self, reader, writer):
        self.forget()
        await super()._welcome(reader, writer)


class LyingRedis(ScriptedRedis):
    """Publishes and subscribes as Redis does, but may be deaf, mute, or somebody else.

    Attributes:
        passes_on: Whether what is published is passed on to those who are subscribed.
        answers: What PUBLISH is answered with in place of a number; None: nothing, and "number": the number.
        role: What ROLE is answered with.
    """

    def __init__(self):
        super().__init__()
        self.passes_on = True
        self.confirms = True
        self.answers = b"number"
        self.role = bulk(b"master", 0)
        self.subscribed = {}  # per connection
        self.published = []

    def on_command(self, visit, command):
        visit.commands.clear()
        match command:
            case [b"SUBSCRIBE" | b"UNSUBSCRIBE" as word, *channels]:
                mine = self.subscribed.setdefault(visit, set())
                for channel in channels:
                    (mine.add if word == b"SUBSCRIBE" else mine.discard)(channel)
                    if self.confirms:
                        visit.say(bulk(word.lower(), channel, len(mine)))
            case [b"PUBLISH", channel, payload]:
                self._publish(visit, channel, payload)
            case [b"ROLE"]:
                visit.say(self.role)

    def pass_on(self, channel, payload):
        """Tell those who are subscribed."""
        listeners = self.listeners(channel)
        for listener in listeners:
            listener.say(bulk(b"message", channel, payload))
        return len(listeners)

    def listeners(self, channel):
        return [visit for visit, mine in self.subscribed.items() if channel in mine and not visit.is_over]

    def publishers(self):
        return [visit for visit in self.visits if not visit.is_over and visit not in self.subscribed]

    def _publish(self, visit, channel, payload):
        self.published.append((channel, payload))
        count = self.pass_on(channel, payload) if self.passes_on else 0
        if self.answers is not None:
            visit.say(b":%d\r\n" % count if self.answers == b"number" else self.answers)
