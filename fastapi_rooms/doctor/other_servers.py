"""How a server that is not uvicorn would be started, by the words that it understands itself."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi_rooms.doctor.server_facts import CannotRead, Started, read_command_line, uvicorn_in_gunicorn
from fastapi_rooms.doctor.server_words import Told, read_options
from fastapi_rooms.doctor.situation import Interface, Server
from fastapi_rooms.doctor.worker_class import uvicorn_settings

_ASGI_WORKERS = {"asgi", "gunicorn.workers.gasgi.ASGIWorker"}
_WSGI_WORKERS = {"sync", "gthread", "eventlet", "gevent", "gevent_wsgi", "gevent_pywsgi", "tornado"}
_RENAMED = {"logconfig": "log_config", "logconfig_json": "log_config_json", "raw_env": "env"}
"""What options are called in files."""
_LOCAL = "127.0.0.1,::1"
KILLED_AFTER = 30.0
"""The default of gunicorn's --graceful-timeout."""
H2CORN_PINGS, H2CORN_PONGS = 60.0, 30.0
"""Its defaults."""


def _gunicorn(line: Sequence[str]) -> Started:
    by_line, app, unread = read_options("gunicorn", line)
    by_variable, _, more_unread = read_options("gunicorn", _split(os.environ.get("GUNICORN_CMD_ARGS", "")))
    told = Told([by_line, by_variable], [*unread, *more_unread])
    if file := told.text("config") or ("gunicorn.conf.py" if Path("gunicorn.conf.py").exists() else ""):
        told.add_file(file.removeprefix("file:"), _RENAMED)
    told.layers.append(_variables(workers="WEB_CONCURRENCY", forwarded_allow_ips="FORWARDED_ALLOW_IPS"))
    os.environ |= dict(one.split("=", 1) for one in told.each("env") if "=" in one)
    sys.path[:0] = told.listed("pythonpath")
    _enter(told.text("chdir"))
    return _started(app or told.text("wsgi_app"), "application", told, _of_gunicorn(told))


def _of_gunicorn(told: Told) -> Server:
    worker = "…" if told.is_unknown("worker_class") else told.text("worker_class", "sync")
    trusted = tuple(told.listed("forwarded_allow_ips") or _LOCAL.split(","))
    server = Server(
        kind="gunicorn",
        name=f"gunicorn -k {worker}",
        workers=told.workers(),
        unix_socket=_is_unix(told.listed("bind")),
        trusted_proxies=trusted,
        log_config=_log_config(told),
    )
    if worker in _ASGI_WORKERS:
        return replace(server, proxy_headers=False, lifespan=told.text("asgi_lifespan", "auto"))
    if worker in _WSGI_WORKERS or worker.startswith("gunicorn.workers."):
        return replace(server, interface=Interface.WSGI)
    settings = uvicorn_settings(worker)
    killed_after = told.number("graceful_timeout", KILLED_AFTER)
    uvicorn = None if settings is None else uvicorn_in_gunicorn(server, worker, killed_after, settings)
    return uvicorn or replace(server, kind="other")


def _granian(line: Sequence[str]) -> Started:
    by_line, app, unread = read_options("granian", line)
    by_variable = _variables(
        ws="GRANIAN_WEBSOCKETS",
        **{
            name: f"GRANIAN_{name.upper()}"
            for name in ("workers", "uds", "interface", "factory", "working_dir", "env_files", "log_config")
        },
    )
    told = Told([by_line, by_variable], unread)
    for file in told.listed("env_files"):
        _load_variables(file, told)
    interface = told.text("interface", "rsgi").lower()
    if interface not in {"asgi", "asginl", "rsgi", "wsgi"}:
        raise CannotRead(f"--interface {interface}: granian knows asgi, asginl, rsgi and wsgi")
    server = Server(
        kind="granian",
        name="granian",
        workers=told.workers(),
        unix_socket=bool(told.text("uds")),
        proxy_headers=False,
        interface=Interface.ASGI if interface.startswith("asgi") else Interface(interface),
        lifespan="off" if interface == "asginl" else "auto",
        serves_websockets=told.is_on("ws", default=True),
        log_config=_log_config(told),
    )
    return _started(app, "app", told, server, told.text("working_dir"))


def _hypercorn(line: Sequence[str]) -> Started:
    by_line, app, unread = read_options("hypercorn", line)
    told = Told([by_line], unread)
    if file := told.text("config"):
        # A file without a prefix is TOML, whatever it is called.
        told.add_file(file.removeprefix("file:"), _RENAMED, is_toml=not file.startswith("file:"))
    worker = told.text("worker_class", "asyncio")
    server = Server(
        kind="hypercorn",
        name="hypercorn",
        workers=told.workers(),
        unix_socket=_is_unix(told.listed("bind") + told.listed("insecure_bind")),
        proxy_headers=False,
        ping_interval=told.number("websocket_ping_interval"),
        ping_option="--websocket-ping-interval",
        interface=Interface.TRIO if worker == "trio" else Interface.ASGI,
        log_config=_log_config(told),
    )
    return _started((app or "").removeprefix("asgi:"), "app", told, server)


