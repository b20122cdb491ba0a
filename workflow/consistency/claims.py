"""The papers' claims as data, and the rule that decides them.

A claim is a direction: one measured quantity over another (of Direct CM over that of CM, of one
coupling over another), below or above 1. For each condition (and pooled over all conditions) the
effect is the ratio of the two, paired by seed: the mean over seeds of the difference of logarithms,
with Student's t interval at 95 %, both put back through exp. The verdict follows from the interval
alone:

    reproduced    the whole interval lies on the claimed side of 1
    contradicted  the whole interval lies on the other side
    inconclusive  it covers 1, or there are fewer than three seeds

A universal claim ("holds in every condition") is judged on its least favourable condition: it is
reproduced when every condition is, contradicted when one condition is at 95 % after Bonferroni's
correction for their number, inconclusive otherwise. Its row shows the condition that decided, with
the corrected interval unless it is reproduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MINIMUM_SEEDS = 3
CONFIDENCE = 0.95
COLUMNS = [
    "claim",
    "paper",
    "experiment",
    "condition",
    "quantity",
    "effect",
    "ci_low",
    "ci_high",
    "n_seeds",
    "verdict",
]


@dataclass(frozen=True)
class Side:
    """One side of a ratio: rows of metrics.csv by method, metric and reference."""

    method: str
    metric: str
    reference: str


@dataclass(frozen=True)
class Quantity:
    """One thing that a claim compares.

    Attributes:
        label: as in the claims table.
        ours, other: numerator and denominator.
        claimed: "below" or "above", the claimed side of 1.
    """

    label: str
    ours: Side
    other: Side
    claimed: str


@dataclass(frozen=True)
class Claim:
    """A paper's claim in our words.

    Attributes:
        universal: decided over every condition, and over few-step sampling too.
    """

    paper: str
    sentence: str
    quantities: tuple[Quantity, ...]
    universal: bool = False


def _methods(ours: str, other: str, metric: str, reference: str, claimed: str) -> Quantity:
    """The same metric of two methods."""
    base, _, place = metric.partition("@")
    name = {
        "ode_error": "ODE error",
        "frechet_distance": "Fréchet distance",
        "wasserstein": "Wasserstein distance",
        "clip_score": "CLIP score",
        "aesthetic_score": "Aesthetic score",
    }[base]
    place = f" at {float(place.removeprefix('budget=')):.3g} of training" if place else ""
    sign = "<" if claimed == "below" else ">"
    to = "" if base.endswith("_score") else f" to {reference}"
    label = f"{name}{to}{place}, {ours}/{other} {sign} 1"
    return Quantity(label, Side(ours, metric, reference), Side(other, metric, reference), claimed)


def _references(metric: str, ours: str, other: str, claimed: str, name: str, method: str = "cd") -> Quantity:
    """The same metric under two couplings (or velocities), measured on one student."""
    sign = "<" if claimed == "below" else ">"
    return Quantity(
        f"{name}, {ours.replace('_', ' ')}/{other.replace('_', ' ')} {sign} 1",
        Side(method, metric, ours),
        Side(method, metric, other),
        claimed,
    )


_ODE = (
    _methods("direct", "cm", "ode_error", "teacher", "below"),
    _methods("direct", "cm", "ode_error", "truth", "below"),
)
_DISTANCES = ("frechet_distance", "wasserstein")
_QUALITY = tuple(
    _methods("direct", "cm", metric, reference, "above") for metric in _DISTANCES for reference in ("teacher", "data")
)
_SCORES = (
    _methods("direct", "cm", "clip_score", "prompts", "below"),
    _methods("direct", "cm", "aesthetic_score", "none", "below"),
)

CLAIMS = {
    "A1": Claim(
        "A",
        "Direct CMs solve the teacher's probability-flow ODE better than CMs: their ODE error is lower.",
        _ODE,
    ),
    "A2": Claim(
        "A",
        "Direct CMs nevertheless give worse samples than CMs: their distance to teacher and data is higher, their CLIP "
        "and aesthetic scores are lower.",
        (*_QUALITY, *_SCORES),
    ),
    "A3": Claim(
        "A",
        "Both hold for every solver, number of teacher steps and guidance scale, with one and with few sampling steps.",
        (*_ODE, *_QUALITY, *_SCORES),
        universal=True,
    ),
    "B1": Claim(
        "B",
        "Consistency training's one-sample velocity leaves a gap to distillation that stays as steps grow to 1,280.",
        (_references("loss@steps=1280", "ct independent", "cd", "above", "Squared loss at 1,280 steps"),),
    ),
    "B2": Claim(
        "B",
        "Generator-induced coupling lowers that gap against independent and batch-OT coupling.",
        tuple(
            _references("velocity_gap@steps=1280", "generator_induced", other, "below", "Velocity gap at 1,280 steps")
            for other in ("independent", "optimal_transport")
        ),
    ),
    "B3": Claim(
        "B",
        "Generator-induced coupling lowers the transport cost between noise and data against independent and batch-OT.",
        tuple(
            _references("transport_cost", "generator_induced", other, "below", "Transport cost", method)
            for method in ("cd", "ct-gc")
            for other in ("independent", "optimal_transport")
        ),
    ),
    "B4": Claim(
        "B",
        "Mixed generator-induced coupling (μ = 0.5) converges faster and ends better than independent and batch-OT; "
        "μ from 0.3 to 0.7 and a frozen generator help, μ = 1 is fast early and ends worse than μ = 0.5.",
        (
            *(
                _methods("ct-gc", other, metric, "data", "below")
                for base in _DISTANCES
                for metric in (f"{base}@budget=0.25", base)
                for other in ("ct-ic", "ct-ot")
            ),
            *(
                _methods(ours, other, metric, "data", claimed)
                for base in _DISTANCES
                for ours, other, metric, claimed in (
                    ("ct-gc03", "ct-ic", base, "below"),
                    ("ct-gc07", "ct-ic", base, "below"),
                    ("ct-gc-frozen", "ct-ic", base, "below"),
                    ("ct-gc1", "ct-ic", f"{base}@budget=0.125", "below"),
                    ("ct-gc1", "ct-gc", base, "above"),
                )
            ),
        ),
    ),
}


def t_interval(values: list[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean and Student's t interval; the interval is infinite for fewer than two values."""
    from scipy.special import stdtrit

    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, -math.inf, math.inf
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def verdict(low: float, high: float, seeds: int, claimed: str) -> str:
    """The rule of this module for an interval of log-ratios."""
    if seeds < MINIMUM_SEEDS:
        return "inconclusive"
    if high < 0:
        return "reproduced" if claimed == "below" else "contradicted"
    if low > 0:
        return "reproduced" if claimed == "above" else "contradicted"
    return "inconclusive"


