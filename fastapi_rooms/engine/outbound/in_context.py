"""Runs a coroutine in a context that is not that of its task."""

from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any


class _Done:
    """What has nothing left to wait for."""

    def __await__(self) -> Any:
        return iter(())  # as good as a generator that ends at once, and costs less


_DONE: Awaitable[None] = _Done()


def run_in_context(context: Context, steps: Coroutine[Any, Any, None]) -> Awaitable[None]:
    """Run a coroutine, every step of it, in a context; the first step at once. Return what is left, to be awaited now.

    A task in that context would do the same, at many times the cost: most sends have just one step. See PEP 567 for
    what a task does with its context, and PEP 380 for what is spelt out in `_drive`.

    Raises:
        Exception: What the first step raises.
    """
    try:
        waits_for = context.run(steps.send, None)
    except StopIteration:
        return _DONE
    return _drive(context, steps, waits_for)


@coroutine
def _drive(context: Context, steps: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
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
    except StopIteration:
        return