def _h2corn(line: Sequence[str]) -> Started:
    by_line, app, unread = read_options("h2corn", line)
    read = (
        *("config", "workers", "bind", "lifespan", "proxy_headers", "forwarded_allow_ips"),
        *("websocket_ping_interval", "websocket_ping_timeout"),
    )
    told = Told([by_line, _variables(**{name: f"H2CORN_{name.upper()}" for name in read})], unread)
    if file := told.text("config"):
        told.add_file(file, {}, is_toml=True)
    if file := told.text("env_file"):
        _load_variables(file, told)
    trusted = tuple(told.listed("forwarded_allow_ips") or [*_LOCAL.split(","), "unix"])
    server = Server(
        kind="h2corn",
        name="h2corn",
        workers=told.workers(),
        unix_socket=_is_unix(told.listed("bind")),
        proxy_headers=told.is_on("proxy_headers"),
        trusted_proxies=trusted,
        trusts_unix_socket=bool({"*", "unix"} & set(trusted)),
        ping_interval=told.number("websocket_ping_interval", H2CORN_PINGS) or None,
        ping_timeout=told.number("websocket_ping_timeout", H2CORN_PONGS) or None,
        ping_option="--websocket-ping-interval",
        lifespan=told.text("lifespan", "auto"),
    )
    return _started(app, "", told, server, told.text("app_dir"))


def _other(line: Sequence[str]) -> Started:
    by_line, app, unread = read_options("other", line)
    told = Told([by_line], unread)
    is_unix = bool(told.text("uds")) or _is_unix(told.listed("bind"))
    server = Server(kind="other", name="another server", workers=told.workers(), unix_socket=is_unix)
    return _started(app, "", told, server, told.text("app_dir"))


SERVERS: Mapping[str, Callable[[Sequence[str]], Started]] = {
    "uvicorn": read_command_line,
    "gunicorn": _gunicorn,
    "granian": _granian,
    "hypercorn": _hypercorn,
    "h2corn": _h2corn,
    "other": _other,
}
"""Who reads the command line of which server. All raise `CannotRead`."""


def _started(app: str | None, default: str, told: Told, server: Server, folder: str = "") -> Started:
    """Return what is started.

    Args:
        app: What names it.
        default: What an app is called that is not named behind its module; "": it has to be.
        told: What the server is told.
        server: What was found about it.
        folder: Where the module is.

    Raises:
        CannotRead: Nothing names an app.
    """
    if not app:
        raise CannotRead("name the app: MODULE:APP, such as main:app")
    module, colon, name = app.partition(":")
    if not colon and default:
        name = default
    if re.search(r"[/\\]|\.py$", module):  # the path of a file
        folder, module = str(Path(folder, module).parent.resolve()), Path(module).stem
    is_call = name.endswith("()")
    target = f"{module}:{name.removesuffix('()')}" if name else module
    return Started(
        target,
        folder,
        is_factory=is_call or told.is_on("factory"),
        server=replace(server, not_understood=tuple(told.unread)),
    )


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as failure:
        raise CannotRead(f"$GUNICORN_CMD_ARGS: {failure}") from failure


def _log_config(told: Told) -> str | None:
    """Return what logging is configured with; if that is not a file, its name, in which nobody can read."""
    if told.get("logconfig_dict") is not None or told.is_unknown("logconfig_dict"):
        return "logconfig_dict"
    return told.text("log_config_json") or told.text("log_config") or None


def _is_unix(binds: Sequence[str]) -> bool:
    return any(one.startswith("unix:") for one in binds)


def _variables(**names: str) -> Mapping[str, Any]:
    return {option: os.environ[name] for option, name in names.items() if os.environ.get(name)}


def _enter(folder: str) -> None:
    """Go to a directory, as gunicorn does before it imports the app."""
    if folder:
        try:
            os.chdir(folder)
        except OSError as failure:
            raise CannotRead(f"--chdir {folder}: {failure.strerror}") from failure


def _load_variables(file: str, told: Told) -> None:
    """Set the variables of a file in this process, as servers do before they import an app."""
    with suppress(ImportError):
        from dotenv import load_dotenv  # noqa: PLC0415 - no dependency

        load_dotenv(file)
        return
    told.unread.append(f"{file}, since python-dotenv is not installed here")