def log_ratios(metrics: pd.DataFrame, runs: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """log(ours / other), paired by seed within a condition.

    Args:
        metrics: rows of metrics.csv.
        runs: run, method, seed and `group` (all of a run's settings but method and seed).

    Returns:
        group, sampling_steps, seed, log_ratio; one row a pair.
    """
    import numpy as np

    keys, sides = ["group", "sampling_steps", "seed"], []
    for side in (quantity.ours, quantity.other):
        chosen = metrics[(metrics.metric == side.metric) & (metrics.reference == side.reference)]
        table = chosen[["run", "sampling_steps", "value"]].merge(runs[runs.method == side.method], on="run")
        sides.append(table.set_index(keys).value)
    both = sides[0].to_frame("ours").join(sides[1].to_frame("other"), how="inner")
    # A score may be zero or negative, and then has no ratio.
    both = both[(both["ours"] > 0) & (both["other"] > 0)]
    both["log_ratio"] = np.log(both["ours"] / both["other"])
    return both["log_ratio"].sort_index().reset_index()


DISTANCES = {"inception-v3": "FID", "dinov2": "FD-DINOv2"}  # names of Fréchet distances that have one of their own


def by_extractor(metrics: pd.DataFrame, quantity: Quantity) -> list[tuple[str, pd.DataFrame]]:
    """A label for each extractor that measured a quantity, with its rows of metrics.csv; the Fréchet distance in
    Inception-v3 features is called FID there, and nowhere else."""
    chosen = metrics[(metrics.metric == quantity.ours.metric) & (metrics.reference == quantity.ours.reference)]
    extractors, found = list(dict.fromkeys(chosen.extractor)), []
    for extractor in extractors:
        label = quantity.label
        if label.startswith("Fréchet distance"):
            rest = label.removeprefix("Fréchet distance")
            if extractor in DISTANCES:
                label = f"{DISTANCES[extractor]}{rest}"
            elif len(extractors) > 1:
                label = f"Fréchet distance ({extractor}){rest}"
        found.append((label, metrics[metrics.extractor == extractor]))
    return found


def decide(name: str, experiment: str, metrics: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """All rows of one claim on one experiment: a row per condition, then the overall row.

    Conditions are the groups of `runs` at one sampling step; a universal claim takes every number
    of sampling steps as conditions of their own. The overall row of a plain claim pools conditions:
    the mean over conditions for each seed, then the interval over seeds.
    """
    claim, rows = CLAIMS[name], []

    def row(where: str, label: str, interval: tuple, seeds: int, found: str) -> dict[str, Any]:
        mean, low, high = (math.exp(value) for value in interval)
        values = (name, claim.paper, experiment, where, label, mean, low, high, seeds, found)
        return dict(zip(COLUMNS, values, strict=True))

    measured = [(q, *found) for q in claim.quantities for found in by_extractor(metrics, q)]
    for quantity, label, chosen in measured:
        ratios = log_ratios(chosen, runs, quantity)
        if not claim.universal:
            ratios = ratios[ratios.sampling_steps == 1]
        if ratios.empty:
            continue
        verdicts, conditions = [], []
        groups = list(ratios.groupby(["group", "sampling_steps"], sort=False))
        corrected = 1 - (1 - CONFIDENCE) / len(groups)
        for (group, steps), pairs in groups:
            values, seeds = pairs.log_ratio.tolist(), len(pairs)
            interval, wide = t_interval(values), t_interval(values, corrected)
            verdicts.append(verdict(*interval[1:], seeds, quantity.claimed))
            conditions.append((interval, wide, seeds, verdict(*wide[1:], seeds, quantity.claimed)))
            rows.append(row(f"{group}, {int(steps)}-step", label, interval, seeds, verdicts[-1]))
        if claim.universal:
            # The row shows the condition that decided: the clearest contradiction, else the weakest support.
            against = [c for c in conditions if c[3] == "contradicted"]
            below = quantity.claimed == "below"
            if against:
                shown = max(against, key=lambda c: c[1][1] if below else -c[1][2])
                interval, overall = shown[1], "contradicted"
            else:
                shown = max(conditions, key=lambda c: c[0][0] if below else -c[0][0])
                overall = "reproduced" if set(verdicts) == {"reproduced"} else "inconclusive"
                interval = shown[0] if overall == "reproduced" else shown[1]
            rows.append(row(f"every condition ({len(groups)})", label, interval, shown[2], overall))
        else:
            by_seed = ratios.groupby("seed").log_ratio
            pooled = by_seed.mean()[by_seed.size() == len(groups)].tolist()  # seeds that every condition has
            if not pooled:
                continue
            interval = t_interval(pooled)
            found = verdict(*interval[1:], len(pooled), quantity.claimed)
            rows.append(row(f"pooled ({len(groups)})", label, interval, len(pooled), found))
    return rows


def check(path: str | Path, experiment: str, metrics: str | Path, runs: list[dict[str, Any]], names: list[str]) -> None:
    """Decide the named claims on one experiment's metrics and write the claims table."""
    import pandas as pd

    from .storage import read_table, write_table

    table = pd.DataFrame(runs)[["run", "method", "seed", "group"]]
    measured = read_table(metrics)
    rows = [row for name in names for row in decide(name, experiment, measured, table)]
    write_table(path, pd.DataFrame(rows, columns=COLUMNS))


def is_overall(condition: str) -> bool:
    """Whether a row is a claim's overall row."""
    return condition.startswith(("pooled", "every condition"))


def summary(path: str | Path) -> str:
    """The overall rows of a claims table as text, with each claim's sentence."""
    from .storage import read_table

    table = read_table(path)
    lines = []
    for (name, experiment), rows in table.groupby(["claim", "experiment"], sort=False):
        lines.append(f"{name} on {experiment}: {CLAIMS[name].sentence}")
        for row in rows[rows.condition.map(is_overall)].itertuples():
            interval = f"{row.effect:.3g} [{row.ci_low:.3g}, {row.ci_high:.3g}]"
            lines.append(
                f"    {row.verdict:<13} {row.quantity:<46} {interval:<26} {row.condition}, {row.n_seeds} seeds"
            )
    return "\n".join(lines)
