"""The words of servers: which options each has, and what it is told by its command line, variables and files together.

The servers themselves need not be installed. So the names of their options stand here, as gunicorn 27.0, granian 2.8,
hypercorn 0.18 and h2corn 2.0 have them: it has to be known which of them take a value, or the app could not be found
between them. What is not in here was not understood, and is told.
"""

import argparse
import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fastapi_rooms.doctor.server_facts import CannotRead


@dataclass(frozen=True, slots=True)
class Words:
    """The options of a server, separated by spaces; the names of one by `|`."""

    valued: str
    flags: str
    maybe: str = ""
    """Those that may have a value."""
    has_prefixes: bool = True
    """An option may be shortened, as argparse allows."""


WORDS = {
    "gunicorn": Words(
        valued="""
            -c|--config -b|--bind --backlog -w|--workers -k|--worker-class --threads --worker-connections
            --max-requests --max-requests-jitter -t|--timeout --graceful-timeout --keep-alive --limit-request-line
            --limit-request-fields --limit-request-field_size --reload-engine --reload-extra-file --chdir -e|--env
            -p|--pid --worker-tmp-dir -u|--user -g|--group -m|--umask --forwarded-allow-ips --access-logfile
            --access-logformat --log-file|--error-logfile --log-level --logger-class --log-config --log-config-json
            --log-syslog-to --log-syslog-prefix --log-syslog-facility --statsd-host --dogstatsd-tags --statsd-prefix
            -n|--name --pythonpath --paster|--paste --proxy-allow-from --protocol --uwsgi-allow-from --keyfile
            --certfile --ssl-version --cert-reqs --ca-certs --ciphers --http-protocols --http2-cleartext
            --http2-max-concurrent-streams --http2-initial-window-size --http2-max-frame-size
            --http2-max-header-list-size --paste-global --forwarder-headers --header-map --asgi-loop --asgi-lifespan
            --asgi-disconnect-grace-period --websocket-max-message-size --http-parser --root-path --dirty-app
            --dirty-workers --dirty-timeout --dirty-threads --dirty-graceful-timeout --control-socket
            --control-socket-mode
        """,
        flags="""
            --reload --spew --check-config --print-config --preload --no-sendfile --reuse-port -D|--daemon
            --initgroups --disable-redirect-access-to-syslog --capture-output --log-syslog
            -R|--enable-stdio-inheritance --enable-backlog-metric --suppress-ragged-eofs --do-handshake-on-connect
            --permit-obsolete-folding --strip-header-spaces --permit-unconventional-http-method
            --permit-unconventional-http-version --casefold-http-method --no-control-socket
        """,
        maybe="--proxy-protocol",
    ),
    "granian": Words(
        valued="""
            --host --port --uds --uds-permissions --interface --http --workers --blocking-threads
            --blocking-threads-idle-timeout --runtime-threads --runtime-blocking-threads --runtime-mode --loop
            --task-impl --backlog --backpressure --http1-buffer-size --http1-header-read-timeout
            --http2-initial-connection-window-size --http2-initial-stream-window-size --http2-keep-alive-interval
            --http2-keep-alive-timeout --http2-max-concurrent-streams --http2-max-frame-size --http2-max-headers-size
            --http2-max-send-buffer-size --log-level --log-config --access-log-fmt --ssl-certificate --ssl-keyfile
            --ssl-keyfile-password --ssl-protocol-min --ssl-ca --ssl-crl --url-path-prefix --respawn-interval
            --rss-sample-interval --rss-samples --workers-lifetime --workers-max-rss --workers-kill-timeout
            --working-dir --env-files --static-path-route --static-path-mount --static-path-dir-to-file
            --static-path-expires --metrics-scrape-interval --metrics-address --metrics-port --reload-paths
            --reload-ignore-dirs --reload-ignore-patterns --reload-ignore-paths --reload-tick --process-name --pid-file
        """,
        flags="""
            --ws|--no-ws --http1-keep-alive|--no-http1-keep-alive --http1-pipeline-flush|--no-http1-pipeline-flush
            --http2-adaptive-window|--no-http2-adaptive-window --log|--no-log --access-log|--no-access-log
            --ssl-client-verify|--no-ssl-client-verify --respawn-failed-workers|--no-respawn-failed-workers
            --factory|--no-factory --metrics|--no-metrics --reload|--no-reload
            --reload-ignore-worker-failure|--no-reload-ignore-worker-failure
        """,
        has_prefixes=False,
    ),
    "hypercorn": Words(
        valued="""
            --access-log --access-logfile --access-logformat --backlog -b|--bind --ca-certs --certfile --cert-reqs
            --ciphers -c|--config --error-log --log-file|--error-logfile --graceful-timeout --read-timeout
            --max-requests --max-requests-jitter -g|--group -k|--worker-class --keep-alive --keyfile
            --keyfile-password --insecure-bind --log-config --log-level -p|--pid --quic-bind --root-path --server-name
            --statsd-host --statsd-prefix -m|--umask -u|--user --verify-mode --websocket-ping-interval -w|--workers
        """,
        flags="-D|--daemon --debug --reload",
    ),
    "h2corn": Words(
        valued="""
            -c|--config --app-dir --env-file -r|--root-path --lifespan --timeout-lifespan-startup
            --timeout-lifespan-shutdown --reload-dir --reload-include --reload-exclude --host -p|--port -b|--bind
            --uds-permissions --backlog --certfile --keyfile --ca-certs --cert-reqs --pid -u|--user -g|--group
            -m|--umask -w|--workers --runtime-threads --loop --loop-threads --max-requests --max-requests-jitter
            --timeout-worker-healthcheck --log-format --max-concurrent-streams --limit-request-head-size
            --limit-request-line --limit-request-fields --limit-request-field-size --h2-max-header-list-size
            --h2-max-header-block-size --h2-max-inbound-frame-size --h2-initial-stream-window-size
            --h2-initial-connection-window-size --max-request-body-size --request-policy --limit-concurrency
            --limit-connections --timeout-handshake --timeout-graceful-shutdown --timeout-keep-alive
            --timeout-request-header --timeout-request-body-idle --h2-timeout-response-stall --h2-timeout-write
            --websocket-max-message-size --websocket-ping-interval --websocket-ping-timeout --forwarded-allow-ips
            --forwarded-fields --proxy-protocol --server-header --header
        """,
        flags="""
            --check-config --print-config --factory --reload --reuse-port|--no-reuse-port --http1|--no-http1
            --grpc|--no-grpc --access-log|--no-access-log
            --websocket-per-message-deflate|--no-websocket-per-message-deflate --proxy-headers|--no-proxy-headers
            --date-header|--no-date-header
        """,
    ),
    "other": Words(valued="-w|--workers -b|--bind --uds --app-dir", flags="--factory", has_prefixes=False),
}


