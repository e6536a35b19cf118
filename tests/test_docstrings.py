"""A string that stands by itself is a docstring: of the body that it begins, or of the assignment above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file for folder in ("fastapi_rooms", "example_app", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)

DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def astray(source: str) -> list[str]:
    """Return the strings that describe nothing: neither first in a body, nor right below an assignment."""
    return [text for node in ast.walk(ast.parse(source)) for text in _astray_in(node)]


def _astray_in(node: ast.AST) -> Iterator[str]:
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(node, block, None)
        above = node if block == "body" and isinstance(node, DESCRIBED) else None
        for statement in statements if isinstance(statements, list) else ():
            match statement:
                case ast.Expr(ast.Constant(str(text))) if not _describes(statement, above):
                    yield text
            above = statement


def _describes(string: ast.Expr, above: ast.AST | None) -> bool:
    if isinstance(above, ast.Assign | ast.AnnAssign):
        return string.lineno - above.end_lineno == 1
    return isinstance(above, DESCRIBED) and string in above.body[:1]


def test_every_docstring_describes_something():
    assert len(FILES) > 100
    assert {str(file.relative_to(ROOT)): found for file in FILES if (found := astray(file.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        'a = 1\n\n"""x"""',
        '"""docstring"""\n"""x"""',
        'def f():\n    """docstring"""\n"""x"""',
        'def f():\n    f()\n    """x"""',
        'if True:\n    """x"""',
        'try:\n    pass\nfinally:\n    """x"""',
        'if 1:\n    a = 1\nelse:\n    """x"""',
        'try:\n    pass\nexcept ValueError:\n    """x"""',
    ],
)
def test_a_docstring_that_is_astray_is_found(source: str):
    assert astray(source) == ["x"]


def test_what_describes_something_is_not_astray():
    source = '''
"""module"""
a: int = 1
"""a"""
class C:
    """C"""
    b = 1
    """b"""
    def f(self):
        """f"""
        return lambda: "no statement"
'''
    assert astray(source) == []
