"""What a manager is made of, put together once."""

import asyncio
from functools import partial
from typing import TypeVar

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.connection import Connection
from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.envelope import EVERYBODY
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.settings import RoomsSettings
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.engine.admission.admission import Admission, AuthorizeJoin, Limiter
from fastapi_rooms.engine.admission.places import Places
from fastapi_rooms.engine.admission.revoked_users import RevokedUsers
from fastapi_rooms.engine.delivery import Delivery
from fastapi_rooms.engine.endings.drain import Drain, count_open
from fastapi_rooms.engine.entrance import Entrance
from fastapi_rooms.engine.hooks import Announcer, Hooks
from fastapi_rooms.engine.inbound.readers import Readers
from fastapi_rooms.engine.lifecycle import Lifecycle
from fastapi_rooms.engine.many_nodes import ManyNodes
from fastapi_rooms.engine.membership import Membership
from fastapi_rooms.engine.references import Reference, find
from fastapi_rooms.engine.users import Users
from fastapi_rooms.tasks import HomeLoop, end_tasks

T = TypeVar("T")

ELSEWHERE = (
    "in a `def` route or dependency write anyio.from_thread.run(manager.broadcast, message) in place of "
    "asyncio.run(manager.broadcast(message)); in a thread of your own use asyncio.run_coroutine_threadsafe, or a "
    "SyncPublisher. Two loops that run at once need a manager each"
)
"""What to do in place of calling a manager from another event loop, or from a thread that has none."""


class Parts:
    """The owners of all facts of a node. None of them knows the manager.

    Args:
        settings: Limits and policies; None: the defaults.
        authorize_join: The app's word on joins.
        limiter: The app's word on everything else.
        hooks: What the app wants to be told; None: nothing.
        nodes: How this node stands to the others.

    Raises:
        ConfigurationError: One of them is something else.
    """

    def __init__(
        self,
        settings: RoomsSettings | None,
        authorize_join: AuthorizeJoin | None,
        limiter: Limiter | None,
        hooks: Hooks | None,
        nodes: ManyNodes,
    ) -> None:
        settings = _checked("settings", RoomsSettings, settings, "settings=RoomsSettings(...)") or RoomsSettings()
        hooks = _checked("hooks", Hooks, hooks, "hooks=Hooks(connected=...)") or Hooks()
        self.settings = settings
        self.hooks = hooks
        self.nodes = nodes
        self.home = HomeLoop(ELSEWHERE)  # settled on by each start and connect
        self.announcer = Announcer()
        self.counters = Counters()
        self.registry = Registry()
        self.lifecycle = Lifecycle(settings, self.counters, self.registry, hooks, self.announcer, nodes)
        self.flusher = self.lifecycle.flusher
        self.revoked = RevokedUsers(
            settings.revocation_seconds, settings.probe_interval, self.registry, self.lifecycle.close
        )
        self.delivery = Delivery(self.counters, self.registry, self.lifecycle, hooks, self.announcer)
        self.drain = Drain(
            settings,
            self.counters,
            self.registry,
            self.flusher,
            self.delivery.close,
            self.lifecycle.tasks.__contains__,
            partial(self.announcer.tell, hooks.draining),
        )
        self.admission = Admission(
            settings,
            self.counters,
            Places(settings, self.registry, self.flusher),
            hooks,
            self.announcer,
            authorize_join,
            limiter,
            self._closed_for,
        )
        self.tasks = self.lifecycle.tasks
        self.entrance = Entrance(self.admission, self.revoked, self.lifecycle)
        self.membership = Membership(self.registry, self.admission, hooks, self.announcer, nodes)
        self.users = Users(self.membership, nodes, self.home)
        self.readers = Readers(settings, self.counters, None if limiter is None else self.admission.ask_limiter)

    def find(self, reference: Reference) -> Connection | None:
        """Return the registered connection that is meant.

        Raises:
            ConfigurationError: It lives on another event loop.
        """
        self.home.check()
        return find(reference, self.registry)

    def stats(self) -> Stats:
        """Return how this node is doing, in one snapshot."""
        return Stats.of(
            self.registry,
            self.counters,
            is_draining=self.drain.is_on,
            backend=self.nodes.status(),
            closing=self.lifecycle.closing,
            behind_seconds=self.flusher.behind_seconds(),
        )

    def _closed_for(self) -> float | None:
        """Return when who comes now may come again, in seconds; None: now. That somebody has come may be logged."""
        self.drain.report_shut()
        return self.drain.seconds_left()

    async def end_everybody(self) -> None:
        """Close who is left with 1012, wait for their outboxes, then for the app's hooks; nobody is let in any more."""
        await self.drain.interrupt(self.settings.send_timeout)  # who came now would go without a close frame
        await self.flusher.wait_for_word()
        left = self.registry.outboxes(EVERYBODY)
        self.counters.restarted += count_open(left)
        self.delivery.close(left, Close(CloseCode.SERVICE_RESTART))
        await asyncio.sleep(0)  # the close frames of those who are not behind go out now
        await self.flusher.settle(self.settings.send_timeout)
        await end_tasks(self.readers.tasks)
        await self.tasks.stop()
        await self.announcer.finish(self.settings.disconnect_grace)  # while the other nodes can still be told

    async def end_what_runs(self) -> None:
        """End what is left beside connections, once nobody is here any more. Cancelled, it is half done."""
        await self.revoked.stop()
        await self.announcer.stop()
        await self.drain.stop()
        self.delivery.stop_telemetry(self.stats)


def _checked(name: str, kind: type[T], value: T | None, example: str) -> T | None:
    if value is None or isinstance(value, kind):
        return value
    raise ConfigurationError(f"{name} takes {kind.__name__}, not {type(value).__name__}: write {example}")
