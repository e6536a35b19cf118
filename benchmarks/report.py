"""From results to Markdown tables, for the terminal and for the documentation."""

from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path

from benchmarks import plots
from benchmarks.results import BASELINE, Results
from benchmarks.scale import FULL
from benchmarks.scenarios import BURST, LARGE_BYTES, OURS
from benchmarks.servers.serving import COMPARED, STEPS

RESULTS = "results.json"
TABLES = "tables.md"
ROOT = Path(__file__).parents[1]
DOCS_TABLES = ROOT / "docs" / "snippets" / "benchmarks.md"
DOCS_ASSETS = ROOT / "docs" / "assets" / "benchmarks"
BUSY_ROWS = ("rate-", "slow")
"""Rows in which the client waits in a busy loop, so that its share says nothing."""


def write(results: Results, folder: Path) -> list[Path]:
    """Write all tables into one file."""
    file = folder / TABLES
    file.write_text(tables(results))
    return [file]


def write_docs(results: Results) -> None:
    """Put the tables where the pages include them, and plots and results where they link to."""
    DOCS_TABLES.write_text(tables(results))
    DOCS_ASSETS.mkdir(parents=True, exist_ok=True)
    results.save(DOCS_ASSETS / RESULTS)
    plots.draw(results, DOCS_ASSETS, formats=("svg",))


def tables(results: Results) -> str:
    """Return every table, each a section that a page can include by its name."""
    sections = {
        "machine": _machine(results),
        "fan_out": _fan_out(results),
        "connections": _connections(results),
        "rates": _rates(results),
        "capacity": _capacity(results),
        "compression": _compression(results),
        "slow": _slow(results),
        "nodes": _nodes(results),
        "steps": _steps(results),
    }
    marked = [
        f"<!-- --8<-- [start:{name}] -->\n{text}\n<!-- --8<-- [end:{name}] -->\n" for name, text in sections.items()
    ]
    return "<!-- Made by `python -m benchmarks report --docs`. -->\n\n" + "\n".join(marked)


def fan_out_rows(results: Results) -> dict[str, str]:
    """Return the rows of the main table with what they are called at this scale."""
    scale = results.scale
    room = f"{scale['members']:,} members"
    return {
        "one": f"{room}, 128 B, one at a time",
        "four": f"{room}, 128 B, four under way",
        "burst": f"{room}, 128 B, bursts of {BURST}",
        "4kib": f"{room}, {LARGE_BYTES // 1024} KiB, one at a time",
        "deflate": f"{room}, 128 B, permessage-deflate negotiated",
        "large": f"{scale['large']:,} members, 128 B, one at a time",
        "rooms": f"{scale['rooms']:,} rooms of {scale['room_size']}, 128 B, per message",
    }


def number(value: float) -> str:
    """Return three digits that count."""
    if value == inf:
        return "never"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _servers(results: Results, row: str = "one") -> list[str]:
    return [server for server in COMPARED if results.has(row, server)]


def _cost(results: Results, row: str, server: str) -> str:
    """Return time, spread and ratio of a cell."""
    if not results.has(row, server):
        return ""
    # In a small room the way in costs more than the way out: it is the message that is paid for.
    per = results.scale["room_size"] if row == "rooms" else 1
    time = number(results.median(row, server, "cpu_us") * per)
    ratio = results.ratio(row, server, "cpu_us")
    beside = "" if ratio is None or server == BASELINE else f" (**{ratio:.2f}**)"
    several = len(results.values(row, server, "cpu_us")) > 1
    spread = f" ±{results.spread(row, server, 'cpu_us') / 2:.0%}" if several else ""
    return f"{time}{beside}{spread}"


