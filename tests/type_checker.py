"""`mypy --strict`, with one cache for all who call it: most of the time goes into what FastAPI and Pydantic are."""

import fcntl
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

SECONDS = 120
"""How long it may take without a cache, on a machine that has much else to do. Who calls it gives his test as long."""
OPTIONS = ("--strict", "--config-file=", "--hide-error-context", "--no-pretty")


def check_types(config: pytest.Config, folder: Path, names: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Check files of a folder.

    One at a time: who comes second finds in the cache what the first has read, also in another process.
    """
    cache = config.cache.mkdir("mypy")
    command = [sys.executable, "-m", "mypy", *OPTIONS, "--cache-dir", str(cache), *names]
    with (cache / "in-use").open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return result
