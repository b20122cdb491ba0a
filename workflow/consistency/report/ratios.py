"""Ratios of the two sides of a claim's quantity, paired by seed, and what the pairing leaves out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import MismatchError

if TYPE_CHECKING:
    import pandas as pd

    from ..config.claims import Quantity


def ratio(value: float) -> float:
    """exp of a logarithm; infinite where that is too large for a float."""
    return math.inf if value > 700 else math.exp(value)


def log_ratios(metrics: pd.DataFrame, runs: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """log(ours / other), paired by seed within a condition.

    Args:
        metrics: rows of metrics.csv.
        runs: run, method, seed and `group` (all of a run's settings but method and seed).

    Returns:
        group, sampling_steps, seed, ours, other, log_ratio; a row for each seed that one side has. A value that a side
        lacks is NaN; so is the ratio then, and where a value is not above 0 (a score may be, and a distance be 0).
    """
    import numpy as np

    keys, sides = ["group", "sampling_steps", "seed"], []
    for side in quantity.sides:
        chosen = metrics[(metrics.metric == side.metric) & (metrics.reference == side.reference)]
        table = chosen[["run", "sampling_steps", "value"]].merge(runs[runs.method == side.method], on="run")
        sides.append(table.set_index(keys).value)
    both = sides[0].to_frame("ours").join(sides[1].to_frame("other"), how="outer")
    positive = (both["ours"] > 0) & (both["other"] > 0)
    both["log_ratio"] = np.log((both["ours"] / both["other"]).where(positive))
    return both.sort_index().reset_index()


def seeds_of(pairs: pd.DataFrame) -> str:
    """The seeds of some pairs, in words."""
    numbers = sorted(set(pairs.seed.tolist()))
    return f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def lacking(pairs: pd.DataFrame, quantity: Quantity) -> list[str]:
    """Which seeds of a condition one side lacks; empty where it lacks them all (`problem`)."""
    absent = {name: pairs[pairs[column].isna()] for column, name in _columns(quantity)}
    return [f"{name} lacks {seeds_of(rows)}" for name, rows in absent.items() if 0 < len(rows) < len(pairs)]


def problem(pairs: pd.DataFrame, quantity: Quantity) -> str:
    """Why a condition cannot be decided: a side has no values, or a pair no ratio; else empty."""
    for column, name in _columns(quantity):
        if pairs[column].isna().all():
            return f"{name} has no values"
    without = pairs[pairs.ours.notna() & pairs.other.notna() & pairs.log_ratio.isna()]
    return f"no ratio for {seeds_of(without)}, where a value is not above 0" if len(without) else ""


def _columns(quantity: Quantity) -> list[tuple[str, str]]:
    return list(zip(("ours", "other"), quantity.names, strict=True))


def check_finite(experiment: str, metrics: pd.DataFrame) -> None:
    """Raise MismatchError where a row of metrics.csv is not a finite number; names the run."""
    import numpy as np

    bad = metrics[~np.isfinite(metrics.value.astype(float))]
    if len(bad):
        row = bad.iloc[0]
        raise MismatchError(
            f"{experiment}: {row.metric} (extractor {row.extractor}, reference {row.reference}) of run {row.run} is "
            f"{row.value} (and {len(bad) - 1} more rows are not finite), so claims cannot be decided; delete the run's "
            "metrics and run again"
        )
