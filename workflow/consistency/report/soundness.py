"""Whether what a claim compares is sound: no verdict on students of a bad teacher, on features that see nothing, or on
samples that are noise. The gates are a preset's (`config.gates`); docs/metrics.md says what they are for."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ratios import log_ratios, ratio

if TYPE_CHECKING:
    import pandas as pd

    from ..config.claims import Quantity
    from .decisions import Condition

Row = Mapping[str, Any]
Gates = Mapping[str, Any]  # of `config.gates.Gates`, and `deviation` of a mixture

HALVES = "other half of the data"
# Distances of points → their names, and the reference of what exact draws score.
_OF_POINTS = {
    "frechet_distance": ("Fréchet distance", HALVES),
    "stratified_wasserstein": ("stratified Wasserstein distance", "data"),
}

log = logging.getLogger(__name__)


def unsound(metrics: pd.DataFrame, runs: Iterable[Row], gates: Gates) -> dict[str, str]:
    """The runs that no verdict may rest on: id → the first gate that is not met, in words.

    The classifier's gate is every run's; a teacher's is that of all runs of its condition and, where each seed has a
    teacher, its seed. A gate asks only for what is measured: without a classifier nothing is recognised.

    Args:
        metrics: rows of metrics.csv.
        runs: run, seed, solver, n_steps, guidance.
    """
    by_run: dict[str, list[Row]] = defaultdict(list)
    for row in metrics.astype(object).where(metrics.notna(), None).to_dict("records"):
        by_run[row["run"]].append(row)
    teachers = {_taught(rows[0]): rows for rows in by_run.values() if rows[0]["method"] == "teacher"}
    data, unmet = by_run["data"], {}
    for run in runs:
        teacher = teachers.get(_taught(run)) or teachers.get(_taught({**run, "seed": None}))
        reasons = (
            _features(data, gates),
            teacher and _teacher(teacher, data, gates),
            _student(run["run"], by_run[run["run"]], teacher, data, gates),
        )
        if reason := next(filter(None, reasons), None):
            unmet[run["run"]] = reason
    return unmet


def settled(
    conditions: list[Condition], quantity: Quantity, metrics: pd.DataFrame, runs: pd.DataFrame, share: float | None
) -> list[Condition]:
    """The conditions of a quantity; one that decides at one sampling step while the mean ratio was on the other side of
    the bound after this share of the training is unsound. Where that was not measured nothing is asked."""
    if share is None or not isinstance(quantity.metric, str) or "@" in quantity.metric:
        return conditions
    before = quantity.model_copy(update={"metric": f"{quantity.metric}@budget={share:g}"})
    earlier = log_ratios(metrics, runs, before).groupby("group").log_ratio.mean().dropna()
    middle = math.log(quantity.bound)

    def judged(condition: Condition) -> Condition:
        mean, then = condition.estimate.mean, earlier.get(condition.group)
        decides = condition.sampling_steps == 1 and condition.verdict() in ("reproduced", "contradicted")
        if not decides or then is None or (mean - middle) * (then - middle) >= 0:
            return condition
        words = f"not settled: {ratio(then):.3g} at {share:g} of the training, {ratio(mean):.3g} at its end"
        return replace(condition, unsound=words)

    return [judged(condition) for condition in conditions]


def warn(measured: str | Path, data: str | Path, gates: Gates) -> None:
    """Log a warning where what a metric JSON says of the data or of a teacher does not meet a gate.

    Args:
        data: the metric JSON of the data.
    """
    from ..files.storage import read_json

    value, yardsticks = read_json(measured), read_json(data)["rows"]
    rows = [value["run"] | row for row in value["rows"]]
    teacher = value["run"]["method"] == "teacher"
    if reason := _teacher(rows, yardsticks, gates) if teacher else _features(yardsticks, gates):
        log.warning("%s: %s: every verdict that rests on it will be unsound", measured, reason)


def _taught(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("solver", "n_steps", "guidance", "seed"))


def _features(data: list[Row], gates: Gates) -> str | None:
    needed = gates["features"]["accuracy"] or 0
    for row in data:
        if row["metric"] == "held_out_accuracy" and row["value"] < needed:
            return f"classifier right on {row['value']:.3g} of held-out images, needs {needed:g}"
    return None


def _teacher(rows: list[Row], data: list[Row], gates: Gates) -> str | None:
    own, reason = gates["teacher"], _recognised("teacher", rows, _shares(data, "held_out_accuracy"), gates["teacher"])
    if reason is None and rows[0].get("guidance") == 1:  # other guidance is meant to leave the data's distribution
        reason = _in_halves("teacher", rows, data, own, "data")
    return reason or _in_deviations("teacher", rows, data, own, gates["deviation"])


def _student(run: str, rows: list[Row], teacher: list[Row] | None, data: list[Row], gates: Gates) -> str | None:
    steps = min((row["sampling_steps"] for row in rows if row["metric"] == "frechet_distance"), default=1)
    own, rows = gates["student"], [row for row in rows if row["sampling_steps"] == steps]
    reference = _shares(teacher, "recognised") if teacher else _shares(data, "held_out_accuracy")
    return (
        _recognised(run, rows, reference, own)
        or _in_halves(run, rows, data, own, "teacher" if teacher else "data")
        or _in_deviations(run, rows, data, own, gates["deviation"])
    )


def _shares(rows: list[Row], metric: str) -> dict[str, float]:
    """Values of a metric by extractor."""
    return {row["extractor"]: row["value"] for row in rows if row["metric"] == metric}


def _value(rows: list[Row], metric: str, reference: str, extractor: str | None = None) -> float | None:
    for row in rows:
        if row["metric"] == metric and row["reference"] == reference and extractor in (None, row["extractor"]):
            return row["value"]
    return None


def _recognised(who: str, rows: list[Row], shares: Mapping[str, float], own: Row) -> str | None:
    """The gate on the share recognised, in units of the reference's share in the same extractor."""
    for extractor, share in _shares(rows, "recognised").items():
        needed = (own["recognised"] or 0) * shares.get(extractor, 0)
        if share < needed:
            return f"{who} recognised at {share:.3g}, needs {needed:.3g}"
    return None