_REPEATED = {"bind", "insecure_bind", "env", "env_files"}
"""Those that are read here and may be given several times; of others the last counts."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CannotRead(f"{self.prog}: {message}")


def _parser(kind: str) -> _Parser:
    words = WORDS[kind]
    parser = _Parser(prog=kind, add_help=False, allow_abbrev=words.has_prefixes)
    for options, count in ((words.valued, None), (words.maybe, "?")):
        for option in options.split():
            names = option.split("|")
            dest = _dest(names[-1])
            parser.add_argument(*names, dest=dest, action="append" if dest in _REPEATED else "store", nargs=count)
    for option in words.flags.split():
        names = option.split("|")
        dest = _dest(next(one for one in names if one.startswith("--")))
        for one in names:
            is_off = one.startswith("--no-") and len(names) > 1
            parser.add_argument(one, dest=dest, action="store_const", const=not is_off)
    return parser


def _dest(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


_APP = re.compile(r"(asgi:)?[A-Za-z_.][\w./\\-]*:[A-Za-z_][\w.]*(\(\))?")


def read_options(kind: str, line: Sequence[str]) -> tuple[Mapping[str, Any], str | None, list[str]]:
    """Return the values of options by their names, what stands where the app does, and what was not understood.

    Raises:
        CannotRead: An option lacks its value.
    """
    values, rest = _parser(kind).parse_known_args(line)
    app = None
    unread: list[str] = []
    before = ""
    for word in rest:
        if word.startswith("-"):
            unread.append(word.partition("=")[0])
        elif before.startswith("-") and "=" not in before and _APP.fullmatch(word) is None:
            pass  # most likely its value, which may be a secret
        elif app is None:
            app = word
        else:
            unread.append(word)
        before = word
    return {name: value for name, value in vars(values).items() if value is not None}, app, unread


@dataclass
class Told:
    """What a server is told, by whom it listens to first."""

    layers: list[Mapping[str, Any]]
    unread: list[str] = field(default_factory=list)
    """What was not understood."""
    unknown: set[str] = field(default_factory=set)
    """What a file says that was not understood."""

    def get(self, name: str) -> Any:
        """Return what was said first, as it was said; None if nothing was."""
        return next((layer[name] for layer in self.layers if layer.get(name) is not None), None)

    def is_unknown(self, name: str) -> bool:
        """Return whether a default cannot be taken for what was said, since that was not understood."""
        return self.get(name) is None and name in self.unknown

    def text(self, name: str, default: str = "") -> str:
        """Return what was said by whoever was listened to."""
        said = self.get(name)
        return default if said is None else str(said)

    def each(self, name: str) -> list[str]:
        """Return what was said one by one."""
        said = self.get(name)
        if said is None:
            return []
        return [str(one) for one in said] if isinstance(said, list | tuple) else [str(said)]

    def listed(self, name: str) -> list[str]:
        """Return the same, also of what was said with commas."""
        return [one.strip() for said in self.each(name) for one in said.split(",") if one.strip()]

    def number(self, name: str, default: float | None = None) -> float | None:
        """Return a number.

        Raises:
            CannotRead: It is none.
        """
        text = self.text(name)
        if not text:
            return default
        try:
            return float(text)
        except ValueError as error:
            raise CannotRead(f"{name.replace('_', ' ')}: {text!r} is not a number") from error

    def workers(self) -> int:
        """Return how many processes there will be, as far as was said. Raises as `number` does."""
        return max(1, int(self.number("workers") or 1))

    def is_on(self, name: str, *, default: bool = False) -> bool:
        """Return whether something is switched on."""
        said = self.text(name).strip().lower()
        return said in {"1", "true", "yes", "on", "y", "t"} if said else default

    def add_file(self, file: str, renamed: Mapping[str, str], *, is_toml: bool = False) -> None:
        """Listen to a file, too, after all others: TOML, or the constants of a Python file, which is not run.

        Of a module, named with `python:` before it, nothing is known.

        Args:
            file: Its name.
            renamed: What has another name there than on the command line.
            is_toml: It is TOML.

        Raises:
            CannotRead: It is not there, or has errors in it.
        """
        if file.startswith("python:"):
            self.unread.append(f"--config {file}")
            self.unknown |= {renamed.get(name, name) for name in READ}
            return
        try:
            text = Path(file).read_text()
            said, computed = (tomllib.loads(text), set[str]()) if is_toml else _constants(text)
        except (OSError, ValueError, SyntaxError) as failure:
            raise CannotRead(f"{file} cannot be read: {failure}") from failure
        self.layers.append({renamed.get(name, name): value for name, value in said.items()})
        self.unknown |= {renamed.get(name, name) for name in computed}
        self.unread += [
            f"{name} in {file}, which is computed there"
            for name in sorted(computed)
            if self.is_unknown(renamed.get(name, name))
        ]


READ = frozenset(
    [
        "workers",
        "worker_class",
        "bind",
        "insecure_bind",
        "forwarded_allow_ips",
        "graceful_timeout",
        "wsgi_app",
        "websocket_ping_interval",
        "chdir",
        "pythonpath",
        "raw_env",
        "logconfig",
        "logconfig_json",
        "logconfig_dict",
        "asgi_lifespan",
    ]
)
"""What matters of Python files."""


def _constants(text: str) -> tuple[dict[str, Any], set[str]]:
    """Return what a module sets to constants, and what it computes."""
    constants: dict[str, Any] = {}
    computed = set()
    for name, value, is_sure in _assigned(ast.parse(text).body):
        if name in READ:
            try:
                constants[name] = ast.literal_eval(value)
            except ValueError:
                computed.add(name)
            if not is_sure:
                computed.add(name)
    return {name: value for name, value in constants.items() if name not in computed}, computed


def _assigned(body: Iterable[ast.stmt], *, is_sure: bool = True) -> Iterator[tuple[str, ast.expr, bool]]:
    """Find what is assigned at the level of a module: the name, the value, and whether it has that in any case."""
    for statement in body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                for node in ast.walk(target):
                    if isinstance(node, ast.Name):
                        yield node.id, statement.value, is_sure and node is target
        elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
            if isinstance(statement.target, ast.Name) and statement.value is not None:
                yield statement.target.id, statement.value, is_sure and isinstance(statement, ast.AnnAssign)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _assigned(_inner(statement), is_sure=False)


def _inner(statement: ast.stmt) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from child.body
