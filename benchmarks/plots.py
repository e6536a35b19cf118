"""Pictures of the results, if matplotlib is installed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import Results
from benchmarks.scenarios import BURST
from benchmarks.servers.serving import COMPARED, STEPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"rooms": "#00796b", "rooms_route": "#4db6ac", "docs_manager": "#8d6e63", "websockets": "#90a4ae"}
GROUPS = {
    "one": "one at\na time",
    "four": "four\nunder way",
    "burst": f"bursts\nof {BURST}",
    "4kib": "4 KiB",
    "deflate": "deflate\nnegotiated",
    "large": "large\nroom",
    "rooms": "many\nrooms",
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fastapi-rooms",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}
"""The salt keeps names inside the SVG the same, so that a second drawing of the same results is no change."""


def draw(results: Results, folder: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw what was measured; return the files, none if matplotlib is missing."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional
    except ImportError:
        return []
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of the backend

    files = []
    for name, (needs, plot) in PLOTS.items():
        if not any(sample.row in needs(results) for sample in results.samples):
            continue
        with mpl.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
            plot(results, axes)
            for suffix in formats:
                file = folder / f"{name}.{suffix}"
                figure.savefig(file, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                files.append(file)
            plt.close(figure)
    return files


def _fan_out(results: Results, axes: "Axes") -> None:
    """Bars relative to the baseline, which is the line at 1."""
    groups = [row for row in GROUPS if results.has(row, "docs_manager")]
    servers = [server for server in COMPARED if any(results.has(row, server) for row in groups)]
    width = 0.8 / len(servers)
    for place, server in enumerate(servers):
        heights = [results.ratio(row, server, "cpu_us") or 0.0 for row in groups]
        starts = [group + place * width for group in range(len(groups))]
        bars = axes.bar(starts, heights, width, label=server, color=COLOURS[server])
        axes.bar_label(bars, fmt="%.2f", fontsize=6)
    axes.set_xticks([group + width * (len(servers) - 1) / 2 for group in range(len(groups))])
    axes.set_xticklabels([GROUPS[row] for row in groups])
    axes.axhline(1, color="#777777", linewidth=0.6)
    axes.set_ylabel("CPU time per delivery,\ndocs_manager = 1")
    axes.legend(frameon=False, ncols=len(servers), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _latency(results: Results, axes: "Axes") -> None:
    """Latency against CPU time, one point per server and rate."""
    for rate, marker in zip(results.scale["rates"], "os^v", strict=False):
        for sample in results.samples:
            if sample.row == f"rate-{rate}" and "p99_ms" in sample.values:
                x, y = sample.values["cpu_us"], sample.values["p99_ms"]
                axes.scatter([x], [y], marker=marker, color=COLOURS.get(sample.server, COLOURS["rooms"]))
                axes.annotate(f"{sample.server}, {rate:,}/s", (x, y), xytext=(5, 3), textcoords="offset points", size=7)
    axes.set(xscale="log", yscale="log", xlabel="CPU time per delivery, µs", ylabel="latency p99, ms")
    axes.margins(x=0.25, y=0.1)


def _compression(results: Results, axes: "Axes") -> None:
    """CPU time by size of the message."""
    rows = [(size, f"size-{size}") for size in results.scale["sizes"]]
    for server in dict.fromkeys(sample.server for sample in results.samples if sample.row.startswith("size-")):
        times = [results.median(row, server, "cpu_us") for _, row in rows if results.has(row, server)]
        axes.plot([size for size, _ in rows], times, marker="o", label=server)
    axes.set_xscale("log", base=2)
    axes.set_xticks([size for size, _ in rows], [f"{size:,}" for size, _ in rows])
    axes.set(ylim=(0, None), xlabel="message, bytes", ylabel="CPU time per delivery, µs")
    axes.legend(frameon=False)


def _steps(results: Results, axes: "Axes") -> None:
    """One group of bars per step."""
    names = [server for server in STEPS if results.has("burst", server)]
    for place, row in enumerate(("one", "four", "burst")):
        starts = [step + place * 0.27 for step in range(len(names))]
        heights = [results.values(row, server, "cpu_us")[0] for server in names]
        bars = axes.bar(starts, heights, 0.27, label=GROUPS[row].replace("\n", " "))
        axes.bar_label(bars, fmt="%.3g", fontsize=6)
    axes.set_xticks([step + 0.27 for step in range(len(names))])
    axes.set_xticklabels(names)
    axes.set_ylabel("CPU time per delivery, µs")
    axes.legend(frameon=False)


def _rows(*names: str) -> Callable[[Results], list[str]]:
    return lambda _: list(names)


PLOTS: dict[str, tuple[Callable[[Results], list[str]], Callable[[Results, Any], None]]] = {
    "fan-out": (_rows(*GROUPS), _fan_out),
    "latency": (lambda results: [f"rate-{rate}" for rate in results.scale["rates"]], _latency),
    "compression": (lambda results: [f"size-{size}" for size in results.scale["sizes"]], _compression),
    "steps": (_rows("burst"), _steps),
}
