"""Names that a configuration may use: read from the code, so that a new function is known by its name at once."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def functions_of(module: str, batch: str | None = None) -> list[str]:
    """Names of a module's public functions, read without importing it (or torch).

    Args:
        batch: only those whose parameter `batch` has this annotation.
    """
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    annotations = {n.name: {a.arg: getattr(a.annotation, "id", None) for a in n.args.args} for n in public}
    return [n.name for n in public if batch in (None, annotations[n.name].get("batch"))]


def nearest(word: str, allowed: list[str]) -> str:
    """'; did you mean …?' for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def condition(solver: str, n_steps: int, guidance: float) -> str:
    """The id of a teacher condition, such as ddim-n50-w4."""
    return f"{solver}-n{n_steps}-w{guidance:g}"


OBJECTIVES = functions_of("students/objectives")
PAIR_OBJECTIVES = functions_of("students/objectives", batch="Pairs")
SOLVERS = functions_of("flow/solvers")
COUPLINGS = functions_of("students/couplings")
SAMPLERS = functions_of("students/samplers")
