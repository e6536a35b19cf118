"""Each fragment of changelog.d becomes a line of the next release."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "changelog.d"
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
SECTIONS = {kind["directory"]: kind["name"] for kind in CONFIGURATION["type"]}
NAME = re.compile(rf"\+[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(SECTIONS)})\.md")


def misnamed(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name != ".gitignore" and not NAME.fullmatch(file.name)]


def draft(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["towncrier", "build", "--draft", "--config", str(folder / "pyproject.toml"), "--version", "1.2.3"]
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with the configuration and the fragments, to change them."""
    pytest.importorskip("towncrier", reason="only in the development environment")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / FOLDER.name).mkdir()
    for fragment in FOLDER.glob("+*.md"):
        (tmp_path / FOLDER.name / fragment.name).write_text(fragment.read_text())
    return tmp_path


def test_every_fragment_has_a_name_that_says_what_kind_of_change_it_is() -> None:
    assert misnamed(FOLDER) == []


@pytest.mark.parametrize("name", ["11.added.md", "+words.md", "+words.improved.md", "+Words.added.md", "+words.added"])
def test_another_name_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "+words-of-it.added.md").touch()
    (tmp_path / name).touch()
    assert misnamed(tmp_path) == [name]


def test_every_fragment_is_whole_sentences() -> None:
    for fragment in FOLDER.glob("+*.md"):
        text = fragment.read_text().rstrip()
        assert re.match(r"[A-Z`]", text), fragment.name
        assert text.endswith((".", "|", "```")), fragment.name


def test_the_draft_of_the_next_release_has_every_fragment(copy: Path) -> None:
    (copy / FOLDER.name / "+one-more.fixed.md").write_text("One more is mended.\n")
    made = draft(copy)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("## [1.2.3] - ")
    shown = {line.strip() for line in made.stdout.splitlines()}
    for fragment in (copy / FOLDER.name).glob("+*.md"):
        first, *rest = fragment.read_text().splitlines()
        assert {f"- {first}", *(line.strip() for line in rest)} <= shown, fragment.name
        assert f"### {SECTIONS[fragment.suffixes[-2][1:]]}" in shown
    assert "### Fixed" in shown


def test_a_fragment_of_no_known_kind_is_an_error_of_the_draft(copy: Path) -> None:
    (copy / FOLDER.name / "+words.improved.md").write_text("It is better.\n")
    made = draft(copy)
    assert made.returncode != 0
    assert "+words.improved.md" in made.stdout + made.stderr


def test_a_release_goes_below_the_mark_of_the_changelog() -> None:
    assert (ROOT / "CHANGELOG.md").read_text().count(CONFIGURATION["start_string"]) == 1
