"""Each check speaks when it should, and is silent otherwise."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from situations import MIB, WELL, but

from fastapi_rooms.doctor.checks_server import VERIFIED_UVICORN
from fastapi_rooms.doctor.findings import Severity
from fastapi_rooms.doctor.judging import CHECKS, judge
from fastapi_rooms.doctor.situation import Hidden, Mounted, OutputLimit, Start, Unreachable

ROOT = Path(__file__).parents[2]

# The check, how bad it is, what it says in passing, and the situation.
SPEAKING = [
    (
        "no-rooms",
        "error",
        "`rooms = RoomsExtension()`, and attach it with `app = FastAPI(lifespan=rooms.lifespan)`",
        but(without=["rooms"], app={"start": Start.NOBODY}),
    ),
    ("no-rooms", "warning", "nothing about rooms can be checked", but(without=["rooms"], app={"start": Start.UNSEEN})),
    ("not-started", "error", "nothing starts it", but(app={"start": Start.NOBODY})),
    ("not-started", "warning", "no `rooms.lifespan` can be seen", but(app={"start": Start.UNSEEN})),
    ("several-managers", "error", "2 RoomsExtensions", but(app={"extensions": 2, "managers": 2})),
    ("several-managers", "warning", "3 managers", but(app={"managers": 3})),
    ("routes-lost", "error", "/ws/{room} and /news cannot", but(app={"lost_routes": ("/ws/{room}", "/news")})),
    (
        "hidden-routes",
        "error",
        "/ws/{room} and /news behind the mount of StaticFiles at /; /a behind the WebSocket route of b at /{c}. Routes",
        but(
            app={
                "hidden_routes": (
                    Hidden(path="/ws/{room}", behind="the mount of StaticFiles", at="/"),
                    Hidden(path="/a", behind="the WebSocket route of b", at="/{c}"),
                    Hidden(path="/news", behind="the mount of StaticFiles", at="/"),
                )
            }
        ),
    ),
    ("on-event-ignored", "error", "warm_up will never", but(app={"ignored_hooks": ("warm_up",)})),
    ("on-event-ignored", "error", "a, b and c will never", but(app={"ignored_hooks": ("a", "b", "c")})),
    ("mounted-lifespan", "warning", "one at /api has some", but(app={"mounted": (Mounted(path="/api"),)})),
    (
        "mounted-lifespan",
        "warning",
        "one at /api has some",
        but(app={"mounted": (Mounted(path="/api", has_rooms=True),)}),
    ),
    (
        "mounted-lifespan",
        "error",
        "attached to the one at /api",
        but(app={"start": Start.UNSEEN, "mounted": (Mounted(path="/api", has_rooms=True),)}),
    ),
    ("http-origins-open", "warning", "every page in the world", but(settings={"allowed_origins": ("*",)})),
    (
        "send-wrapped",
        "warning",
        "Loud passes a `send` of its own to WebSockets. Each message then costs more CPU for each member. If it passes",
        but(app={"came_through": False, "send_wrappers": ("Loud",)}),
    ),
    (
        "send-wrapped",
        "warning",
        "but one of shop.Loud. Of the middleware of the app, this passes one of its own: Loud and Loader. Each message",
        but(app={"arriving_send": "shop.Loud", "send_wrappers": ("Loud", "Loader")}),
    ),
    (
        "send-wrapped",
        "warning",
        "but one of otel.send. No middleware of the app passes one of its own: this is around the app, or has patched",
        but(app={"arriving_send": "otel.send"}),
    ),
    (
        "send-wrapped",
        "warning",
        "costs more CPU for each member. The `receive` that comes with it does not say what it wraps",
        but(app={"arriving_send": "otel.send", "arriving_receive_is_lost": True}),
    ),
    ("outer-layer", "note", "is wrapped in Sentry. Whether", but(app={"outer_layers": ("Sentry",)})),
    (
        "outer-layer",
        "note",
        "wrapped in Sentry, which was not looked into",
        but(app={"outer_layers": ("Sentry",), "came_through": False}),
    ),
    ("info-unheard", "note", "`logging.basicConfig(level=logging.INFO)` where the app", but(info_is_heard=False)),
    ("uvicorn-missing", "note", "not installed", but(without=["server"])),
    (
        "workers-without-redis",
        "error",
        "4 workers and no Redis",
        but(rooms={"backend": None, "joins_processes": False}),
    ),
    (
        "workers-without-redis",
        "error",
        "4 workers and MemoryBackend",
        but(rooms={"backend": "MemoryBackend", "joins_processes": False}),
    ),
    ("lifespan-off", "error", "--lifespan off", but(server={"lifespan": "off"})),
    ("websockets-missing", "error", "uvicorn[standard]", but(server={"websockets": None})),
    ("stop-unlimited", "warning", "is not set", but(server={"graceful_timeout": None})),
    ("stop-cut-short", "warning", "send_timeout and a quarter of it is 12.5 s", but(server={"graceful_timeout": 12})),
    ("stop-cut-short", "warning", "Set it to 65", but(settings={"drain_timeout": 60})),
    ("stop-cut-short", "warning", "lower disconnect_grace", but(settings={"disconnect_grace": 30})),
    ("deflate-memory", "note", "twice the memory", but(server={"per_message_deflate": True})),
    ("compression-off", "warning", "compress_min_bytes=512 has no effect", but(settings={"compress_min_bytes": 512})),
    ("max-size", "warning", "up to 1000 bytes", but(server={"max_size": 1000})),
    ("max-size", "note", "up to 16 MiB", but(server={"max_size": 16 * MIB})),
    ("inbox-outlives-ping", "warning", "1013, which says why", but(settings={"inbox_timeout": 20})),
    ("no-pings", "warning", "vanished", but(server={"ping_interval": None})),
    ("proxy-closes-idle", "warning", "most proxies", but(server={"ping_interval": 60})),
    (
        "proxy-closes-idle",
        "error",
        "--ws-ping-interval 5",
        but(proxy_timeout=15, server={"trusted_proxies": ("10.1.2.3",)}),
    ),
    ("proxy-not-trusted", "note", "on this machine", but(proxy_timeout=60)),
    ("proxy-not-trusted", "warning", "--no-proxy-headers", but(proxy_timeout=60, server={"proxy_headers": False})),
    ("forwarded-from-anyone", "warning", "chooses the address", but(server={"trusted_proxies": ("*",)})),
    ("wire-unknown", "note", "uvicorn 0.99.0 was not verified", but(server={"version": "0.99.0"})),
    ("wire-unknown", "note", "uvicorn 0.30.1 was not verified", but(server={"version": "0.30.1"})),
    ("wire-unknown", "note", "through ASGI with wsproto.WS:", but(server={"websockets": "wsproto.WS"})),
    ("too-old", "error", "fastapi 0.99.1 (needs 0.121.0)", but(versions={"fastapi": "0.99.1"})),
    ("redis-unreachable", "error", "refused", replace(WELL, broker=Unreachable(place="redis:6379", reason="refused"))),
    ("redis-silent", "note", "anything about itself", but(broker={"is_told": False})),
    ("redis-silent", "note", "its limits for listeners", but(broker={"output_limit": None})),
    ("redis-too-old", "error", "Redis 6.0.16 is too old", but(broker={"version": "6.0.16", "compatible": "6.0.16"})),
    (
        "redis-too-old",
        "error",
        "a cluster needs Redis 7.0",
        but(broker={"version": "6.2.1", "compatible": "6.2.1", "is_cluster": True}),
    ),
    ("redis-replica", "error", "is a replica", but(broker={"role": "slave"})),
    (
        "redis-output-limit",
        "warning",
        "pubsub 32mb 8mb 60",
        but(broker={"output_limit": OutputLimit(hard=MIB, soft=MIB, seconds=60)}),
    ),
    (
        "redis-output-limit",
        "warning",
        "when 8 MiB wait",
        but(broker={"output_limit": OutputLimit(hard=0, soft=8 * MIB, seconds=0)}),
    ),
    ("redis-output-limit", "warning", "pubsub 128mb 32mb 60", but(settings={"max_envelope_bytes": 64 * MIB})),
    ("redis-output-limit", "note", "no limit", but(broker={"output_limit": OutputLimit(hard=0, soft=0, seconds=0)})),
    ("redis-eviction", "warning", "allkeys-lru", but(broker={"eviction": "allkeys-lru", "max_memory": MIB})),
    ("redis-shared", "note", "holds 7 keys", but(broker={"foreign_keys": 7})),
    ("redis-open", "note", "without a password", but(broker={"is_local": False})),
]

SILENT = [
    ("no-rooms", WELL),
    ("not-started", but(without=["rooms"], app={"start": Start.NOBODY})),
    ("not-started", but(rooms={"needs_start": False}, app={"start": Start.NOBODY})),
    ("not-started", but(app={"start": Start.OWN_LIFESPAN})),
    ("http-origins-open", but(without=["rooms"])),
    ("http-origins-open", but(settings={"allowed_origins": ("https://example.com",)})),
    ("send-wrapped", but(without=["rooms"], app={"send_wrappers": ("Any",)})),
    ("send-wrapped", but(settings={"wire": "asgi"}, app={"send_wrappers": ("Any",)})),
    ("send-wrapped", but(app={"arriving_receive_is_lost": True})),
    ("info-unheard", but(without=["rooms"], info_is_heard=False)),
    ("workers-without-redis", but(rooms={"joins_processes": False}, server={"workers": 1})),
    ("workers-without-redis", but(without=["rooms"])),
    ("stop-unlimited", but(without=["server"])),
    ("stop-cut-short", but(server={"graceful_timeout": None})),
    ("stop-cut-short", but(without=["rooms"], server={"graceful_timeout": 1})),
    ("stop-cut-short", but(settings={"drain_timeout": None, "send_timeout": 1}, server={"graceful_timeout": 6})),
    ("deflate-memory", but(settings={"compress_min_bytes": 512}, server={"per_message_deflate": True})),
    ("compression-off", but(settings={"compress_min_bytes": 512}, server={"per_message_deflate": True})),
    ("max-size", but(settings={"max_message_bytes": None}, server={"max_size": 16 * MIB})),
    ("max-size", but(server={"max_size": MIB - 1})),
    ("inbox-outlives-ping", but(settings={"inbox_timeout": 20}, server={"ping_interval": None})),
    ("inbox-outlives-ping", but(settings={"inbox_timeout": 20}, server={"ping_timeout": None})),
    ("no-pings", but(server={"ping_interval": None}, settings={"heartbeat_interval": 20})),
    ("no-pings", but(without=["server"])),
    ("proxy-closes-idle", but(without=["server", "rooms"], proxy_timeout=1)),
    ("proxy-closes-idle", but(proxy_timeout=75, server={"ping_interval": 60})),
    ("proxy-closes-idle", but(proxy_timeout=30, server={"ping_interval": 60}, settings={"heartbeat_interval": 20})),
    ("proxy-not-trusted", but(without=["server"], proxy_timeout=60)),
    ("proxy-not-trusted", but(proxy_timeout=60, server={"trusted_proxies": ("10.0.0.0/8",)})),
    ("forwarded-from-anyone", but(server={"trusted_proxies": ("*",), "proxy_headers": False})),
    ("wire-unknown", but(settings={"wire": "asgi"}, server={"version": "0.99.0"})),
    ("wire-unknown", but(without=["rooms"])),
    ("wire-unknown", but(server={"websockets": None, "version": "0.99.0"})),
    ("too-old", but(versions={"fastapi": "0.121.0", "uvloop": "0.1"})),
    ("redis-silent", but(without=["broker"])),
    ("redis-too-old", but(broker={"compatible": "6.2.0"})),
    ("redis-too-old", but(broker={"compatible": ""})),
    ("redis-too-old", but(broker={"compatible": "1.0", "is_told": False})),
    ("redis-replica", but(broker={"role": "slave", "is_cluster": True})),
    ("redis-output-limit", but(broker={"output_limit": OutputLimit(hard=0, soft=MIB, seconds=60)})),
    ("redis-output-limit", but(without=["rooms"])),
    ("redis-eviction", but(broker={"eviction": "allkeys-lru"})),
    ("redis-eviction", but(broker={"max_memory": MIB})),
    ("redis-shared", but(broker={"foreign_keys": 7}, settings={"key_prefix": "shop"})),
    ("redis-shared", but(without=["rooms"], broker={"foreign_keys": 7})),
    ("redis-open", but(broker={"is_local": False, "has_password": True})),
]


def test_nothing_is_said_when_all_is_well():
    assert judge(WELL) == {}


@pytest.mark.parametrize(("name", "severity", "words", "situation"), SPEAKING)
def test_a_check_speaks(name, severity, words, situation):
    finding = CHECKS[name](situation)
    assert finding.severity == severity
    assert words in f"{finding.problem} {finding.advice}"
    assert judge(situation)[name] == finding


@pytest.mark.parametrize(("name", "situation"), SILENT)
def test_a_check_is_silent(name, situation):
    assert CHECKS[name](situation) is None


def test_each_check_is_tried():
    assert {name for name, *_ in SPEAKING} == set(CHECKS)


def test_the_worst_comes_first():
    situation = but(server={"per_message_deflate": True, "graceful_timeout": None, "lifespan": "off"})
    assert [one.severity for one in judge(situation).values()] == list(Severity)


def test_what_is_ignored_is_not_said():
    assert list(judge(but(server={"lifespan": "off", "websockets": None}), ["lifespan-off"])) == ["websockets-missing"]


def test_the_verified_versions_are_those_of_the_wire():
    source = (ROOT / "tests" / "wire" / "test_supported_servers.py").read_text()
    (verified,) = re.findall(r"^VERIFIED = \((.*)\)$", source, re.MULTILINE)
    assert verified == ", ".join(f'"{one}"' for one in VERIFIED_UVICORN)


def test_the_page_has_every_check_with_its_severities():
    rows = re.findall(
        r"^\| `([a-z][\w-]+)` \| ([\w, ]+) \|", (ROOT / "docs/guides/doctor.md").read_text(), re.MULTILINE
    )
    severities = {
        name: ", ".join(sorted({severity for one, severity, *_ in SPEAKING if one == name}, key=list(Severity).index))
        for name in CHECKS
    }
    assert dict(rows) == severities
