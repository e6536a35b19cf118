"""The benchmark runs from end to end. What it measures here means nothing, and is not looked at."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SVGS = {"fan-out.svg", "latency.svg", "compression.svg", "steps.svg"}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--out", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def results(output):
    return json.loads((output / "results.json").read_text())


def test_the_machine_and_the_versions_are_told(results):
    assert results["machine"].keys() >= {"date", "cpu", "cores", "kernel", "python", "fastapi", "uvicorn", "broker"}
    assert results["scale"]["name"] == "tiny"


@pytest.mark.parametrize("row", ["one", "four", "burst", "4kib", "deflate", "rooms", "large"])
def test_every_server_takes_part_in_what_is_compared(results, row):
    servers = [sample["server"] for sample in results["samples"] if sample["row"] == row]
    assert {"rooms", "rooms_route", "docs_manager", "websockets"} <= set(servers)
    assert len(servers) == len(set(servers))


def test_a_phase_has_time_bytes_and_speed(results):
    for sample in results["samples"]:
        if sample["row"] in ("one", "burst", "deflate", "large"):
            assert sample["values"].keys() == {"cpu_us", "bytes", "per_second", "client_share"}
            assert sample["values"]["cpu_us"] > 0


def test_the_rest_is_there_too(results):
    rows = {sample["row"]: sample["values"].keys() for sample in results["samples"]}
    assert rows["idle"] == {"kib_per_connection"}
    assert rows["connects"] == {"per_second"}
    assert rows["rate-100"] >= {"p50_ms", "p99_ms", "cpu_us", "delivered"}
    assert rows["size-1024"] >= {"cpu_us", "bytes"}
    assert rows["slow"] >= {"published", "reached", "silence_s", "memory_mib"}
    assert rows["local"] == rows["remote"] == {"p50_ms", "p99_ms"}


def test_tables_are_written_in_sections_for_the_docs(output):
    text = (output / "tables.md").read_text()
    for section in ("machine", "fan_out", "connections", "rates", "compression", "slow", "nodes", "steps"):
        assert text.count(f"[start:{section}]") == text.count(f"[end:{section}]") == 1
    assert "Do not quote" in text
    lines = text.splitlines()
    for one, other in pairwise(lines):
        if one.startswith("|") and other.startswith("|"):
            assert one.count("|") == other.count("|")


def test_pictures_are_drawn(output):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    assert {file.name for file in output.glob("*.svg")} == SVGS
    assert {file.stem for file in output.glob("*.png")} == {Path(name).stem for name in SVGS}


def test_results_are_reported_again_without_measuring(output):
    before = (output / "tables.md").read_text()
    (output / "tables.md").unlink()
    command = [sys.executable, "-m", "benchmarks", "report", "--out", str(output)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30, check=True)
    assert (output / "tables.md").read_text() == before