def _machine(results: Results) -> str:
    scale, shares = results.scale, _client_shares(results)
    rounds = f"{scale['rounds']} rounds" if scale["rounds"] > 1 else "one round"
    text = _table(["What", "Which"], [[name, value] for name, value in results.machine.items()])
    text += f"\n\nScale `{scale['name']}`: {rounds}, {scale['seconds']:g} s per phase."
    if shares:
        text += f" The client was busy for at most {max(shares):.0%} of a closed phase."
    if scale["name"] != FULL.name:
        text += "\n\n!!! warning\n\n    A small run, made to see that everything works. Do not quote its figures."
    return text


def _client_shares(results: Results) -> list[float]:
    return [
        sample.values["client_share"]
        for sample in results.samples
        if "client_share" in sample.values and not sample.row.startswith(BUSY_ROWS)
    ]


def _fan_out(results: Results) -> str:
    servers = _servers(results)
    rows = [
        [label, *(_cost(results, row, server) for server in servers)]
        for row, label in fan_out_rows(results).items()
        if any(results.has(row, server) for server in servers)
    ]
    return _table(["µs per delivery", *(f"`{server}`" for server in servers)], rows)


def _connections(results: Results) -> str:
    servers = _servers(results, "idle")
    kinds = (
        ("idle", "kib_per_connection", "memory per idle connection, KiB"),
        ("connects", "per_second", "accepted/s"),
    )
    rows = [[label, *(number(results.median(row, server, value)) for server in servers)] for row, value, label in kinds]
    return _table(["", *(f"`{server}`" for server in servers)], rows if servers else [])


def _rates(results: Results) -> str:
    rows = []
    for rate in results.scale["rates"]:
        row = f"rate-{rate}"
        for server in _named(results, row):
            p50, p99, cpu, arrived = (
                results.median(row, server, name) for name in ("p50_ms", "p99_ms", "cpu_us", "delivered")
            )
            rows.append([f"`{server}`", f"{rate:,}", number(p50), number(p99), f"{cpu:.3g}", f"{arrived:.0%}"])
    return _table(["Server", "Messages/s", "p50, ms", "p99, ms", "µs per delivery", "Delivered"], rows)


def _capacity(results: Results) -> str:
    rows = [
        [f"`{server}`", f"{results.median('capacity', server, 'per_second'):,.0f}"]
        for server in _named(results, "capacity")
    ]
    return _table(["Server", "Messages/s held"], rows)


def _compression(results: Results) -> str:
    rows = []
    for size in results.scale["sizes"]:
        row = f"size-{size}"
        rows += [
            [
                f"`{server}`",
                f"{size:,} B",
                number(results.median(row, server, "cpu_us")),
                number(results.median(row, server, "bytes")),
            ]
            for server in _named(results, row)
        ]
    return _table(["Server", "Message", "µs per delivery", "Bytes on the wire"], rows)


def _slow(results: Results) -> str:
    rows = []
    for server in _named(results, "slow"):
        published, reached, silence, memory = (
            results.median("slow", server, name) for name in ("published", "reached", "silence_s", "memory_mib")
        )
        rows.append([f"`{server}`", f"{reached:.0f} of {published:.0f}", f"{silence:.2g} s", f"{memory:.1f} MiB"])
    return _table(["Server", "Broadcasts that reached all others", "Longest silence", "Memory grew by"], rows)


def _nodes(results: Results) -> str:
    rows = [
        [label, *(number(results.median(row, OURS, name)) for name in ("p50_ms", "p99_ms"))]
        for row, label in (("local", "on the sender's node"), ("remote", "on the other node"))
        if results.has(row, OURS)
    ]
    return _table(["Member", "p50, ms", "p99, ms"], rows)


def _steps(results: Results) -> str:
    names = ("one", "four", "burst")
    rows = [
        [f"`{server}`", *(number(results.values(row, server, "cpu_us")[0]) for row in names)]
        for server in STEPS
        if all(results.has(row, server) for row in names)
    ]
    return _table(["µs per delivery", "one at a time", "four under way", f"bursts of {BURST}"], rows)


def _named(results: Results, row: str) -> list[str]:
    return list(dict.fromkeys(sample.server for sample in results.samples if sample.row == row))
