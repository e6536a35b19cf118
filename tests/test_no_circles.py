"""No modules of the package import each other in a circle: a reader of one would have to read them all.

Imports for type checkers count, too, and so do those within functions. `lint-imports` looks at what is above what; it
leaves out what is imported for type checkers alone, and circles among modules of one floor.
"""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import fastapi_rooms

Graph = Mapping[str, set[str]]
"""Modules, and those that each imports."""


def imported(package: str, source: str) -> Iterable[tuple[str, str]]:
    """Yield the pairs (module, name in it) that a module of a package imports; `import module` is (module, "")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def graph_of(root: Path) -> Graph:
    """Read which modules of a package import which."""
    paths = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if path.stem == "__init__" else parts)] = path
    graph = {}
    for name, path in paths.items():
        pairs = imported(name if path.stem == "__init__" else name.rpartition(".")[0], path.read_text())
        targets = {f"{module}.{inner}" if f"{module}.{inner}" in paths else module for module, inner in pairs}
        graph[name] = targets & paths.keys()
    return graph


def reached(graph: Graph, start: str) -> set[str]:
    """Return what a module imports, directly or not."""
    found: set[str] = set()
    due = [start]
    while due:
        new = graph[due.pop()] - found
        found |= new
        due += new
    return found


def circles(graph: Graph) -> set[frozenset[str]]:
    """Return each set of modules of which every one leads to every other."""
    ways = {name: reached(graph, name) for name in graph}
    return {frozenset(other for other in ways[name] if name in ways[other]) for name in graph if name in ways[name]}


def test_no_modules_import_each_other_in_a_circle():
    graph = graph_of(Path(fastapi_rooms.__file__).parent)
    assert len(graph) > 100, "the modules were found"
    assert "fastapi_rooms.domain.connection" in reached(graph, "fastapi_rooms.web.ws_route"), "and their imports"
    assert {tuple(sorted(circle)) for circle in circles(graph)} == set()


MODULES = {
    "__init__.py": "from pack.one import x",
    "alone.py": "import pack.one, json",
    "one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.inner import two",
    "inner/__init__.py": "",
    "inner/two.py": "def later():\n    from .three import name",
    "inner/three.py": "from ..one import x\nfrom . import two",
    "itself.py": "import pack.itself",
}


def test_it_finds_circles_through_type_checking_functions_and_relative_imports(tmp_path):
    for name, source in MODULES.items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(source)
    graph = graph_of(tmp_path / "pack")
    assert graph["pack.alone"] == {"pack.one"}
    assert graph["pack.inner.three"] == {"pack.one", "pack.inner.two"}
    assert circles(graph) == {
        frozenset({"pack.one", "pack.inner.two", "pack.inner.three"}),
        frozenset({"pack.itself"}),
    }
