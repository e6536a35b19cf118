"""The decisions, the plan and the pictures speak of what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastapi_rooms"
PLAN = ROOT / "ARCHITECTURE.md"
PAGES = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
PICTURES = sorted((ROOT / "docs" / "assets").glob("*.svg"))
SPEAK_OF_FILES = [*sorted((ROOT / "docs" / "decisions").glob("*.md")), PLAN, ROOT / "CONTRIBUTING.md"]

MAX_LINES = 30
MAX_LINES_OF_THE_PLAN = 200
FILE = re.compile(r"`((?:\w+/)*\w+\.py)`")
PLACE = re.compile(r">(\w+\.py) · (\w+)\(\)<")


def name(path: Path) -> str:
    return path.name


def is_there(file: str) -> bool:
    """Return whether a file is in the package or beside it; one that is named without its folder, somewhere."""
    if "/" in file:
        return any((folder / file).exists() for folder in (PACKAGE, ROOT))
    return any(PACKAGE.rglob(file))


def test_what_is_named_is_looked_for_where_it_may_be() -> None:
    assert is_there("manager.py")
    assert is_there("engine/manager.py")
    assert is_there("tests/docs/test_decisions.py")
    assert not is_there("manageress.py")
    assert not is_there("web/manager.py")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_decision_says_why_in_few_lines(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert len(lines) <= MAX_LINES
    assert lines[0].startswith(f"# {page.name[:3]} · ")
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert headings == ["Context", "Decision", "Consequence", "What would undo it"]


def test_the_decisions_are_numbered_and_listed_in_their_order() -> None:
    assert [page.name[:3] for page in PAGES] == [f"{number:03}" for number in range(1, len(PAGES) + 1)]
    listed = re.findall(r"^\| (\d+) \| \[(.*?)\]\((.*?)\) \|", (PAGES[0].parent / "index.md").read_text(), re.MULTILINE)
    assert listed == [
        (page.name[:3], page.read_text().splitlines()[0].partition(" · ")[2], page.name) for page in PAGES
    ]


@pytest.mark.parametrize("page", SPEAK_OF_FILES, ids=name)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    assert [file for file in FILE.findall(page.read_text()) if not is_there(file)] == []


@pytest.mark.parametrize("picture", PICTURES, ids=name)
def test_the_functions_that_a_picture_names_are_there(picture: Path) -> None:
    for file, function in PLACE.findall(picture.read_text()):
        sources = [path.read_text() for path in PACKAGE.rglob(file)]
        assert any(re.search(rf"^ *(async )?def {function}\(", source, re.MULTILINE) for source in sources), (
            file,
            function,
        )


def test_pictures_name_functions_at_all() -> None:
    named = {picture.stem: len(PLACE.findall(picture.read_text())) for picture in PICTURES}
    assert named["slow-consumer"] > 10
    assert named["life-of-a-stop"] > 10


def test_the_plan_names_no_module_that_is_gone() -> None:
    tree = PLAN.read_text().split("```")[1]
    named = set(re.findall(r"\w+\.py\b", tree))
    assert named - {path.name for path in PACKAGE.rglob("*.py")} == set()


def test_the_plan_is_a_plan() -> None:
    assert len(PLAN.read_text().splitlines()) <= MAX_LINES_OF_THE_PLAN
