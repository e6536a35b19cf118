"""docs/guides/metrics.md has what the code has."""

import re
from pathlib import Path

from fastapi_rooms.domain.counters import Counters
from fastapi_rooms.domain.registry import Registry
from fastapi_rooms.domain.stats import Stats
from fastapi_rooms.telemetry.catalogue import HISTOGRAMS, MANAGER, METRICS, ORIGIN, REASON, RECIPIENTS, TARGET
from fastapi_rooms.telemetry.tracing import SPAN

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "metrics.md"
NEW = Stats.of(Registry(), Counters(), is_draining=False, backend=None)


def metrics_table() -> str:
    """Return the table of metrics as the catalogue has it."""
    lines = [f"| Name | Kind | Unit | Attributes beside `{MANAGER}` | What |", "|---|---|---|---|---|"]
    for metric in METRICS:
        reading = metric.read(NEW)
        reasons = f"`{REASON}`: {', '.join(f'`{one}`' for one in reading)}" if isinstance(reading, dict) else ""
        lines.append(f"| `{metric.name}` | {metric.kind} | `{metric.unit}` | {reasons} | {metric.description} |")
    for metric in HISTOGRAMS:
        attributes = ", ".join(f"`{name}`" for name in metric.attributes if name != MANAGER)
        lines.append(f"| `{metric.name}` | histogram | `{metric.unit}` | {attributes} | {metric.description} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_metrics_is_the_catalogue():
    assert metrics_table() in PAGE.read_text(), metrics_table()


def test_every_attribute_is_explained_and_no_other():
    section = PAGE.read_text().split("\n## Attributes\n")[1].split("\n## ")[0]
    explained = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)
    assert sorted(explained) == sorted({name for one in (*METRICS, *HISTOGRAMS) for name in one.attributes})


def test_the_span_is_the_one_that_is_recorded():
    attributes = ", ".join(f"`{name}`" for name in (TARGET, ORIGIN, RECIPIENTS))
    assert f"| `{SPAN}` | consumer | the publisher's span | {attributes} |\n" in PAGE.read_text()


def test_names_follow_the_conventions():
    for metric in (*METRICS, *HISTOGRAMS):
        assert re.fullmatch(r"fastapi_rooms(\.[a-z]+)+", metric.name)
        assert re.fullmatch(r"\{[a-z]+\}|By|s", metric.unit)
        assert metric.description.endswith(".")
