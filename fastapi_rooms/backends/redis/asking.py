"""Asking several servers of which each knows the answer."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from fastapi_rooms.domain.errors import BackendUnavailable
from fastapi_rooms.tasks import end_tasks

T = TypeVar("T")

PATIENCE_SECONDS = 0.2
"""How long one server may take before the next is asked as well. The answer of the first one still counts."""


async def first_answer(questions: Iterable[Coroutine[Any, Any, T]]) -> T:
    """Ask one after the other, and return the first answer.

    The next one is asked as soon as one has failed, or has not answered for a moment. So a server that is gone without
    a word costs that moment, and not its whole time-out.

    Raises:
        BackendUnavailable: Nobody has answered; it says why.
    """
    to_ask = deque(questions)
    asked: set[asyncio.Task[T]] = set()
    done: set[asyncio.Task[T]] = set()
    errors = []
    try:
        while to_ask or asked:
            if to_ask:
                asked.add(asyncio.get_running_loop().create_task(to_ask.popleft(), name="fastapi_rooms asking"))
            done, asked = await asyncio.wait(
                asked, timeout=PATIENCE_SECONDS if to_ask else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                try:
                    return task.result()
                except BackendUnavailable as error:
                    errors.append(str(error))
        raise BackendUnavailable("; ".join(errors) or "there is nobody to ask")
    finally:
        for question in to_ask:
            question.close()
        await end_tasks(asked)
        for task in (*done, *asked):
            if not task.cancelled():
                task.exception()  # seen, also if another was faster
