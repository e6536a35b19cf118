"""What a node wants to hear is what its registry says, whatever happens in whatever order."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.fakes import ClockedLoop, Peer, is_empty, settled, ticks
from engine.scripted import ScriptedBackend
from fastapi_rooms.domain.envelope import EVERYBODY, Envelope, TargetKind, connection_target, room_target, user_target
from fastapi_rooms.domain.errors import BackendUnavailable, NotConnectedError
from fastapi_rooms.domain.messages import Close, Message
from fastapi_rooms.engine.distributed import DistributedWebSocketManager
from fastapi_rooms.engine.references import SCOPE_KEY, find

OTHER_NODE = "0123456789abcdef0123456789abcdef"

rooms = st.sampled_from(["kitchen", "hall", "ann"])
users = st.sampled_from(["ann", "bob"])
somebody = st.integers(0, 5)
targets = st.just(EVERYBODY) | rooms.map(room_target) | users.map(user_target)
contents = st.sampled_from([Message(b"hi", is_text=True), Close(4000)])


class AcceptError(Exception):
    pass


EXPECTED = AcceptError, NotConnectedError, BackendUnavailable, OSError, asyncio.CancelledError


class JudgingBackend(ScriptedBackend):
    """Looks at the registry at each call: what is decided there is told in the same breath."""

    def __init__(self):
        super().__init__()
        self.manager = None

    def subscribe(self, targets):
        self.faults += [f"nobody is in {target}" for target in targets if not self._is_needed(target)]
        return super().subscribe(targets)

    def unsubscribe(self, targets):
        self.faults += [f"somebody is in {target}" for target in targets if self._is_needed(target)]
        super().unsubscribe(targets)

    def needed(self):
        registry = self.manager._registry
        users = {connection.user_id for connection in registry.all()} - {None}
        return {EVERYBODY, *map(room_target, registry.rooms()), *map(user_target, users)}

    def _is_needed(self, target):
        return target.kind is TargetKind.ALL or bool(self.manager._registry.outboxes(target))


class Wanted(RuleBasedStateMachine):
    """A manager to which everything happens, step by step; between two steps its loop may or may not run on."""

    @initialize()
    def begin(self):
        self.loop = ClockedLoop()
        self.backend = JudgingBackend()
        self.backend.manager = self.manager = DistributedWebSocketManager(self.backend)
        self.peers = []
        self.calls = {}  # with the peer that a call opens, if it is the first for it
        self.run(self.manager.start())

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def call(self, coroutine, opens=None):
        """Begin something that may have to wait; look at what holds while it does."""

        async def begin():
            self.calls[asyncio.get_running_loop().create_task(coroutine)] = opens
            await self.ticks(2)

        self.run(begin())

    async def ticks(self, count):
        for _ in range(count):
            await ticks(1)
            self.what_is_wanted_is_what_is_needed()

    def peer(self, index):
        return self.peers[index % len(self.peers)]

    def has_peers(self):
        return bool(getattr(self, "peers", None))

    # What clients do

    @rule(room=st.none() | rooms, user=st.none() | users, hangs=st.sampled_from([False, False, True]))
    def connect(self, room, user, hangs):
        peer = Peer()
        if hangs:
            peer.accepts.clear()
        self.peers.append(peer)
        self.call(self.manager.connect(peer.websocket, room, user), opens=peer)

    @precondition(has_peers)
    @rule(index=somebody, error=st.none() | st.just(AcceptError()))
    def answer_the_handshake(self, index, error):
        peer = self.peer(index)
        peer.accept_error = error
        peer.accepts.set()

    @precondition(has_peers)
    @rule(index=somebody)
    def go(self, index):
        self.peer(index).send_error = OSError("reset")

    # What the app does

    @precondition(has_peers)
    @rule(index=somebody, room=rooms, is_again=st.booleans())
    def join(self, index, room, is_again):
        websocket = self.peer(index).websocket
        self.call(self.manager.connect(websocket, room) if is_again else self.manager.join_room(websocket, room))

    @precondition(has_peers)
    @rule(index=somebody, room=rooms)
    def leave(self, index, room):
        self.call(self.manager.leave_room(self.peer(index).websocket, room))

    @precondition(has_peers)
    @rule(index=somebody)
    def disconnect(self, index):
        self.run(self._disconnect(self.peer(index).websocket))

    async def _disconnect(self, websocket):
        self.manager.disconnect(websocket)

    @precondition(has_peers)
    @rule(index=somebody)
    def close(self, index):
        self.call(self.manager.close(self.peer(index).websocket))

    @rule(room=rooms)
    def close_room(self, room):
        self.call(self.manager.close_room(room))

    @rule(user=users)
    def close_user(self, user):
        self.call(self.manager.close_user(user))

    @rule()
    def broadcast(self):
        self.call(self.manager.broadcast("hi"))

    @precondition(lambda self: getattr(self, "calls", None))
    @rule(index=somebody)
    def cancel(self, index):
        list(self.calls)[-1 - index % len(self.calls)].cancel()

    @rule()
    def restart(self):
        self.backend.confirms = True
        self.backend.confirm()
        self.backend.answer()
        self.run(self.manager.stop())
        self.run(self.manager.start())

    # What other nodes and the broker do

    @rule(whom=targets, content=contents)
    def hear(self, whom, content):
        self.run(self._receive(Envelope(OTHER_NODE, whom, content)))

    @precondition(has_peers)
    @rule(index=somebody, content=contents)
    def hear_for_one(self, index, content):
        connection = self.peer(index).websocket.scope.get(SCOPE_KEY)
        if connection is not None:
            self.run(self._receive(Envelope(OTHER_NODE, connection_target(connection.connection_id), content)))

    async def _receive(self, envelope):
        self.backend.receiver.receive(envelope)

    @rule(confirms=st.booleans(), answers=st.booleans())
    def have_patience(self, confirms, answers):
        self.backend.confirms, self.backend.answers = confirms, answers

    @rule(index=somebody, is_all=st.booleans())
    def confirm(self, index, is_all):
        waiting = list(self.backend.waiting)
        self.backend.confirm(*(waiting if is_all else waiting[index : index + 1]))

    @rule(error=st.none() | st.just("no answer"))
    def answer(self, error):
        self.backend.answer(error)

    @rule(count=st.integers(1, 6))
    def let_ticks_pass(self, count):
        self.run(self.ticks(count))
        self.collect()

    # What holds

    @invariant()
    def what_is_wanted_is_what_is_needed(self):
        assert self.backend.wanted == self.backend.needed()
        assert self.backend.faults == []

    def collect(self):
        for call in [call for call in self.calls if call.done()]:
            opened = self.calls.pop(call)
            error = asyncio.CancelledError() if call.cancelled() else call.exception()
            if error is not None:
                assert isinstance(error, EXPECTED)
                assert opened is None or find(opened.websocket, self.manager._registry) is None, "nothing is left of it"

    def teardown(self):
        if not hasattr(self, "manager"):
            return
        for peer in self.peers:
            peer.accepts.set()
        self.restart()
        self.run(settled())
        self.collect()
        self.run(self.manager.stop())
        assert self.calls == {}
        assert is_empty(self.manager)
        assert self.backend.wanted == {EVERYBODY}
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


Wanted.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWanted = Wanted.TestCase
