"""Each check speaks when it should, and is silent otherwise."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from situations import MIB, WELL, but, under

from fastapi_rooms.doctor.checks_server import VERIFIED_UVICORN
from fastapi_rooms.doctor.findings import Severity
from fastapi_rooms.doctor.judging import CHECKS, judge
from fastapi_rooms.doctor.situation import Hidden, Interface, Mounted, OutputLimit, Rooms, Start, Unreachable
from fastapi_rooms.engine.outbound.wire_choice import WITHOUT_SOCKET

ROOT = Path(__file__).parents[2]


def behind_proxy(kind, *, proxy_timeout=60, **server):
    """A server that reads no headers, behind a proxy."""
    return replace(under(kind, proxy_headers=False, **server), proxy_timeout=proxy_timeout)


def beats(kind, *, proxy_timeout=None):
    """A server without pings, or none at all, and seldom heartbeats."""
    settings = {"heartbeat_interval": 60}
    return replace(
        but(settings=settings, without=["server"]) if kind is None else under(kind, settings=settings),
        proxy_timeout=proxy_timeout,
    )


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
    (
        "workers-without-redis",
        "error",
        "comes from --workers or from $GRANIAN_WORKERS.",
        replace(under("granian", workers=2), rooms=Rooms()),
    ),
    (
        "workers-without-redis",
        "error",
        "comes from --workers, from its file or from $WEB_CONCURRENCY, which",
        but(server={"name": "gunicorn -k x"}, rooms={"joins_processes": False}),
    ),
    (
        "workers-without-redis",
        "error",
        "comes from --workers.",
        replace(under("other", workers=2), rooms=Rooms()),
    ),
    ("lifespan-off", "error", "--lifespan off", but(server={"lifespan": "off"})),
    ("lifespan-off", "error", "--asgi-lifespan off", under("gunicorn", lifespan="off")),
    ("lifespan-off", "error", "--interface asginl: nothing that", under("granian", lifespan="off")),
    ("lifespan-off", "error", "Give it --interface asgi.", under("granian", lifespan="off")),
    ("websockets-missing", "error", "granian was told to refuse", under("granian", serves_websockets=False)),
    ("websockets-missing", "error", "uvicorn[standard]", but(server={"websockets": None})),
    ("stop-unlimited", "warning", "is not set", but(server={"graceful_timeout": None})),
    ("stop-cut-short", "warning", "send_timeout and a quarter of it is 12.5 s", but(server={"graceful_timeout": 12})),
    ("stop-cut-short", "warning", "Set it to 65", but(settings={"drain_timeout": 60})),
    ("stop-cut-short", "warning", "lower disconnect_grace", but(settings={"disconnect_grace": 30})),
    ("stop-cut-short", "warning", "may take 22.5 s: drain_timeout, and then", but(server={"killed_after": 22.5})),
    ("stop-cut-short", "warning", "Set it to 27, or lower drain_timeout", but(server={"killed_after": 5})),
    ("deflate-memory", "note", "twice the memory", but(server={"per_message_deflate": True})),
    (
        "deflate-memory",
        "note",
        "Start uvicorn with --ws-per-message-deflate false; or",
        but(server={"per_message_deflate": True}),
    ),
    (
        "deflate-memory",
        "note",
        'Worker with `CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | {"ws_per_message_deflate": False}`; or',
        but(server={"per_message_deflate": True, "worker_class": "uvicorn_worker.UvicornWorker"}),
    ),
    ("compression-off", "warning", "compress_min_bytes=512 has no effect", but(settings={"compress_min_bytes": 512})),
    ("max-size", "warning", "up to 1000 bytes", but(server={"max_size": 1000})),
    ("max-size", "note", "up to 16 MiB", but(server={"max_size": 16 * MIB})),
    (
        "max-size",
        "warning",
        "max_message_bytes of /upload, 64 MiB, is never reached",
        but(rooms={"message_bytes_of_routes": (("/ws", 8), ("/upload", 64 * MIB))}, server={"max_size": 16 * MIB}),
    ),
    (
        "max-size",
        "warning",
        "--ws-max-size 9000, or lower max_message_bytes of /upload",
        but(
            rooms={"message_bytes_of_routes": (("/upload", 9000),)},
            settings={"max_message_bytes": None},
            server={"max_size": 8000},
        ),
    ),
    (
        "max-size",
        "note",
        "--ws-max-size 1048576.",
        but(rooms={"message_bytes_of_routes": (("/upload", MIB),)}, server={"max_size": 16 * MIB}),
    ),
    ("inbox-outlives-ping", "warning", "1013, which says why", but(settings={"inbox_timeout": 20})),
    ("no-pings", "warning", "vanished", but(server={"ping_interval": None})),
    ("proxy-closes-idle", "warning", "most proxies", but(server={"ping_interval": 60})),
    (
        "proxy-closes-idle",
        "error",
        "--ws-ping-interval 5",
        but(proxy_timeout=15, server={"trusted_proxies": ("10.1.2.3",)}),
    ),
    (
        "proxy-closes-idle",
        "error",
        "or start hypercorn with --websocket-ping-interval 10.",
        behind_proxy("hypercorn", ping_interval=30, ping_option="--websocket-ping-interval", proxy_timeout=30),
    ),
    ("proxy-closes-idle", "error", "or set heartbeat_interval to 10.", beats("granian", proxy_timeout=30)),
    ("proxy-closes-idle", "error", "or set heartbeat_interval to 10.", beats(None, proxy_timeout=30)),
    ("proxy-closes-idle", "warning", "Lower heartbeat_interval, or say", beats("granian")),
    ("proxy-closes-idle", "warning", "Lower heartbeat_interval, or say", beats(None)),
    ("proxy-not-trusted", "note", "on this machine", but(proxy_timeout=60)),
    ("proxy-not-trusted", "warning", "--no-proxy-headers", but(proxy_timeout=60, server={"proxy_headers": False})),
    (
        "proxy-not-trusted",
        "note",
        "so that max_connections_per_address=5 counts all of them as one; and behind TLS",
        but(proxy_timeout=60, settings={"max_connections_per_address": 5}),
    ),
    (
        "proxy-not-trusted",
        "warning",
        "given to --forwarded-allow-ips. No client has an address then, so that limits per address count nothing; and",
        but(server={"unix_socket": True, "trusted_proxies": ("10.0.0.0/8",)}),
    ),
    (
        "proxy-not-trusted",
        "warning",
        "so that max_connections_per_address=5 counts nothing; and behind TLS the scheme is `http`",
        but(server={"unix_socket": True}, settings={"max_connections_per_address": 5}),
    ),
    (
        "proxy-not-trusted",
        "warning",
        "Start uvicorn with --forwarded-allow-ips '*', let nobody but the proxy reach the socket, and have the proxy",
        but(server={"unix_socket": True}, without=["rooms"]),
    ),
    ("proxy-not-trusted", "warning", "--no-proxy", but(server={"unix_socket": True, "proxy_headers": False})),
    ("proxy-not-trusted", "warning", "or name `unix` there, too", under("h2corn", unix_socket=True)),
    ("proxy-not-trusted", "note", "Start it with --proxy-headers.", behind_proxy("h2corn")),
    ("proxy-not-trusted", "note", "ProxyFixMiddleware(app)`, if", behind_proxy("hypercorn")),
    ("proxy-not-trusted", "note", "count nothing; and behind", under("granian", unix_socket=True, proxy_headers=False)),
    ("proxy-not-trusted", "note", "count all of them as one. Use -k", behind_proxy("gunicorn")),
    (
        "forwarded-from-anyone",
        "note",
        "proxy appends to what it gets. Then it chooses its address, and so gets around limits per address. Have the",
        but(server={"unix_socket": True, "trusted_proxies": ("*",)}),
    ),
    (
        "forwarded-from-anyone",
        "warning",
        "gets around max_connections_per_address=5. Have",
        but(server={"unix_socket": True, "trusted_proxies": ("*",)}, settings={"max_connections_per_address": 5}),
    ),
    (
        "forwarded-from-anyone",
        "warning",
        "gets around max_connections_per_address=5. So does",
        but(server={"trusted_proxies": ("*",)}, settings={"max_connections_per_address": 5}),
    ),
    (
        "forwarded-from-anyone",
        "warning",
        "gets around limits",
        but(server={"trusted_proxies": ("*",)}, without=["rooms"]),
    ),
    ("forwarded-from-anyone", "warning", "chooses the address", but(server={"trusted_proxies": ("*",)})),
    ("wire-unknown", "note", "uvicorn 0.99.0 was not verified", but(server={"version": "0.99.0"})),
    ("wire-unknown", "note", "uvicorn 0.30.1 was not verified", but(server={"version": "0.30.1"})),
    ("wire-unknown", "note", "through ASGI with wsproto.WS:", but(server={"websockets": "wsproto.WS"})),
    ("no-asgi", "error", "-k uvicorn_worker.UvicornWorker", under("gunicorn", interface=Interface.WSGI)),
    ("no-asgi", "error", "unless it is told otherwise", under("granian", interface=Interface.RSGI)),
    ("no-asgi", "error", "speaks WSGI with the app here, which", under("granian", interface=Interface.WSGI)),
    ("no-asgi", "error", "rooms are made for asyncio", under("hypercorn", interface=Interface.TRIO)),
    ("server-lacks", "warning", f"{WITHOUT_SOCKET}; a client that vanished", under("granian")),
    ("server-lacks", "warning", "not noticed, since the server sends no pings; a stop cuts off", under("granian")),
    ("server-lacks", "warning", "Set RoomsSettings(heartbeat_interval=30): your clients", under("granian")),
    ("server-lacks", "warning", "since the server waits for no pong;", under("hypercorn", ping_interval=20)),
    ("server-lacks", "warning", "than uvicorn: a client that vanished", under("gunicorn")),
    ("server-lacks", "note", "lets it; a stop closes all clients", under("h2corn", ping_interval=60, ping_timeout=30)),
    ("server-lacks", "note", "time. To let clients go", under("granian", settings={"heartbeat_interval": 20})),
    ("server-lacks", "note", '`{"type":"pong"}`, unless it pings clients', under("other")),
    ("server-lacks", "note", "drained. If a stop logs no", under("other", settings={"heartbeat_interval": 20})),
    (
        "not-understood",
        "note",
        "of what granian is told: --foo, --bar. Whatever",
        under("granian", not_understood=("--foo", "--bar")),
    ),
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
    ("max-size", but(rooms={"message_bytes_of_routes": (("/upload", 8 * MIB),)}, server={"max_size": 16 * MIB})),
    ("max-size", but(rooms={"message_bytes_of_routes": (("/upload", None),)}, server={"max_size": 16 * MIB})),
    ("inbox-outlives-ping", but(settings={"inbox_timeout": 20}, server={"ping_interval": None})),
    ("inbox-outlives-ping", but(settings={"inbox_timeout": 20}, server={"ping_timeout": None})),
    ("no-pings", but(server={"ping_interval": None}, settings={"heartbeat_interval": 20})),
    ("no-pings", but(without=["server"])),
    ("proxy-closes-idle", but(without=["server", "rooms"], proxy_timeout=1)),
    ("proxy-closes-idle", but(proxy_timeout=75, server={"ping_interval": 60})),
    ("proxy-closes-idle", but(proxy_timeout=30, server={"ping_interval": 60}, settings={"heartbeat_interval": 20})),
    ("proxy-not-trusted", but(without=["server"], proxy_timeout=60)),
    ("proxy-not-trusted", but(server={"unix_socket": True, "trusted_proxies": ("*",), "trusts_unix_socket": True})),
    ("proxy-not-trusted", under("h2corn", unix_socket=True, trusts_unix_socket=True)),
    ("proxy-not-trusted", under("other", unix_socket=True)),
    (
        "proxy-not-trusted",
        under(
            "granian", app={"outer_layers": ("wrap_asgi_with_proxy_headers",)}, unix_socket=True, proxy_headers=False
        ),
    ),
    ("send-wrapped", under("granian", app={"arriving_send": "otel.send"})),
    ("websockets-missing", under("granian")),
    ("stop-unlimited", but(server={"graceful_timeout": None, "killed_after": 30})),
    ("stop-unlimited", under("granian")),
    ("stop-cut-short", but(server={"graceful_timeout": None, "killed_after": 22.6})),
    ("stop-cut-short", under("granian")),
    ("deflate-memory", under("h2corn")),
    ("max-size", under("h2corn")),
    ("no-pings", under("granian")),
    ("wire-unknown", under("granian")),
    ("uvicorn-missing", under("granian")),
    ("server-lacks", replace(under("granian"), rooms=None)),
    ("server-lacks", under("granian", interface=Interface.RSGI)),
    ("server-lacks", under("granian", serves_websockets=False)),
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
