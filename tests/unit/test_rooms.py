"""The rooms of the library: imports go down the list, never up, and never in a circle."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT

LIBRARY = ROOT / "workflow" / "consistency"
# From the bottom: a module imports from its own room and those above it here.
ROOMS = [
    ("errors", "addresses", "escape", "plugins"),
    ("files",),
    ("runtime",),
    ("flow",),
    ("config",),
    ("data",),
    ("networks",),
    ("teachers",),
    ("students",),
    ("training",),
    ("evaluate",),
    ("report",),
    ("plan",),
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
FILES = sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")


def name_of(path: Path) -> tuple[str, ...]:
    """A module's dotted name below the library."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path, deferred: bool) -> set[tuple[str, ...]]:
    """The library's modules that a file imports; with `deferred` also inside functions and for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if deferred else tree.body
    package = path.parent.relative_to(LIBRARY).parts
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + tuple(
                (node.module or "").split(".") if node.module else ()
            )
            for alias in node.names:
                target = (*base, alias.name)
                found.add(target if target in MODULES else base)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not [name for name in names if name.split(".")[0] == "consistency"], f"{path}: relative imports only"
    return found - {()}


MODULES = {name_of(path) for path in FILES}


def test_every_module_lies_in_a_room():
    rooms = {name_of(path)[0] for path in FILES}
    assert rooms == set(LEVEL), f"new: {rooms - set(LEVEL)}, gone: {set(LEVEL) - rooms}"
    for room in rooms & {path.name for path in LIBRARY.iterdir() if path.is_dir()}:
        text = ast.get_docstring(ast.parse((LIBRARY / room / "__init__.py").read_text(encoding="utf-8")))
        assert text, f"{room}/__init__.py does not say what the room is for"


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(name_of(path)))
def test_imports_go_down(path):
    here = name_of(path)[0]
    up = [".".join(target) for target in imports(path, deferred=True) if LEVEL[target[0]] > LEVEL[here]]
    assert up == [], f"{here} imports from rooms above it"


def test_no_circle():
    graph = {name_of(path): imports(path, deferred=False) for path in FILES}
    done, current = set(), []

    def visit(module):
        assert module not in current, f"a circle: {[*current[current.index(module) :], module]}"
        if module not in done:
            current.append(module)
            for target in sorted(graph.get(module, ())):
                visit(target)
            done.add(current.pop())

    for module in sorted(graph):
        visit(module)
