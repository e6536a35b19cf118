"""How uvicorn would be started: its own command line is read by its own parser, so that defaults and variables agree.

What `uvicorn main:app --workers 4` would do follows from the options, from `UVICORN_…`, `WEB_CONCURRENCY` and
`FORWARDED_ALLOW_IPS`, and from a file of variables. uvicorn is no dependency of this package, and need not be there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi_rooms.doctor.situation import Server, Uvicorn

_FOR_CONFIG = (
    "ws",
    "ws_max_size",
    "ws_ping_interval",
    "ws_ping_timeout",
    "ws_per_message_deflate",
    "lifespan",
    "env_file",
    "workers",
    "proxy_headers",
    "forwarded_allow_ips",
    "timeout_graceful_shutdown",
)
"""What is taken over into uvicorn's `Config`; the rest, a password of a key among it, is nobody's business here."""


ANOTHER = "If this starts another server, name that: --server gunicorn, granian, hypercorn, h2corn or other."


class CannotRead(Exception):  # noqa: N818 - a finding about the command line
    """The server would not start with this command line."""


class NothingToDo(Exception):  # noqa: N818 - no failure
    """The command line asked uvicorn for something that it has answered, such as its version."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a command line starts."""

    target: str
    folder: str
    """Where the app is looked for; "": the working directory."""
    is_factory: bool
    server: Server | None


def read_command_line(words: Sequence[str]) -> Started:
    """Read what would stand behind `uvicorn`.

    Sets the variables of `--env-file` in this process, as uvicorn does before it imports an app.

    Raises:
        CannotRead: uvicorn would not take it, or there is no uvicorn and this is more than the name of an app.
        NothingToDo: It was an order to print something.
    """
    try:
        import uvicorn  # noqa: PLC0415 - no dependency
        from click import ClickException  # noqa: PLC0415 - it comes with uvicorn
        from click.exceptions import Exit, NoSuchOption  # noqa: PLC0415
        from uvicorn.main import main  # noqa: PLC0415
    except ImportError:
        return _without_uvicorn(words)
    try:
        options = main.make_context("uvicorn", list(words)).params
        config = uvicorn.Config(options["app"], log_config=None, **{key: options[key] for key in _FOR_CONFIG})
    except Exit as end:
        raise NothingToDo from end
    except NoSuchOption as refusal:
        raise CannotRead(f"uvicorn: {refusal.format_message()} {ANOTHER}") from refusal
    except ClickException as refusal:
        raise CannotRead(refusal.format_message()) from refusal
    except (ImportError, ValueError) as failure:  # no python-dotenv; WEB_CONCURRENCY is no number
        raise CannotRead(str(failure)) from failure
    server = replace(
        _facts(config),
        workers=1 if options["reload"] else config.workers,
        unix_socket=options["uds"] is not None,
        log_config=options["log_config"],
    )
    return Started(options["app"], options["app_dir"], options["factory"], server)


def uvicorn_in_gunicorn(
    gunicorn: Server, worker_class: str, killed_after: float | None, settings: Mapping[str, Any]
) -> Uvicorn | None:
    """Return what uvicorn does as a worker of gunicorn, which passes no option on; None if there is none.

    Args:
        gunicorn: How that would be started.
        worker_class: Its workers.
        killed_after: How long it lets a worker stop, in seconds.
        settings: What the worker class gives to uvicorn.
    """
    try:
        import uvicorn  # noqa: PLC0415 - no dependency
    except ImportError:
        return None
    told = {name: settings[name] for name in _FOR_CONFIG if name in settings and name not in {"workers", "env_file"}}
    trusted = list(gunicorn.trusted_proxies)
    config = uvicorn.Config("", log_config=None, workers=1, **{"forwarded_allow_ips": trusted, **told})
    return replace(
        _facts(config),
        name=gunicorn.name,
        workers=gunicorn.workers,
        unix_socket=gunicorn.unix_socket,
        log_config=gunicorn.log_config,
        worker_class=worker_class,
        killed_after=killed_after,
    )


def _facts(config: Any) -> Uvicorn:
    from uvicorn import __version__  # noqa: PLC0415 - no dependency

    said = config.forwarded_allow_ips
    trusted = tuple(one.strip() for one in (said.split(",") if isinstance(said, str) else said))
    return Uvicorn(
        version=__version__,
        websockets=_websockets(config),
        ping_interval=config.ws_ping_interval or None,
        ping_timeout=config.ws_ping_timeout,
        per_message_deflate=config.ws_per_message_deflate,
        max_size=config.ws_max_size,
        graceful_timeout=config.timeout_graceful_shutdown,
        proxy_headers=config.proxy_headers,
        trusted_proxies=trusted,
        trusts_unix_socket=trusted == ("*",),  # no address is on any other list
        lifespan=config.lifespan,
    )


def _websockets(config: Any) -> str | None:
    """Return the class that uvicorn would serve WebSockets with."""
    from uvicorn.config import WS_PROTOCOLS  # noqa: PLC0415 - no dependency
    from uvicorn.importer import ImportFromStringError, import_from_string  # noqa: PLC0415

    try:
        found = import_from_string(WS_PROTOCOLS.get(config.ws, config.ws))
    except (ImportError, ImportFromStringError):
        return None
    return None if found is None else f"{found.__module__}.{found.__qualname__}"


def _without_uvicorn(words: Sequence[str]) -> Started:
    target, *options = words or [os.environ.get("UVICORN_APP", "")]
    if options:
        raise CannotRead(
            f"uvicorn is not installed here, so {' '.join(options)} cannot be checked: leave it out, or run this in "
            f"the environment that the server runs in. {ANOTHER}"
        )
    if not target:
        raise CannotRead("name the app: MODULE:APP, such as main:app")
    return Started(target, "", is_factory=False, server=None)
