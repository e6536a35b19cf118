"""Asks Redis about itself: as the app would connect, with commands that change nothing, and not for long."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from fastapi_rooms.backends.contract import Backend
from fastapi_rooms.backends.redis.backend import RedisBackend
from fastapi_rooms.backends.redis.dialing import Lost, Server, ask, close
from fastapi_rooms.backends.redis.places import ClusterSeeds, OneServer, Place
from fastapi_rooms.doctor.situation import Broker, OutputLimit, Unreachable
from fastapi_rooms.domain.errors import BackendUnavailable

ASK_SECONDS = 3.0
"""How long all of it may take."""
MAX_PAGES, PAGE_KEYS = 10, 1_000
"""How much is looked through for keys of ours."""


async def ask_broker(backend: Backend | None) -> Broker | Unreachable | None:
    """Return what Redis tells about itself; None if the backend is none over Redis."""
    if not isinstance(backend, RedisBackend):
        return None
    place: Place = backend._place  # noqa: SLF001 - nobody else needs to know it
    prefix = backend._channels.of_key("").decode()  # noqa: SLF001 - nor this
    try:
        async with asyncio.timeout(ASK_SECONDS):
            info, limits, own_keys = await _told(place, prefix)
    except TimeoutError:
        return Unreachable(place=str(place), reason=f"{place} gave no answer within {ASK_SECONDS:g} s")
    except (BackendUnavailable, Lost) as failure:
        return Unreachable(place=str(place), reason=str(failure))
    servers = place.servers if isinstance(place, ClusterSeeds) else (place.server,)
    return _broker(place, servers[0], info, limits, own_keys)


async def _told(place: Place, prefix: str) -> tuple[Any, Any, int]:
    connection = await _dial(place)
    try:
        info = await ask(connection, "INFO")
        limits = await ask(connection, "CONFIG", "GET", "client-output-buffer-limit")
        return info, limits, await _count_keys(connection, f"{prefix}*")
    finally:
        await close(connection)


async def _count_keys(connection: Any, pattern: str) -> int:
    """Return how many keys there are, among the first thousands; 0 if this user may not look."""
    cursor, found = "0", 0
    for _ in range(MAX_PAGES):
        answer = await ask(connection, "SCAN", cursor, "MATCH", pattern, "COUNT", str(PAGE_KEYS))
        if not isinstance(answer, list):
            break
        cursor = answer[0].decode()
        found += len(answer[1])
        if cursor == "0":
            break
    return found


async def _dial(place: Place) -> Any:
    if not isinstance(place, ClusterSeeds):
        return await place.dial()
    failures = []
    for server in place.servers:
        try:
            return await server.dial()
        except BackendUnavailable as failure:
            failures.append(str(failure))
    raise BackendUnavailable("; ".join(failures))


def _broker(place: Place, server: Server, info: Any, limits: Any, own_keys: int) -> Broker:
    untold = Broker(
        place=str(place),
        is_local=isinstance(place, OneServer) and _is_local(server),
        has_password=bool(server.options.get("password") or server.options.get("credential_provider")),
        is_cluster=isinstance(place, ClusterSeeds),
        is_told=False,
    )
    if not isinstance(info, bytes):  # an error: this user may not ask
        return untold
    told = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
    is_valkey = told.get("server_name") == "valkey"
    return replace(
        untold,
        is_told=True,
        product="Valkey" if is_valkey else "Redis",
        version=told.get("valkey_version" if is_valkey else "redis_version", ""),
        compatible=told.get("redis_version", ""),
        role=told.get("role", "master"),
        foreign_keys=max(0, sum(_keys(value) for key, value in told.items() if key.startswith("db")) - own_keys),
        max_memory=int(told.get("maxmemory", 0)),
        eviction=told.get("maxmemory_policy", "noeviction"),
        output_limit=_output_limit(limits),
    )


def _is_local(server: Server) -> bool:
    if "path" in server.options:
        return True
    host, _ = server.address
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys(keyspace: str) -> int:
    """Read `keys=3,expires=0,avg_ttl=0`."""
    return int(dict(part.split("=") for part in keyspace.split(","))["keys"])


def _output_limit(answer: Any) -> OutputLimit | None:
    """Read `normal 0 0 0 … pubsub 33554432 8388608 60`; None if it was not told."""
    if not isinstance(answer, list) or not answer:
        return None
    words = answer[-1].decode().split()
    at = words.index("pubsub")
    hard, soft, seconds = map(int, words[at + 1 : at + 4])
    return OutputLimit(hard=hard, soft=soft, seconds=seconds)
