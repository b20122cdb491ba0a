"""The papers' claims as data, and the rule that decides them.

A claim is a direction: one measured quantity over another (of Direct CM over that of CM, of one
coupling over another), below or above 1. For each condition (and pooled over all conditions) the
effect is the ratio of the two, paired by seed: the mean over seeds of the difference of logarithms,
with Student's t interval at 95 %, both put back through exp. The verdict follows from the interval
alone:

    reproduced    the whole interval lies on the claimed side of 1
    contradicted  the whole interval lies on the other side
    inconclusive  it covers 1, there are fewer than three seeds, or a pair has no ratio (a value that is not above 0)

A universal claim ("holds in every condition") is judged on its least favourable condition: it is
reproduced when every condition is, contradicted when one condition is at 95 % after Bonferroni's
correction for their number, inconclusive otherwise. Its row shows the condition that decided, with
the corrected interval unless it is reproduced.

Nothing is left out in silence: seeds that one side lacks, pairs without a ratio and conditions that
one side was not run in are named behind the row's condition. A metric that is not a finite number is
an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..escape import line
from .ratios import check_finite, left_out, log_ratios, names_of, seeds_of, without_ratio

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
# For `read_table`: an experiment called 1e3 or NA keeps its name.
AS_TEXT = dict.fromkeys(("claim", "paper", "experiment", "condition", "quantity", "verdict"), str)


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
    """Mean and Student's t interval; the interval is infinite for one value, and all is NaN for none."""
    from scipy.special import stdtrit

    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
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


@dataclass(frozen=True)
class Condition:
    """One condition of a quantity: its interval of log-ratios, the one after Bonferroni's correction, what it lacks."""

    where: str
    interval: tuple[float, float, float]
    wide: tuple[float, float, float]
    seeds: int
    verdict: str
    corrected: str
    notes: tuple[str, ...]
    sound: bool


def _condition(where: str, pairs: pd.DataFrame, quantity: Quantity, corrected: float) -> Condition:
    """Judge one condition; one with a pair that has no ratio stays inconclusive."""
    values = pairs.log_ratio.dropna().tolist()
    interval, wide = t_interval(values), t_interval(values, corrected)
    sound = not len(without_ratio(pairs))
    verdicts = [verdict(*found[1:], len(values) if sound else 0, quantity.claimed) for found in (interval, wide)]
    return Condition(where, interval, wide, len(values), *verdicts, tuple(left_out(pairs, quantity)), sound)


def _every(conditions: list[Condition], claimed: str) -> tuple[tuple[float, float, float], int, str]:
    """Interval, seeds and verdict of a universal claim, of the condition that decided: the clearest contradiction, else
    the weakest support."""
    below, measured = claimed == "below", [c for c in conditions if c.seeds]
    if against := [c for c in measured if c.corrected == "contradicted"]:
        shown = max(against, key=lambda c: c.wide[1] if below else -c.wide[2])
        return shown.wide, shown.seeds, "contradicted"
    if not measured:
        return t_interval([]), 0, "inconclusive"
    shown = max(measured, key=lambda c: c.interval[0] if below else -c.interval[0])
    overall = "reproduced" if {c.verdict for c in conditions} == {"reproduced"} else "inconclusive"
    return shown.interval if overall == "reproduced" else shown.wide, shown.seeds, overall


