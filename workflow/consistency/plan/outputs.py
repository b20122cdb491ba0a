"""What a run of the workflow makes of its plans, and patterns for Snakemake's wildcards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from .plan import Plan

TABLE = ("csv", "md", "tex", "html")


def paper(plans: Iterable[Plan], results: str) -> list[str]:
    """Metrics, claims, tables, figures and pages of all experiments."""
    plans = list(plans)
    outputs = [f"{results}/metrics.csv", f"{results}/claims.csv", *_files(f"{results}/tables/claims", TABLE[1:])]
    for plan in plans:
        outputs += _files(f"{results}/tables/{plan.name}-main", TABLE)
        for figure in plan.figures:
            outputs += _files(f"{results}/figures/{plan.name}-{figure}", ("pdf", "png"))
        if plan.from_pairs:
            outputs += _files(f"{results}/tables/{plan.name}-couplings", TABLE)
        outputs.append(f"{results}/pages/{plan.name}-samples.html")
    return outputs + [f"{results}/pages/tradeoff.html"] * any(plan.from_targets or plan.exact for plan in plans)


def _files(stem: str, kinds: Iterable[str]) -> Iterator[str]:
    return (f"{stem}.{kind}" for kind in kinds)


def pattern(names: Iterable[str]) -> str:
    """A regular expression that matches these names, of which one may be empty, and no others; without any, nothing."""
    chosen = sorted(set(names))
    return _branches(chosen) or ("(?:)" if chosen else "(?!)")


def _branches(names: list[str]) -> str:
    """An expression for sorted names that tries a common beginning once: one of a thousand runs is matched quickly."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name[:1], []).append(name)
    parts = []
    for letter, group in groups.items():
        start = os.path.commonprefix(group)  # noqa: RUF071 (by characters, as is meant)
        rest = [name[len(start) :] for name in group]
        parts.append(re.escape(start) + (f"(?:{_branches(rest)})" if letter and len(group) > 1 else ""))
    return "|".join(parts)
