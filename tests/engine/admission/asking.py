"""What an app says when it is asked, and what a refusal leaves behind: nothing."""

import asyncio

import pytest

from fastapi_rooms.engine.admission.handshake_refused import HandshakeRefused

YES, NO = True, False


class Gate:
    """An app's hook that waits until it is told what to say."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, str]] = []
        self._answers: list[asyncio.Future[object]] = []

    async def ask(self, connection, room):
        self.asked.append((connection, room))
        self._answers.append(asyncio.get_running_loop().create_future())
        return await self._answers[-1]

    def answer(self, value, which=0):
        self._answers[which].set_result(value)


async def refused(manager, peer, reason, *arguments, **options) -> HandshakeRefused:
    """Connect, be refused for that reason before accept, and leave nothing behind."""
    before = manager.stats().refused[reason]
    with pytest.raises(HandshakeRefused) as refusal:
        await manager.connect(peer.websocket, *arguments, **options)
    assert refusal.value.reason is reason
    assert manager.stats().refused[reason] == before + 1
    assert peer.events == []
    return refusal.value


async def say_async(answer, connection, room):
    await asyncio.sleep(0)
    return answer


def say_sync(answer, connection, room):
    return answer


class Says:
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, connection, room):
        return self.answer


class SaysAsync(Says):
    async def __call__(self, connection, room):
        return self.answer
