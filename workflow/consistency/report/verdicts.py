"""Verdicts on the claims of an experiment: from its metrics to the table; and the table in words."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MismatchError
from ..escape import line
from . import soundness
from .decisions import MINIMUM_SEEDS, Condition, Criterion, Overall
from .ratios import check_finite, lacking, log_ratios, problem, ratio
from .statistics import LEVEL, SAMPLED, Estimate, estimate, holm, pooled

if TYPE_CHECKING:
    import pandas as pd

    from ..config.claims import Claim, Comparison, Quantity

log = logging.getLogger(__name__)

COLUMNS = [
    *("claim", "paper", "experiment", "condition", "quantity", "effect", "ci_low", "ci_high", "n_seeds"),
    *("verdict", "reason"),
]
# For `read_table`: an experiment called 1e3 or NA keeps its name.
AS_TEXT = dict.fromkeys(("claim", "paper", "experiment", "condition", "quantity", "verdict", "reason"), str)


DISTANCES = {"inception-v3": "FID", "dinov2": "FD-DINOv2"}  # names of Fréchet distances that have one of their own


def by_extractor(metrics: pd.DataFrame, quantity: Quantity) -> list[tuple[str, pd.DataFrame]]:
    """A label for each extractor that measured a quantity, with its rows of metrics.csv; the Fréchet distance in
    Inception-v3 features is called FID there, and nowhere else."""
    rows = metrics[(metrics.metric == quantity.sides[0].metric) & (metrics.reference == quantity.sides[0].reference)]
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
class Decided:
    """A quantity's rows: its conditions, and all of them together.

    Attributes:
        conditions: all that one side at least was run in.
    """

    claim: Claim | Comparison
    label: str
    conditions: list[Condition]
    overall: Overall


def _condition(rows: pd.DataFrame, quantity: Quantity, criterion: Criterion, unsound: list[str]) -> Condition:
    """One condition of a quantity, from the pairs of its seeds."""
    ratios = rows.dropna(subset=["log_ratio"]).set_index("seed").log_ratio.to_dict()
    reason = problem(rows, quantity)
    if not reason and len(ratios) < MINIMUM_SEEDS:
        reason = f"{len(ratios)} seed{'s' * (len(ratios) != 1)}, needs {MINIMUM_SEEDS}"
    return Condition(
        group=rows.group.iloc[0],
        sampling_steps=int(rows.sampling_steps.iloc[0]),
        criterion=criterion,
        estimate=estimate(list(ratios.values())),
        ratios=ratios,
        problem=reason,
        unsound=unsound[0] if unsound else "",
        notes=tuple(lacking(rows, quantity)),
        paired=not (rows.ours.isna().all() or rows.other.isna().all()),
    )


def _overall(every: list[Condition], quantity: Quantity, criterion: Criterion, universal: bool) -> Overall:
    """The conditions together: those that both sides have, without those that are not sound."""
    import numpy as np

    paired = [condition for condition in every if condition.paired]
    conditions = [condition for condition in paired if not condition.unsound] or paired
    seeds = sorted(set().union(*(condition.ratios for condition in conditions)))
    complete = [seed for seed in seeds if all(seed in condition.ratios for condition in conditions)]
    table = np.array([[condition.ratios[seed] for seed in complete] for condition in conditions])
    notes, reason = [], ""
    if not universal and len(complete) < len(seeds):
        left = ", ".join(str(seed) for seed in seeds if seed not in complete)
        notes.append(f"seeds that not every condition has are left out: {left}")
    if alone := len(every) - len(paired):
        notes.append(f"{alone} more without {' or '.join(quantity.names)}")
    if unsound := len(paired) - len(conditions):
        notes.append(f"{unsound} more unsound")
    if without := sum("no ratio" in condition.problem for condition in conditions):
        reason = f"pairs without a ratio in {without}"
    elif len(complete) < MINIMUM_SEEDS:
        reason = f"{len(complete)} seeds that every condition has, needs {MINIMUM_SEEDS}"
    return Overall(conditions, criterion, pooled(table), universal, reason, notes)


def decisions(
    claims: Sequence[Claim | Comparison],
    metrics: pd.DataFrame,
    runs: pd.DataFrame,
    margin: float,
    unsound: Mapping[str, str],
    settled: float | None,
) -> list[Decided]:
    """The conditions of every quantity of these claims that was measured; arguments as of `decide`.

    Conditions are the groups of `runs` at the claim's numbers of sampling steps, by default at one step; a universal
    claim takes every number of sampling steps as conditions of their own.
    """
    decided = []
    for claim in claims:
        for quantity in claim.quantities:
            own = quantity.margin
            criterion = Criterion(quantity.direction, quantity.bound, margin if own is None else own)
            methods = {side.method for side in quantity.sides}
            bad = runs[runs.method.isin(methods) & runs.run.isin(unsound)]
            reasons = {group: [unsound[run] for run in rows.run] for group, rows in bad.groupby("group")}
            for label, measured in by_extractor(metrics, quantity):
                pairs = log_ratios(measured, runs, quantity)
                if claim.sampling_steps or not claim.universal:
                    pairs = pairs[pairs.sampling_steps.isin(claim.sampling_steps or [1])]
                every = [
                    _condition(rows, quantity, criterion, reasons.get(group, []))
                    for (group, _), rows in pairs.groupby(["group", "sampling_steps"], sort=False)
                ]
                every = soundness.settled(every, quantity, measured, runs, settled)
                if any(condition.paired for condition in every):  # else not both are methods of this experiment
                    overall = _overall(every, quantity, criterion, claim.universal)
                    decided.append(Decided(claim, label, every, overall))
    return decided


def decide(
    claims: Sequence[Claim | Comparison],
    experiment: str,
    metrics: pd.DataFrame,
    runs: pd.DataFrame,
    *,
    margin: float = 0.05,
    unsound: Mapping[str, str] | None = None,
    settled: float | None = None,
) -> list[dict[str, Any]]:
    """All rows of an experiment's claims: of each quantity a row per condition, then the overall row.

    Overall rows are tested together (Holm); the intervals shown are at 95 % all the same. What a row leaves out stands
    in its reason.

    Args:
        metrics: rows of metrics.csv.
        runs: run, method, seed and `group` (all of a run's settings but method and seed).
        margin: of no practical difference, where a quantity has none of its own.
        unsound: id of each run that is not sound → reason.
        settled: the share of training at which ratios have to be on the same side (`soundness.settled`); None: none.

    Raises:
        MismatchError: a metric that is not finite; names its run.
    """
    check_finite(experiment, metrics)
    return [row for row, _ in _rows(decisions(claims, metrics, runs, margin, unsound or {}, settled), experiment)]


def _rows(decided: list[Decided], experiment: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row, and its evidence: what the forest plot shows besides."""
    rows = [one.overall for one in decided if not one.overall.unsound]
    levels = iter(holm(rows, lambda overall, at: overall.decide(at)[0] not in ("inconclusive", "mixed")))
    for one in decided:
        first, overall = (one.claim.name, one.claim.paper, experiment), one.overall
        zone = {"bound": overall.criterion.bound, "margin": overall.criterion.margin}
        for c in one.conditions:
            row = _row((*first, c.name, one.label), c.estimate, (c.verdict(), c.reason()))
            yield row, zone | {"ratios": [ratio(value) for value in c.ratios.values()]}
        level = LEVEL if overall.unsound else next(levels)
        verdict, reason, shown = overall.decide(level)
        tested = [ratio(end) for end in shown.interval(level)[1:]]
        name = f"{'every condition' if one.claim.universal else 'pooled'} ({len(overall.conditions)})"
        sampled = len(overall.conditions) >= SAMPLED and not one.claim.universal
        low, high = overall.pooled.prediction
        yield (
            _row((*first, name, one.label), shown, (verdict, reason)),
            zone
            | {
                "tested": tested if math.isfinite(tested[1]) and (len(overall.conditions) == 1 or sampled) else None,
                "tau": overall.pooled.tau if sampled else None,
                "i2": overall.pooled.i2 if sampled else None,
                "prediction": [ratio(low), ratio(high)] if sampled and math.isfinite(high) else None,
            },
        )


def _row(names: tuple[str, ...], shown: Estimate, last: tuple[str, str]) -> dict[str, Any]:
    effects = (ratio(value) for value in shown.interval())
    return dict(zip(COLUMNS, (*names, *effects, shown.count, *last), strict=True))


def check(
    paths: dict[str, str],
    experiment: str,
    metrics: str | Path,
    runs: list[dict[str, Any]],
    claims: list[dict[str, Any]],
    *,
    margin: float = 0.05,
    gates: soundness.Gates | None = None,
    replicates: str = "all",
) -> None:
    """Decide claims on one experiment's metrics.

    Args:
        paths: `table`, of the verdicts; `definitions`, of the claims that it names, with what the forest plot shows of
            each row besides.
        claims: as in a checked preset; margin as of `decide`.
        gates: what has to be sound (`soundness.unsound`); by default nothing.
        replicates: what a seed redraws, `all` or `students`; the reasons of overall rows say so of the second.
    """
    import pandas as pd

    from ..files.storage import read_table, write_json, write_table

    table = pd.DataFrame(runs)[["run", "method", "seed", "group"]]
    defined = _claims(claims)
    measured = read_table(metrics)
    check_finite(experiment, measured)
    unsound, settled = {}, None
    if gates:
        unsound, settled = soundness.unsound(measured, runs, gates), gates["student"]["settled"]
    rows = list(_rows(decisions(defined, measured, table, margin, unsound, settled), experiment))
    for row, _ in rows:
        if replicates == "students" and is_overall(row["condition"]) and row["verdict"] != "unsound":
            row["reason"] += "; intervals cover students alone: all seeds share teacher, targets and noise"
    decided = {row["claim"] for row, _ in rows}
    for claim in defined:
        methods = {side.method for quantity in claim.quantities for side in quantity.sides}
        if claim.name not in decided and methods <= set(table.method):
            log.warning(
                "%s: claims: %s: not decided: metrics.csv does not have what it compares", experiment, claim.name
            )
    write_table(paths["table"], pd.DataFrame([row for row, _ in rows], columns=COLUMNS))
    write_json(paths["definitions"], {"claims": claims, "evidence": [evidence for _, evidence in rows]})


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
                if row.verdict != "reproduced" or "interval" not in row.reason:  # else the line says it
                    lines.append(line(f"    {'':<13} {row.reason}"))
    return "\n".join(lines)