def decide(name: str, experiment: str, metrics: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """All rows of one claim on one experiment: a row per condition, then the overall row.

    Conditions are the groups of `runs` at one sampling step; a universal claim takes every number
    of sampling steps as conditions of their own. The overall row of a plain claim pools conditions:
    the mean over conditions for each seed, then the interval over seeds. What a row leaves out stands in brackets
    behind its condition.

    Raises:
        MismatchError: a metric that is not finite; names its run.
    """
    claim, rows = CLAIMS[name], []
    check_finite(experiment, metrics)

    def add(where: str, label: str, interval: tuple, seeds: int, found: str, notes: list[str]) -> None:
        mean, low, high = (math.exp(value) for value in interval)
        where += f" ({'; '.join(notes)})" * bool(notes)
        values = (name, claim.paper, experiment, where, label, mean, low, high, seeds, found)
        rows.append(dict(zip(COLUMNS, values, strict=True)))

    measured = [(q, *found) for q in claim.quantities for found in by_extractor(metrics, q)]
    for quantity, label, chosen in measured:
        pairs = log_ratios(chosen, runs, quantity)
        if not claim.universal:
            pairs = pairs[pairs.sampling_steps == 1]
        if pairs.ours.isna().all() or pairs.other.isna().all():
            continue  # not both are methods of this experiment
        groups = list(pairs.groupby(["group", "sampling_steps"], sort=False))
        alone = [key for key, found in groups if found.ours.isna().all() or found.other.isna().all()]
        corrected = 1 - (1 - CONFIDENCE) / max(1, len(groups) - len(alone))
        conditions = []
        for (group, steps), found in groups:
            condition = _condition(f"{group}, {int(steps)}-step", found, quantity, corrected)
            add(condition.where, label, condition.interval, condition.seeds, condition.verdict, list(condition.notes))
            conditions += [] if (group, steps) in alone else [condition]
        notes = [f"{len(alone)} more without {' or '.join(names_of(quantity.ours, quantity.other))}"] * bool(alone)
        if unsound := sum(not condition.sound for condition in conditions):
            notes.append(f"pairs without a ratio in {unsound}")
        if claim.universal:
            interval, seeds, found = _every(conditions, quantity.claimed)
            add(f"every condition ({len(conditions)})", label, interval, seeds, found, notes)
            continue
        by_seed = pairs.dropna(subset=["ours", "other"]).groupby("seed").log_ratio
        complete = by_seed.count() == len(conditions)  # seeds that every condition has
        if len(rest := complete[~complete].index):
            notes.append(f"left out: {seeds_of(rest.to_frame())}, which not every condition has")
        pooled = by_seed.mean()[complete].tolist()
        interval = t_interval(pooled)
        found = verdict(*interval[1:], 0 if unsound else len(pooled), quantity.claimed)
        add(f"pooled ({len(conditions)})", label, interval, len(pooled), found, notes)
    return rows


def check(path: str | Path, experiment: str, metrics: str | Path, runs: list[dict[str, Any]], names: list[str]) -> None:
    """Decide the named claims on one experiment's metrics and write the claims table."""
    import pandas as pd

    from ..files.storage import read_table, write_table

    table = pd.DataFrame(runs)[["run", "method", "seed", "group"]]
    measured = read_table(metrics)
    rows = [row for name in names for row in decide(name, experiment, measured, table)]
    write_table(path, pd.DataFrame(rows, columns=COLUMNS))


def is_overall(condition: str) -> bool:
    """Whether a row is a claim's overall row."""
    return condition.startswith(("pooled", "every condition"))


def shown(effect: float, low: float, high: float) -> str:
    """An effect with its interval, as tables show it; a dash where no pair has a ratio."""
    return "–" if math.isnan(effect) else f"{effect:.3g} [{low:.3g}, {high:.3g}]"


def summary(path: str | Path) -> str:
    """The overall rows of a claims table as text for a terminal, with each claim's sentence."""
    from ..files.storage import read_table

    table = read_table(path, converters=AS_TEXT)
    lines = []
    for (name, experiment), rows in table.groupby(["claim", "experiment"], sort=False):
        lines.append(f"{name} on {line(experiment)}: {CLAIMS[name].sentence}")
        for row in rows[rows.condition.map(is_overall)].itertuples():
            interval = shown(row.effect, row.ci_low, row.ci_high)
            words = f"    {row.verdict:<13} {row.quantity:<46} {interval:<26} {row.condition}, {row.n_seeds} seeds"
            lines.append(line(words))
    return "\n".join(lines)
