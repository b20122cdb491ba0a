"""The rule that decides claims.

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

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MismatchError
from ..escape import line
from .ratios import check_finite, left_out, log_ratios, seeds_of, without_ratio

if TYPE_CHECKING:
    import pandas as pd

    from ..config.claims import Claim, Comparison, Quantity

log = logging.getLogger(__name__)

MINIMUM_SEEDS = 3
CONFIDENCE = 0.95
COLUMNS = ["claim", "paper", "experiment", "condition", "quantity", "effect", "ci_low", "ci_high", "n_seeds", "verdict"]
# For `read_table`: an experiment called 1e3 or NA keeps its name.
AS_TEXT = dict.fromkeys(("claim", "paper", "experiment", "condition", "quantity", "verdict"), str)


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


def verdict(low: float, high: float, seeds: int, direction: str) -> str:
    """The rule of this module for an interval of log-ratios."""
    if seeds < MINIMUM_SEEDS:
        return "inconclusive"
    if high < 0:
        return "reproduced" if direction == "below" else "contradicted"
    if low > 0:
        return "reproduced" if direction == "above" else "contradicted"
    return "inconclusive"


DISTANCES = {"inception-v3": "FID", "dinov2": "FD-DINOv2"}  # names of Fréchet distances that have one of their own


def by_extractor(metrics: pd.DataFrame, quantity: Quantity) -> list[tuple[str, pd.DataFrame]]:
    """A label for each extractor that measured a quantity, with its rows of metrics.csv; the Fréchet distance in
    Inception-v3 features is called FID there, and nowhere else."""
    rows = metrics[(metrics.metric == quantity.metric) & (metrics.reference == quantity.sides[0][1])]
    extractors, labelled = list(dict.fromkeys(rows.extractor)), []
    for extractor in extractors:
        label = quantity.label
        if label.startswith("Fréchet distance"):
            rest = label.removeprefix("Fréchet distance")
            if extractor in DISTANCES:
                label = f"{DISTANCES[extractor]}{rest}"
            elif len(extractors) > 1:
                label = f"Fréchet distance ({extractor}){rest}"
        if quantity.extractor in (None, extractor) and quantity.without != extractor:
            labelled.append((label, metrics[metrics.extractor == extractor]))
    return labelled


@dataclass(frozen=True)
class Condition:
    """One condition of a quantity.

    Attributes:
        group, sampling_steps: which one.
        interval: mean of the log-ratios with its 95 % interval.
        corrected: the same interval after Bonferroni's correction.
        seeds: how many have a ratio.
        verdict, corrected_verdict: what the two intervals say.
        notes: what the condition lacks.
        sound: every pair has a ratio.
        paired: both sides have values.
    """

    group: str
    sampling_steps: int
    interval: tuple[float, float, float]
    corrected: tuple[float, float, float]
    seeds: int
    verdict: str
    corrected_verdict: str
    notes: list[str]
    sound: bool
    paired: bool


def _paired(pairs: pd.DataFrame) -> bool:
    return not (pairs.ours.isna().all() or pairs.other.isna().all())


def _conditions(pairs: pd.DataFrame, quantity: Quantity) -> list[Condition]:
    """Every condition of a quantity, judged by itself; one with a pair that has no ratio stays inconclusive."""
    groups = list(pairs.groupby(["group", "sampling_steps"], sort=False))
    confidence = 1 - (1 - CONFIDENCE) / max(1, sum(_paired(rows) for _, rows in groups))
    conditions = []
    for (group, steps), rows in groups:
        values, sound = rows.log_ratio.dropna().tolist(), not len(without_ratio(rows))
        interval, corrected = t_interval(values), t_interval(values, confidence)
        seeds = len(values) if sound else 0
        conditions.append(
            Condition(
                group=group,
                sampling_steps=int(steps),
                interval=interval,
                corrected=corrected,
                seeds=len(values),
                verdict=verdict(*interval[1:], seeds, quantity.direction),
                corrected_verdict=verdict(*corrected[1:], seeds, quantity.direction),
                notes=left_out(rows, quantity),
                sound=sound,
                paired=_paired(rows),
            )
        )
    return conditions


Outcome = tuple[tuple[float, float, float], int, str]  # interval of log-ratios, seeds, verdict


def _every(conditions: list[Condition], direction: str) -> Outcome:
    """The outcome of a universal claim, of the condition that decided: the clearest contradiction, else the weakest
    support."""
    below, measured = direction == "below", [c for c in conditions if c.seeds]
    if against := [c for c in measured if c.corrected_verdict == "contradicted"]:
        decisive = max(against, key=lambda c: c.corrected[1] if below else -c.corrected[2])
        return decisive.corrected, decisive.seeds, "contradicted"
    if not measured:
        return t_interval([]), 0, "inconclusive"
    decisive = max(measured, key=lambda c: c.interval[0] if below else -c.interval[0])
    if {c.verdict for c in conditions} == {"reproduced"}:
        return decisive.interval, decisive.seeds, "reproduced"
    return decisive.corrected, decisive.seeds, "inconclusive"


def _pooled(pairs: pd.DataFrame, conditions: list[Condition], direction: str) -> tuple[Outcome, list[str]]:
    """The outcome over all conditions: their mean for each seed that every condition has, then the interval over
    seeds. And a note that names the other seeds."""
    by_seed = pairs.dropna(subset=["ours", "other"]).groupby("seed").log_ratio
    complete = by_seed.count() == len(conditions)
    rest, means = complete[~complete].index, by_seed.mean()[complete].tolist()
    notes = [f"left out: {seeds_of(rest.to_frame())}, which not every condition has"] if len(rest) else []
    interval, sound = t_interval(means), all(condition.sound for condition in conditions)
    return (interval, len(means), verdict(*interval[1:], len(means) if sound else 0, direction)), notes


def decide(claim: Claim | Comparison, experiment: str, metrics: pd.DataFrame, runs: pd.DataFrame) -> list[dict]:
    """All rows of one claim on one experiment: a row per condition, then the overall row.

    Conditions are the groups of `runs` at the claim's numbers of sampling steps, by default at one step; a universal
    claim takes every number of sampling steps as conditions of their own. The overall row of a plain claim pools
    conditions: the mean over conditions for each seed, then the interval over seeds. What a row leaves out stands in
    brackets behind its condition.

    Args:
        metrics: rows of metrics.csv.
        runs: run, method, seed and `group` (all of a run's settings but method and seed).

    Raises:
        MismatchError: a metric that is not finite; names its run.
    """
    check_finite(experiment, metrics)
    rows = []

    def add(condition: str, label: str, outcome: Outcome, notes: list[str]) -> None:
        interval, seeds, decision = outcome
        condition += f" ({'; '.join(notes)})" * bool(notes)
        effects = (math.exp(value) for value in interval)
        values = (claim.name, claim.paper, experiment, condition, label, *effects, seeds, decision)
        rows.append(dict(zip(COLUMNS, values, strict=True)))

    for quantity in claim.quantities:
        for label, measured in by_extractor(metrics, quantity):
            pairs = log_ratios(measured, runs, quantity)
            if claim.sampling_steps or not claim.universal:
                pairs = pairs[pairs.sampling_steps.isin(claim.sampling_steps or [1])]
            if not _paired(pairs):
                continue  # not both are methods of this experiment
            every = _conditions(pairs, quantity)
            for c in every:
                add(f"{c.group}, {c.sampling_steps}-step", label, (c.interval, c.seeds, c.verdict), c.notes)
            conditions = [condition for condition in every if condition.paired]
            notes = []
            if alone := len(every) - len(conditions):
                notes.append(f"{alone} more without {' or '.join(quantity.names)}")
            if unsound := sum(not condition.sound for condition in conditions):
                notes.append(f"pairs without a ratio in {unsound}")
            if claim.universal:
                add(f"every condition ({len(conditions)})", label, _every(conditions, quantity.direction), notes)
            else:
                outcome, left = _pooled(pairs, conditions, quantity.direction)
                add(f"pooled ({len(conditions)})", label, outcome, notes + left)
    return rows


def check(
    paths: dict[str, str],
    experiment: str,
    metrics: str | Path,
    runs: list[dict[str, Any]],
    claims: list[dict[str, Any]],
) -> None:
    """Decide claims on one experiment's metrics.

    Args:
        paths: `table`, of the verdicts; `definitions`, of the claims that it names.
        claims: as in a checked preset.
    """
    import pandas as pd

    from ..files.storage import read_table, write_json, write_table

    table = pd.DataFrame(runs)[["run", "method", "seed", "group"]]
    measured, rows = read_table(metrics), []
    for claim in _claims(claims):
        decided = decide(claim, experiment, measured, table)
        methods = {method for quantity in claim.quantities for method, _ in quantity.sides}
        if not decided and methods <= set(table.method):
            log.warning(
                "%s: claims: %s: not decided: metrics.csv does not have what it compares", experiment, claim.name
            )
        rows += decided
    write_table(paths["table"], pd.DataFrame(rows, columns=COLUMNS))
    write_json(paths["definitions"], {"claims": claims})


def _claims(definitions: list[dict[str, Any]]) -> list[Claim | Comparison]:
    from pydantic import TypeAdapter

    from ..config.claims import AnyClaim

    return TypeAdapter(list[AnyClaim]).validate_python(definitions)


def defined(files: list[str | Path], names: list[str]) -> dict[str, Claim | Comparison]:
    """The claims of these names, from the definitions that `check` wrote.

    Raises:
        MismatchError: a name has no definition.
    """
    from ..files.storage import AGAIN, read_json

    claims = {claim.name: claim for file in files for claim in _claims(read_json(file)["claims"])}
    if absent := [name for name in names if name not in claims]:
        raise MismatchError(f"{', '.join(map(str, files))}: no claim {absent[0]!r}, which has verdicts; {AGAIN}")
    return {name: claims[name] for name in names}


def is_overall(condition: str) -> bool:
    """Whether a row is a claim's overall row."""
    return condition.startswith(("pooled", "every condition"))


def shown(effect: float, low: float, high: float) -> str:
    """An effect with its interval, as tables show it; a dash where no pair has a ratio."""
    return "–" if math.isnan(effect) else f"{effect:.3g} [{low:.3g}, {high:.3g}]"


def summary(path: str | Path) -> str:
    """The overall rows of the claims table of all experiments as text for a terminal, with each claim's sentence.

    Args:
        path: the table; in the folder of each experiment beside it lie the definitions.
    """
    from ..files.storage import read_table

    table = read_table(path, converters=AS_TEXT)
    lines = []
    for experiment, of_experiment in table.groupby("experiment", sort=False):
        claims = defined([Path(path).parent / experiment / "claims.json"], list(of_experiment.claim.unique()))
        for name, rows in of_experiment.groupby("claim", sort=False):
            lines.append(line(f"{name} on {experiment}: {claims[name].sentence}"))
            for row in rows[rows.condition.map(is_overall)].itertuples():
                interval = shown(row.effect, row.ci_low, row.ci_high)
                words = f"    {row.verdict:<13} {row.quantity:<46} {interval:<26} {row.condition}, {row.n_seeds} seeds"
                lines.append(line(words))
    return "\n".join(lines)
