"""Commands that wait while a slot moves from one server of a cluster to another.

When a slot moves, commands may be under way to the server that had it. This server takes some of them and refuses the
others. New commands could already go to the server that has the slot now, but they would overtake those that were
refused. So new commands wait until the old server has answered; then the refused ones are sent on, and the new ones
after them. A refused command fails if the old server took one that was sent after it: sent on, it would arrive out of
order.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import takewhile

from fastapi_rooms.backends.redis.link import Link
from fastapi_rooms.backends.redis.publishing import Command
from fastapi_rooms.backends.redis.slots import slot_of
from fastapi_rooms.domain.errors import BackendUnavailable


class _Held:
    """The commands for one slot that moves."""

    def __init__(self, under_way: list[Command]) -> None:
        self.under_way = under_way  # to the server that had it, oldest first; answered or not
        self.refused: dict[Command, None] = {}
        self.waiting: list[Command] = []

    def to_send_on(self) -> dict[Command, None]:
        """Return the refused commands behind which the server took nothing, oldest first."""
        return dict.fromkeys([*takewhile(self.refused.__contains__, reversed(self.under_way))][::-1])


class HeldCommands:
    """Commands for slots that move.

    Args:
        link_of: Returns the link to whoever has a slot now; None if nobody has.
    """

    def __init__(self, link_of: Callable[[int], Link | None]) -> None:
        self._link_of = link_of
        self._held: dict[int, _Held] = {}

    def __contains__(self, slot: int) -> bool:
        return slot in self._held

    def commands(self) -> list[Command]:
        """Return all commands that are held."""
        return [command for held in self._held.values() for command in (*held.refused, *held.waiting)]

    def hold(self, slot: int, link: Link, *refused: Command) -> None:
        """Hold a slot until a link has answered all that is under way. To be called before the slot has another link.

        Args:
            slot: Not held yet.
            link: To the server that had it.
            refused: What that server has just refused.
        """
        self._held[slot] = _Held([*refused, *(one for one in _under_way(link) if slot_of(one.words[1]) == slot)])
        # It is answered, or lost, behind all that is under way. Nobody else waits for it, so nobody cancels it.
        end = link.line.send(b"PING")
        end.add_done_callback(partial(self._release, slot))

    def hold_moved(self, link: Link) -> None:
        """Hold all slots for which something is under way to a link that does not have them any more."""
        for slot in {slot_of(command.words[1]) for command in _under_way(link)}:
            if slot not in self._held and self._link_of(slot) is not link:
                self.hold(slot, link)

    def refuse(self, slot: int, command: Command) -> None:
        """Have a refused command sent on to the server that has its slot, once the old one has answered the others."""
        keep_in_time(command)
        self._held[slot].refused[command] = None

    def wait(self, slot: int, command: Command) -> None:
        """Have a new command sent behind the refused ones."""
        keep_in_time(command)
        self._held[slot].waiting.append(command)

    def _release(self, slot: int, end: asyncio.Future[object]) -> None:
        """Send what was held to the server that has the slot now, in order."""
        end.exception()  # seen: a server that is lost answers nothing more, either
        held, link = self._held.pop(slot), self._link_of(slot)
        to_send_on = held.to_send_on()
        for command in held.refused:
            if command not in to_send_on:
                command.fail(BackendUnavailable("its slot moved, and something behind it went first"))
        for command in (*to_send_on, *held.waiting):
            if link is None:
                command.fail(BackendUnavailable(f"no server of the cluster is known to have slot {slot}"))
            elif not command.future.done() or command.future.cancelled():  # cancelling takes nothing back
                command.redirects += 1
                link.line.put(command)


def _under_way(link: Link) -> list[Command]:
    """Return the commands under way that are about a channel or a key, oldest first. Probes are never sent on."""
    return [one for one in link.line.unanswered() if len(one.words) > 1 and one.words[1] != link.probe_channel]


def keep_in_time(command: Command) -> None:
    """Have a command fail at its deadline, wherever it is by then. A line watches only the deadline of its oldest."""
    timer = asyncio.get_running_loop().call_at(
        command.deadline, command.fail, BackendUnavailable("its slot moved, and its time was over before it arrived")
    )
    command.future.add_done_callback(lambda _: timer.cancel())
