"""The pages agree with the code, with each other, and load nothing from elsewhere."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

import fastapi_rooms
import fastapi_rooms.testing
from fastapi_rooms import ErrorCode, RoomsSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SNIPPETS = DOCS / "snippets"
HAND_WRITTEN = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]

FENCE = re.compile(
    r"^(?P<indent> *)```\{?\.?(?P<info>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
INCLUDE = re.compile(r'^ *--8<-- "(?P<file>[\w.-]+)(?::(?P<section>\w+))?"$')


def code_blocks(page: Path) -> Iterator[tuple[str, str]]:
    for match in FENCE.finditer(page.read_text()):
        yield match["info"], textwrap.dedent(match["body"])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def first_example() -> str:
    return next(body for info, body in code_blocks(ROOT / "README.md") if info == "python")


def test_readme_and_first_page_show_the_same_example() -> None:
    assert first_example() == (SNIPPETS / "first.py").read_text()
    assert '--8<-- "first.py"' in (DOCS / "index.md").read_text()


@contextmanager
def uvicorn_in_a_subprocess(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    # As the README says it, but for the port.
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=10)


async def test_the_first_example_works_when_pasted(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(first_example())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with uvicorn_in_a_subprocess(tmp_path, port) as process:
        for line in process.stderr or ():
            if "Uvicorn running" in line:
                break
        async with asyncio.timeout(10), httpx.AsyncClient() as http:
            page = await http.get(f"http://127.0.0.1:{port}/")
            assert "<form>" in page.text
            url = f"ws://127.0.0.1:{port}/ws/lobby"
            async with connect(url) as one, connect(url) as other:
                await one.send(json.dumps({"name": "Ann", "text": "hello"}))
                assert json.loads(await other.recv()) == {"name": "Ann", "text": "hello"}
                assert json.loads(await one.recv()) == {"name": "Ann", "text": "hello"}


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=relative)
def test_python_blocks_come_from_snippets_or_compile(page: Path) -> None:
    for info, body in code_blocks(page):
        if info != "python":
            continue
        include = INCLUDE.match(body.rstrip("\n"))
        if include is None:
            compile(body, str(page), "exec")
        else:
            snippet = (SNIPPETS / include["file"]).read_text()
            assert include["section"] is None or f"--8<-- [start:{include['section']}]" in snippet


def test_every_section_of_a_snippet_is_shown() -> None:
    shown = "".join(page.read_text() for page in HAND_WRITTEN)
    for snippet in SNIPPETS.glob("*.py"):
        assert f'--8<-- "{snippet.name}' in shown, snippet.name
        for section in re.findall(r"\[start:(\w+)\]", snippet.read_text()):
            assert f'--8<-- "{snippet.name}:{section}"' in shown, (snippet.name, section)


UNITS = {
    "_bytes$": "bytes",
    "^flush_interval$": "milliseconds",
    "_per_second$": "messages/s",
    "(_seconds|_timeout|_interval|_grace)$": "seconds",
    "^max_rooms": "rooms",
    "^max_connections": "connections",
    "_(messages|burst)$": "messages",
}
"""What the names of settings say about their units: the first pattern that fits counts."""


def settings_table() -> str:
    """Return the table in docs/guides/settings.md as the model has it."""
    lines = ["| Field | Default | Unit | What it is |", "|---|---|---|---|"]
    for name, field in RoomsSettings.model_fields.items():
        default = field.default
        shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        if isinstance(default, str):
            shown = f"`{str(default)!r}`"
        elif name.endswith("_bytes") and default is not None:
            shown += f" ({default // 1024} KiB)" if default < 1024**2 else f" ({default // 1024**2} MiB)"
        unit = next((unit for pattern, unit in UNITS.items() if re.search(pattern, name)), "")
        lines.append(f"| `{name}` | {shown} | {unit} | {' '.join((field.description or '').split())} |")
    return "\n".join(lines) + "\n"


def test_the_settings_table_is_the_model() -> None:
    assert settings_table() in (DOCS / "guides" / "settings.md").read_text(), settings_table()


def test_the_table_of_error_frames_is_the_enum() -> None:
    guide = (DOCS / "guides" / "handlers.md").read_text()
    (table,) = re.findall(r"^\| `code` \|.*\n\|-.*\n((?:\|.*\n)+)", guide, re.MULTILINE)
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in table.splitlines()]
    assert rows == [*([f"`{code}`", code.meaning] for code in ErrorCode), ["your own", ""]]


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    documented = re.findall(r"^::: fastapi_rooms\.(\w+)$", pages, re.MULTILINE)
    assert sorted(documented) == sorted(fastapi_rooms.__all__)
    for name in fastapi_rooms.__all__:
        assert f"#fastapi_rooms.{name})" in pages
    for name in fastapi_rooms.testing.__all__:
        assert f"::: fastapi_rooms.testing.{name}\n" in pages
        assert f"#fastapi_rooms.testing.{name})" in pages


def test_every_module_is_in_the_plan_of_the_floors() -> None:
    plan = (ROOT / "ARCHITECTURE.md").read_text().split("## Life of a message")[0]
    for module in (ROOT / "fastapi_rooms").rglob("*.py"):
        if module.name != "__init__.py" and module.parent.name != "conformance":
            assert re.search(rf"\b{module.name}\b", plan), relative(module)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=relative)
def test_links_of_the_pages_beside_the_code_resolve(page: Path) -> None:
    # The strict build looks at the links of docs/.
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', FENCE.sub("", text))
    for link in links:
        if not link.startswith(("http://127.0.0.1", "https://", "#")):
            assert (ROOT / link.partition("#")[0]).exists(), link


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="only in the development environment")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    loaded = re.compile(
        r"""<(?:script|img|iframe|source|video)[^>]*\b(?:src|srcset)=["']?(?:https?:)?//"""
        r"""|<link[^>]*rel=["']?(?:stylesheet|preconnect|preload|icon|prefetch)[^>]*href=["']?(?:https?:)?//"""
        r"""|@import[^;]*//|url\(["']?(?:https?:)?//"""
    )
    for file in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert not loaded.findall(file.read_text()), file
