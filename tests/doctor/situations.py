"""Situations to judge: one in which all is well, and what can be wrong in it."""

from dataclasses import replace

from fastapi_rooms import RoomsSettings
from fastapi_rooms.doctor.situation import App, Broker, OutputLimit, Rooms, Server, Situation, Uvicorn

MIB = 1024 * 1024

WELL = Situation(
    app=App(target="main:app"),
    rooms=Rooms(backend="RedisBackend", joins_processes=True),
    server=Uvicorn(workers=4, per_message_deflate=False, max_size=64 * 1024, graceful_timeout=30),
    broker=Broker(
        place="127.0.0.1:6379",
        version="7.0.15",
        compatible="7.0.15",
        output_limit=OutputLimit(hard=32 * MIB, soft=8 * MIB, seconds=60),
    ),
    versions={"python": "3.11.7", "fastapi": "0.165.0"},
    required={"fastapi": "0.121.0"},
)


def but(*, app=None, rooms=None, settings=None, server=None, broker=None, without=(), **others):
    """`WELL`, but for some fields of its parts, and without some parts."""
    parts = {"app": app, "rooms": rooms, "server": server, "broker": broker}
    if settings:
        parts["rooms"] = {**(rooms or {}), "settings": RoomsSettings(**settings)}
    changed = {name: replace(getattr(WELL, name), **fields) for name, fields in parts.items() if fields}
    return replace(WELL, **{**changed, **dict.fromkeys(without), **others})


def under(kind, *, settings=None, app=None, **server):
    """`WELL`, but under another server."""
    situation = but(settings=settings, app=app) if settings or app else WELL
    return replace(situation, server=Server(**{"kind": kind, "name": kind, **server}))
