"""Whether a client may come back is decided in one table: the guide and the page of the demo say the same."""

import re
from pathlib import Path

from example_app.close_codes import FILE, as_javascript
from fastapi_rooms import CloseCode, may_reconnect
from fastapi_rooms.domain.close_codes import FINAL

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "handlers.md"


def test_the_page_of_the_demo_has_the_table() -> None:
    assert FILE.read_text(encoding="utf-8") == as_javascript(), "run python -m example_app.close_codes"


def test_the_guide_has_the_table() -> None:
    (table,) = re.findall(r"^\| No return after \|.*\n\|-.*\n((?:\|.*\n)+)", GUIDE.read_text(), re.MULTILINE)
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in table.splitlines()]
    assert rows == [[str(first) if first == last else f"{first} to {last}", why] for first, last, why in FINAL]


def test_the_guide_says_of_each_code_whether_its_client_may_come_back() -> None:
    (table,) = re.findall(r"^\| Code \| Back\? \|.*\n\|-.*\n((?:\|.*\n)+)", GUIDE.read_text(), re.MULTILINE)
    said = dict(re.findall(r"^\| (\d+) \| (\w+) \|", table, re.MULTILINE))
    assert said == {code: "yes" if may_reconnect(int(code)) else "no" for code in said}
    assert {1000, 1006, 1012, 4401, 4501} <= {int(code) for code in said}
    ours = {int(code) for code in CloseCode} - {CloseCode.GOING_AWAY, CloseCode.UNSUPPORTED_DATA}
    assert ours <= {int(code) for code in said}
