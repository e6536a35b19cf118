"""Tells what was found: to people, with or without colours, and to machines."""

import json
import os
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TextIO

from fastapi_rooms.doctor.findings import Finding, Severity
from fastapi_rooms.doctor.situation import Situation, Unreachable

Findings = Mapping[str, Finding]

WIDTH = 96
_INDENT = " " * 4
_COLOURS = {Severity.ERROR: "31", Severity.WARNING: "33", Severity.NOTE: "36"}


def wants_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal of somebody who likes colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str, stream: TextIO) -> str:
    """Return a text as a stream can take it: not every terminal and pipe speaks UTF-8."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def as_text(situation: Situation, findings: Findings, *, colours: bool = False) -> str:
    """Return a report for people."""
    parts = ["\n".join(_wrapped(text, f"{label:<9}", " " * 9) for label, text in _looked_at(situation).items())]
    for name, finding in findings.items():
        severity = f"{finding.severity:<8}"
        if colours:
            severity = f"\x1b[{_COLOURS[finding.severity]}m{severity}\x1b[0m"
        parts.append(f"{severity} {name}\n{_wrapped(finding.problem)}\n{_wrapped(f'→ {finding.advice}')}")
    parts.append(_summary(findings))
    return "\n\n".join(parts)


def as_json(situation: Situation, findings: Findings, exit_code: int) -> str:
    """Return a report for machines."""
    server, broker = situation.server, situation.broker
    return json.dumps(
        {
            "app": situation.app.target,
            "exit_code": exit_code,
            "findings": [{"check": name, **asdict(finding)} for name, finding in findings.items()],
            "server": None if server is None else asdict(server),
            "redis": None if broker is None else asdict(broker),
            "versions": situation.versions,
        },
        indent=2,
    )


def _looked_at(situation: Situation) -> dict[str, str]:
    rooms = situation.rooms
    return {
        "app": situation.app.target,
        "rooms": "none" if rooms is None else f"joined by {rooms.backend}" if rooms.backend else "of one process",
        **_server(situation),
        **_redis(situation),
        "versions": ", ".join(f"{name} {version}" for name, version in situation.versions.items()),
    }


def _server(situation: Situation) -> dict[str, str]:
    server = situation.server
    if server is None:
        return {}
    workers = "1 worker" if server.workers == 1 else f"{server.workers} workers"
    told = [server.name, workers]
    if situation.uvicorn is not None:
        class_name = situation.uvicorn.websockets
        told.append("no WebSockets" if class_name is None else class_name.rpartition(".")[2])
    return {"server": ", ".join(told)}


def _redis(situation: Situation) -> dict[str, str]:
    broker = situation.broker
    if broker is None:
        return {}
    if isinstance(broker, Unreachable):
        return {"redis": f"{broker.place}: no answer"}
    return {"redis": f"{broker.place}{f': {broker.product} {broker.version}' if broker.is_told else ''}"}


def _summary(findings: Findings) -> str:
    counts = Counter(finding.severity for finding in findings.values())
    told = [f"{counts[severity]} {severity}{'s' * (counts[severity] > 1)}" for severity in Severity if counts[severity]]
    if counts[Severity.ERROR] or counts[Severity.WARNING]:
        return f"{', '.join(told)}."
    return f"Nothing wrong was found{f' ({told[0]})' if told else ''}."


def _wrapped(text: str, first: str = _INDENT, others: str = _INDENT) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
