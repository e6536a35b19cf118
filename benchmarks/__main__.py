"""`python -m benchmarks` measures; `python -m benchmarks report --docs` puts what it found into the docs."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, plots, report
from benchmarks.measuring import Bench
from benchmarks.processes import broker_binary
from benchmarks.results import BASELINE, Results
from benchmarks.scale import FULL, SCALES
from benchmarks.scenarios import OURS, SCENARIOS
from benchmarks.servers.serving import COMPARED

OUTPUT = Path("build/benchmarks")
SPARE_FILES = 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    options = _parser().parse_args(arguments)
    if options.command == "report":
        results = Results.load(options.out / report.RESULTS)
        if options.docs:
            report.write_docs(results)
    else:
        results = measure(options)
    for file in (*report.write(results, options.out), *plots.draw(results, options.out)):
        _say(f"wrote {file}")


def measure(options: argparse.Namespace) -> Results:
    """Run the scenarios; what was measured is saved after each."""
    scale = SCALES["quick" if options.quick else options.scale]
    machine.allow_files(scale.connections + SPARE_FILES)
    broker = broker_binary()
    results = Results.of(machine.describe(broker), scale)
    servers = tuple(dict.fromkeys((OURS, *options.servers, BASELINE)))
    bench = Bench(scale, results, servers, _say, broker)
    machine.pin(os.getpid(), machine.cores()[1])
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.scenarios:
        SCENARIOS[name](bench)
        results.save(options.out / report.RESULTS)
        _say(f"{name}: done after {time.monotonic() - started:.0f} s")
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--quick", action="store_true", help="less than a minute; not to be quoted")
    parser.add_argument("--scale", choices=SCALES, default=FULL.name)
    parser.add_argument("--servers", nargs="*", choices=COMPARED, default=COMPARED)
    parser.add_argument("--scenarios", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--out", type=Path, default=OUTPUT, help="where results, table and plots go")
    parser.add_argument("--docs", action="store_true", help="with report: put tables and plots into docs/")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