def _in_halves(who: str, rows: list[Row], data: list[Row], own: Row, reference: str) -> str | None:
    """The gate on the Fréchet distance of images, in features of the extractor that leads."""
    leading = next((row for row in data if row["metric"] == "frechet_distance" and row["reference"] == HALVES), None)
    limit = own["distance_in_halves"]
    if limit is None or leading is None or leading["extractor"] == "coordinates":
        return None
    value, largest = _value(rows, "frechet_distance", reference, leading["extractor"]), limit * leading["value"]
    if value is None or value <= largest:
        return None
    return f"{who} at a distance of {value:.3g} to {reference}, needs at most {largest:.3g}"


def _in_deviations(who: str, rows: list[Row], data: list[Row], own: Row, deviation: float | None) -> str | None:
    """The gate on distances of points.

    A network that always answers the data's mean is one deviation away from the data. The Fréchet distance sees that in
    any dimension, but not where points lie; the stratified Wasserstein distance sees that where draws are dense, in few
    dimensions. What exact draws score is taken off, squared.
    """
    limit = own["distance_in_deviations"]
    for metric, (name, of_draws) in _OF_POINTS.items() if limit and deviation else ():
        value, draws = _value(rows, metric, "data"), _value(data, metric, of_draws)
        if value is None or draws is None:
            continue
        beyond = value - draws if metric == "frechet_distance" else value**2 - draws**2  # the first is a square
        share = math.sqrt(max(0.0, beyond)) / deviation
        if share > limit:
            return f"{who} {share:.2g} deviations off the data ({name}), needs at most {limit:g}"
    return None
