"""`doctor`: reads its options, has everything looked at and judged, and tells."""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from typing import NoReturn

from fastapi_rooms.doctor.app_facts import backend_of, look_at_app, manager_of
from fastapi_rooms.doctor.broker_facts import ask_broker
from fastapi_rooms.doctor.findings import Finding, Severity
from fastapi_rooms.doctor.handshake import goes_on
from fastapi_rooms.doctor.judging import CHECKS, judge
from fastapi_rooms.doctor.loading import CannotLoad, Loaded, load
from fastapi_rooms.doctor.log_facts import is_info_heard
from fastapi_rooms.doctor.other_servers import SERVERS
from fastapi_rooms.doctor.report import as_json, as_text, printable, wants_colours
from fastapi_rooms.doctor.server_facts import CannotRead, NothingToDo, Started
from fastapi_rooms.doctor.situation import Situation
from fastapi_rooms.doctor.versions import installed, required
from fastapi_rooms.domain.settings import are_seconds

DESCRIPTION = """\
Check an app and its environment, and say what will go wrong and what to do.

Write the command line that starts your server, with this in place of `uvicorn`:

  python -m fastapi_rooms doctor main:app --workers 4 --timeout-graceful-shutdown 30
  python -m fastapi_rooms doctor --server gunicorn -w 4 -k uvicorn_worker.UvicornWorker main:app

All options of uvicorn are understood, and so are UVICORN_..., WEB_CONCURRENCY and FORWARDED_ALLOW_IPS; of gunicorn,
granian, hypercorn and h2corn those that matter, with their variables and files. Of any other server: --workers, --uds.
The app is imported and not started."""

EXIT_CODES = """\
exit codes: 0 no errors, 1 errors (with --strict also warnings), 2 the app or the options cannot be read"""

UNUSABLE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that are not the server's."""
    parser.description, parser.epilog = DESCRIPTION, EXIT_CODES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "python -m fastapi_rooms doctor [OPTIONS] MODULE:APP [OPTIONS OF THE SERVER]"
    parser.add_argument(
        "--server", choices=SERVERS, default="uvicorn", help="whose options the others are; uvicorn's unless you say so"
    )
    parser.add_argument(
        "--proxy-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="there is a proxy, and it closes connections after so many silent seconds (nginx, AWS: 60)",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    parser.add_argument(
        "--ignore", action="append", default=[], choices=CHECKS, metavar="CHECK", help="leave out a check; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print for machines")


def run(options: argparse.Namespace, server_words: Sequence[str]) -> int:
    """Look, judge and tell; return the exit code.

    Args:
        options: What `add_arguments` has added.
        server_words: The rest of the command line: what stands behind the name of the server.
    """
    try:
        started = SERVERS[options.server](server_words)
        with redirect_stdout(sys.stderr):  # what the app prints is not part of the report
            loaded = load(started.target, started.folder, is_factory=started.is_factory)
            situation = asyncio.run(look(started, loaded, options.proxy_timeout))
    except NothingToDo:
        return 0
    except (CannotLoad, CannotRead) as failure:
        print(f"doctor: {failure}", file=sys.stderr)  # noqa: T201 - this is a command
        return UNUSABLE
    findings = judge(situation, options.ignore)
    code = exit_code(findings.values(), strict=options.strict)
    told = (
        as_json(situation, findings, code)
        if options.json
        else as_text(situation, findings, colours=wants_colours(sys.stdout))
    )
    _say(told)
    return code


def leave(code: int) -> NoReturn:
    """End the process, also if a handshake that was left alone goes on: Python would wait for the threads it uses."""
    if goes_on():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _say(text: str) -> None:
    try:
        print(printable(text, sys.stdout), flush=True)  # noqa: T201 - this is a command
    except BrokenPipeError:
        # Whoever reads it has enough, as `head` has. What is still buffered has to go somewhere when Python ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


async def look(started: Started, loaded: Loaded, proxy_timeout: float | None = None) -> Situation:
    """Find out all there is to know."""
    app, rooms = look_at_app(loaded)
    return Situation(
        app=app,
        rooms=rooms,
        server=started.server,
        broker=await ask_broker(backend_of(manager_of(loaded))),
        proxy_timeout=proxy_timeout,
        info_is_heard=is_info_heard(None if started.server is None else started.server.log_config),
        versions=installed(),
        required=required(),
    )


def _seconds(text: str) -> float:
    """Read a time of the command line."""
    seconds = float(text)
    if not are_seconds(seconds):
        raise argparse.ArgumentTypeError(f"{text} is no time: a number of seconds above 0")
    return seconds


def exit_code(findings: Iterable[Finding], *, strict: bool) -> int:
    """Return 1 if there are errors; if it is strict, also if there are warnings."""
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    return int(any(finding.severity in bad for finding in findings))
