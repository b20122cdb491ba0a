"""What a function is made of: its own code and all that it uses of its module, as a hash. The code is not run."""

from __future__ import annotations

import ast
import hashlib
import symtable
from functools import cached_property
from typing import Any


class Source:
    """A module's statements, with the names that each binds and those that it uses."""

    def __init__(self, tree: ast.Module):
        self.tree = tree

    @cached_property
    def statements(self) -> list[Statement]:
        """The statements at the module's top level; an import of several names as several."""
        parts: list[ast.stmt] = []
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):
                parts += [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
            elif isinstance(node, ast.Import):
                parts += [ast.Import([alias]) for alias in node.names]
            elif not (isinstance(node, ast.If) and ast.unparse(node.test).startswith("__name__")):  # of a script
                parts.append(node)
        return [Statement(node) for node in parts]

    def binding(self, name: str) -> list[Statement]:
        """The statements that bind a name."""
        return [statement for statement in self.statements if name in statement.binds]

    def sha256_of(self, name: str) -> str:
        """The hash of what binds a name and of all that this uses in the module, directly or not.

        Comments, docstrings and layout do not count. Of what comes from other modules the import counts alone.
        """
        reached, chosen = {name}, set()
        while new := {s for s in self.statements if s not in chosen and s.belongs_to(reached)}:
            chosen |= new
            reached.update(*(statement.uses for statement in new))
        code = [_canonical(statement.node) for statement in self.statements if statement in chosen]
        return hashlib.sha256(repr(code).encode()).hexdigest()


class Statement:
    """A statement of a module, and the module's names in it as Python's own compiler sees them."""

    def __init__(self, node: ast.stmt):
        self.node = node
        table = symtable.symtable(ast.unparse(node), "", "exec")
        self.binds = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        self.uses = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
        inner = table.get_children()
        while inner:
            table = inner.pop()
            self.uses |= {s.get_name() for s in table.get_symbols() if s.is_global()}
            inner += table.get_children()

    def belongs_to(self, names: set[str]) -> bool:
        """Whether it binds one of the names, or may change what one of them stands for, as `TABLE["a"] = 1` does."""
        return bool(self.binds & names) or (not self.binds and bool(self.uses & names))


def _canonical(node: Any) -> Any:
    """A syntax tree as plain data, without docstrings and positions. Empty fields are left out, so that versions of
    Python that add some give the same."""
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: value for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node, False):
        fields["body"] = node.body[1:]
    return type(node).__name__, [(k, _canonical(v)) for k, v in fields.items() if v is not None and v != []]
