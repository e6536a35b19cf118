"""Runs a coroutine in a context that is not that of its task."""

from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Nothing:
    """What has nothing left to wait for, and no result."""

    def __await__(self) -> Any:
        return iter(())  # as good as a generator that ends at once, and costs less


_NOTHING: Awaitable[Any] = _Nothing()


async def _result(value: T) -> T:
    return value


def run_in_context(context: Context, steps: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Run a coroutine, every step of it, in a context; the first step at once. Return what is left, to be awaited now.

    A task in that context would do the same, at many times the cost: most sends have just one step. See PEP 567 for
    what a task does with its context, and PEP 380 for what is spelt out in `_drive`.

    Raises:
        Exception: What the first step raises.
    """
    try:
        waits_for = context.run(steps.send, None)
    except StopIteration as end:
        return _NOTHING if end.value is None else _result(end.value)
    return _drive(context, steps, waits_for)


@coroutine
def _drive(context: Context, steps: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    try:
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                context.run(steps.close)
                raise
            except BaseException as error:  # noqa: BLE001 - it is thrown into the coroutine, as a cancellation is
                waits_for = context.run(steps.throw, error)
            else:
                waits_for = context.run(steps.send, sent)
    except StopIteration as end:
        result: T = end.value
        return result
