"""The listening side: one connection, and the channels that Redis is to have for it.

What is wanted is state. A writer makes Redis agree with it, in batches, and from the beginning after each new
connection. Per channel at most one command is under way, so an answer always belongs to the last word that was said.

Three facts about a channel say what the writer does next (`_word_about`):

    wanted  confirmed  busy  what is true                     what is done next
    ──────  ─────────  ────  ───────────────────────────────  ──────────────────────────────────────────────────────
    no      no         no    nobody knows it                  nothing
    yes     no         no    somebody wants to hear it        SUBSCRIBE is sent: it is busy
    yes     yes        no    it is heard                      nothing
    no      yes        no    nobody wants to hear it any      UNSUBSCRIBE is sent: it is busy, and not confirmed any
                             more                             more, since from here on it may miss something
    any     no         yes   a command is under way           nothing until Redis has answered, then see above
    any     yes        yes   never

    what happens             what becomes of the channel
    ───────────────────────  ───────────────────────────────────────────────────────────────────────────────────────
    `want`, `unwant`         wanted; not wanted
    Redis says subscribe     confirmed, and not busy
    Redis says unsubscribe   not confirmed; not busy if that was the answer
    a shard refuses it       not busy; looked at again after `try_again`, so that nobody asks in vain
    a server refuses it      the connection is ended
    the connection is lost   not confirmed, and not busy

What has changed is noted in `_changed`, and the writer looks at no other channels. Without a connection nothing is
noted: the next one begins with all that is wanted by then.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, ResponseError, TryAgainError

from fastapi_rooms.backends.redis.alarm import Alarm
from fastapi_rooms.backends.redis.dialing import pack, send
from fastapi_rooms.backends.redis.lapses import Lapses
from fastapi_rooms.backends.redis.slots import slot_of
from fastapi_rooms.backends.redis.supervised import Dial, SupervisedConnection
from fastapi_rooms.domain.errors import BackendUnavailable

BATCH = 500
"""Channels per command: 25,000 a second, where one by one gives 3,800."""

_ELSEWHERE = (AskError, ClusterDownError, TryAgainError)  # MovedError is an AskError
"""What a shard answers about a channel whose slot is not, or not only, with it."""


@dataclass(frozen=True, slots=True)
class Sharded:
    """What a listener to sharded channels calls."""

    on_moved: Callable[[], object]
    """Another server may have one of the channels that are wanted."""
    on_confirmed: Callable[[bytes], object]
    """A channel that is wanted is heard."""
    on_taken: Callable[[bytes], object] = lambda _: None
    """Redis took away a channel that is wanted: its slot moved to another server, and may be back by now."""


class Listener(SupervisedConnection):
    """Hears channels.

    Args:
        name: What its task is called.
        dial: Makes a fresh connection.
        on_change: Called when a connection was made or lost, and when all channels that were behind have caught up.
        timeout: How long Redis may take to confirm, in seconds. After that the connection is ended.
        on_message: Called with channel and payload. Must not raise.
        sharded: What to call. If it is given, the channels are sharded ones.
    """

    def __init__(
        self,
        name: str,
        dial: Dial,
        on_change: Callable[[], object],
        timeout: float,
        on_message: Callable[[bytes, bytes], object],
        sharded: Sharded | None = None,
    ) -> None:
        super().__init__(name, dial, on_change)
        self.lapses = Lapses(datetime.now(UTC))
        self._timeout = timeout
        self._on_message = on_message
        self._sharded = sharded
        self._subscribe = b"SSUBSCRIBE" if sharded else b"SUBSCRIBE"
        self._unsubscribe = b"SUNSUBSCRIBE" if sharded else b"UNSUBSCRIBE"
        self._batch = 1 if sharded else BATCH  # channels in one command have to share a slot
        self._wanted: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._changed: dict[bytes, None] = {}  # the writer will look at these, in this order
        self._under_way: deque[set[bytes]] = deque()  # per command, oldest first: what is not answered
        self._busy: set[bytes] = set()  # all channels in `_under_way`
        self._waiting: dict[bytes, asyncio.Future[None]] = {}  # somebody waits for the confirmation
        self._is_doubted = False  # set by `doubt`, until the next proof
        self._progress = 0.0  # when Redis last answered, or began to owe an answer
        self._alarm = Alarm(self._due, self._on_alarm)

    @property
    def wanted(self) -> frozenset[bytes]:
        """The channels that are wanted: a copy."""
        return frozenset(self._wanted)

    @property
    def is_hearing(self) -> bool:
        """Whether all has been confirmed that was wanted when the connection was made."""
        return self.lapses.is_hearing

    def want(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Want channels from now on.

        Returns what to wait for until Redis has confirmed them. Without a connection, and while it is doubted, that is
        nothing.
        """
        channels = list(channels)
        for channel in channels:
            if channel not in self._wanted:
                self._wanted.add(channel)
                self._look_at(channel)
        if not self._is_doubted:
            return self.await_confirmed(channels)
        if self.is_up:
            self._let_go([channel for channel in channels if channel not in self._confirmed])
        return []

    def await_confirmed(self, channels: Iterable[bytes]) -> list[asyncio.Future[None]]:
        """Begin to wait for channels that are wanted: one future for each that Redis can confirm and has not yet."""
        return [self._confirmation(one) for one in channels if one not in self._confirmed and self.is_up]

    def unwant(self, channels: Iterable[bytes]) -> None:
        """Stop wanting channels from now on."""
        for channel in channels:
            if channel in self._wanted:
                self._wanted.discard(channel)
                self._release(channel)
                self._look_at(channel)
                self._catch_up(channel)

    def doubt(self) -> None:
        """Have nobody wait for Redis until it is proved that the connection works, even if there is one."""
        self._is_doubted = True
        self._let_go(list(self._waiting))

    def prove(self) -> None:
        """Take note that the connection works."""
        super().prove()
        self._is_doubted = False

    def try_again(self) -> None:
        """Ask once more for what Redis refused."""
        self._wake.set()

    def is_settled(self) -> bool:
        """Return whether Redis has exactly the channels that are wanted."""
        return self.is_up and not self._changed and not self._under_way and self._confirmed == self._wanted

    def _confirmation(self, channel: bytes) -> asyncio.Future[None]:
        future = self._waiting.get(channel)
        if future is None or future.done():  # the one who waited may have cancelled it
            future = self._waiting[channel] = asyncio.get_running_loop().create_future()
        return future

    def _release(self, channel: bytes) -> None:
        future = self._waiting.pop(channel, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _let_go(self, channels: list[bytes]) -> None:
        """Have nobody wait for channels. What they miss until they are confirmed lies in the gap that follows."""
        self.lapses.let_go(channels)
        for channel in channels:
            self._release(channel)

    def _look_at(self, channel: bytes) -> None:
        if self.is_up:  # else the next connection is told everything anew
            self._changed[channel] = None
            self._wake.set()

    def _due(self) -> float | None:
        return self._progress + self._timeout if self._under_way else None

    def _on_alarm(self) -> None:
        self.drop(f"Redis did not confirm a subscription within {self._timeout:g} s")

    def _begin(self) -> None:
        self._changed = dict.fromkeys(self._wanted)
        self.lapses.begin(self._wanted)
        self._wake.set()

    def _end(self, error: BackendUnavailable) -> None:  # noqa: ARG002 - nobody waits for more than the end
        self._alarm.stop()
        self.lapses.lose()
        for unanswered in (self._confirmed, self._changed, self._under_way, self._busy):
            unanswered.clear()
        for channel in list(self._waiting):
            self._release(channel)  # the subscription follows; nobody waits for Redis while it is away

    async def _write(self, connection: AbstractConnection) -> None:
        ready = [channel for channel in self._changed if channel not in self._busy]
        for channel in ready:
            del self._changed[channel]  # a busy one is looked at again when it was answered
        commands = []
        for word in (self._unsubscribe, self._subscribe):
            channels = [channel for channel in ready if self._word_about(channel) == word]
            for at in range(0, len(channels), self._batch):
                batch = channels[at : at + self._batch]
                commands.append(pack(connection, word, *batch))
                self._expect(batch)
        if commands:
            self._alarm.set()
            await send(connection, commands)

    def _word_about(self, channel: bytes) -> bytes | None:
        """Return what to tell Redis about a channel that is not busy; None: they agree."""
        match (channel in self._wanted, channel in self._confirmed):
            case (True, False):
                return self._subscribe
            case (False, True):
                return self._unsubscribe
        return None

    def _expect(self, batch: list[bytes]) -> None:
        """Take note that an answer to a command about channels is under way."""
        if not self._under_way:
            self._progress = asyncio.get_running_loop().time()
        self._under_way.append(set(batch))
        self._busy.update(batch)
        self._confirmed.difference_update(batch)  # those that are given up may miss something from here on

    def _take(self, reply: object) -> None:
        match reply:
            case [b"message" | b"smessage", bytes(channel), bytes(payload)]:
                if channel in self._wanted:  # else it may be heard elsewhere by now, and would be heard twice
                    self._on_message(channel, payload)
            case [b"subscribe" | b"ssubscribe", bytes(channel), _]:
                self._confirm(channel)
            case [b"unsubscribe" | b"sunsubscribe", bytes(channel), _]:
                self._forget(channel)
            case ResponseError():
                self._refused(reply)
            case _:
                self.drop("Redis said what is no answer to a subscription")

    def _confirm(self, channel: bytes) -> None:
        self._confirmed.add(channel)
        self._answered(channel)
        if channel in self._wanted:
            self._release(channel)
            self._catch_up(channel)
            if self._sharded is not None:
                self._sharded.on_confirmed(channel)
        else:
            self._look_at(channel)

    def _forget(self, channel: bytes) -> None:
        self._confirmed.discard(channel)
        # Answers come in the order of the commands: out of it, Redis took the channel away while we were asking.
        is_asked = bool(self._under_way) and channel in self._under_way[0]
        if is_asked:
            self._answered(channel)
        if channel in self._wanted:
            self._look_at(channel)
            if not is_asked and self._sharded is not None:
                self._sharded.on_taken(channel)
                self._sharded.on_moved()

    def _catch_up(self, channel: bytes) -> None:
        if self.lapses.catch_up(channel):
            self._on_change()

    def _answered(self, channel: bytes) -> None:
        self._progress = asyncio.get_running_loop().time()
        self._busy.discard(channel)
        if channel in self._changed:
            self._wake.set()  # it was left alone while it was busy
        if self._under_way:
            unanswered = self._under_way[0]
            unanswered.discard(channel)
            if not unanswered:
                self._under_way.popleft()

    def _refused(self, error: ResponseError) -> None:
        """Act on an error in place of all confirmations of a command."""
        if self._sharded is None or not isinstance(error, _ELSEWHERE):
            self.drop(f"Redis refused a subscription: {error}")
            return
        if not self._is_for_oldest(error):
            self._sharded.on_moved()
            return
        channels = self._under_way.popleft()
        self._busy -= channels
        for channel in channels:
            self._release(channel)
            self._changed[channel] = None  # for whoever knows the right server; no wake, so that nobody asks in vain
        self._sharded.on_moved()

    def _is_for_oldest(self, error: ResponseError) -> bool:
        """Return whether an error answers the oldest command.

        When our SUNSUBSCRIBE crosses the message by which Redis takes the channel away, that message has been taken for
        the answer, and the answer itself is an error about a command that is not under way any more.
        """
        if not self._under_way:
            return False
        return not isinstance(error, AskError) or slot_of(next(iter(self._under_way[0]))) == error.slot_id
