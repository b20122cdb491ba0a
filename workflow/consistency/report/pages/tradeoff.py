"""ODE error against sample quality, with experiment, condition, sampling steps and measures to choose."""

from __future__ import annotations

import gzip
from base64 import b64encode
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.colors import to_hex
from plotly.offline import get_plotlyjs

from ...config.claims import OTHER_NOISES
from ...files.storage import read_table
from ..figures import style
from ..statistics import t_interval
from ..tables import condition_label, distance_label, method_label, teacher_of, unit_of, yardstick
from . import shell

_SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "P": "cross", "X": "x", "h": "hexagon"} | {
    sign: f"triangle-{way}" for sign, way in {"^": "up", "v": "down", "<": "left", ">": "right"}.items()
}
_QUALITY = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "Kernel distance",
    "stratified_wasserstein": "Stratified Wasserstein distance",
    "wasserstein": "Wasserstein distance",
    "mode_distance": "Distance to the nearest mode",
    "mode_share_error": "Error of the modes' shares",
    "precision": "Precision",
    "recall": "Recall",
    "recognised": "Share recognised as its label",
    "clip_score": "CLIP score",
    "aesthetic_score": "Aesthetic score",
}
_HIGHER = {"precision", "recall", "recognised", "clip_score", "aesthetic_score"}
_REFERENCES = {
    "teacher": " to the teacher's samples",
    OTHER_NOISES: " to the teacher's samples from other noises",
    "data": " to the data",
}
_ERRORS = {"teacher": "the teacher's sample", "truth": "the true end of the ODE"}
_ORDER = ["data", "teacher", OTHER_NOISES, "truth", "labels", "prompts", "none"]  # of what measures compare with


def draw(
    path: str | Path,
    template: str | Path,
    metrics: str | Path,
    runs: dict[str, list[dict[str, Any]]],
    titles: dict[str, str],
) -> None:
    """Write the page.

    Args:
        metrics: metrics.csv of all experiments.
        runs: by experiment, the table of its runs (run, method, group, solver, n_steps, guidance, seed, targets,
            parameters); experiments without ODE errors are left out.
        titles: of the experiments.
    """
    table = read_table(metrics, converters={"experiment": str, "method": str})  # as they are called: 1e3, NA
    table = table[table.metric.isin([*_QUALITY, "ode_error"])]
    parts = {
        name: _experiment(table[table.experiment == name], rows, titles[name])
        for name, rows in runs.items()
        if ((table.experiment == name) & (table.metric == "ode_error")).any()
    }
    # plotly.js, packed: the page is less than half as large
    library = b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    shell.write(path, "ODE error against sample quality", template, {"experiments": parts, "plotly": library})


def _experiment(table: pd.DataFrame, runs: list[dict[str, Any]], title: str) -> dict[str, Any]:
    """Conditions, methods with their looks, measures and values of one experiment."""
    groups = {run["group"]: _condition(run) for run in runs}
    frame = pd.DataFrame([{key: run[key] for key in ("run", "method", "group", "seed")} for run in runs])
    ours = table.drop(columns=["method", "seed"]).merge(frame, on="run")
    named = ours[ours.reference.isin(_ORDER)]
    words = ["ode_error", *_QUALITY, *dict.fromkeys(named.extractor), *_ORDER]
    order = {word: position for position, word in enumerate(words)}
    measured = set(zip(named.metric, named.extractor, named.reference, strict=True))
    kept = {key: number for number, key in enumerate(sorted(measured, key=lambda k: [order[part] for part in k]))}
    measures = [_measure(*key, unit_of(ours)) for key in kept]

    values = []
    keys = ["group", "method", "sampling_steps", "metric", "extractor", "reference"]
    for (group, method, steps, *key), chosen in ours.groupby(keys, sort=False):
        if tuple(key) in kept:
            mean, low, _ = t_interval(chosen.value.tolist())
            half = _short(mean - low) if len(chosen) > 1 else None
            seeds = {str(seed): _short(value) for seed, value in zip(chosen.seed, chosen.value, strict=True)}
            values.append([group, method, int(steps), kept[tuple(key)], _short(mean), half, seeds])
    for group, condition in groups.items():
        own = yardstick(table, condition["teacher"]) if condition["teacher"] else table.head(0)
        of_teacher = [(kept.get((r.metric, r.extractor, r.reference)), r.mean) for r in own.itertuples()]
        if of_teacher:  # its distance to its own samples is 0 by definition
            errors = [n for key, n in kept.items() if key[0] == "ode_error" and key[2] == "teacher"]
            of_teacher += [(number, 0.0) for number in errors]
        values += [[group, "teacher", None, n, _short(v), None, {}] for n, v in of_teacher if n is not None]
    of_data = yardstick(table, "data")
    yardsticks = {
        kept[r.metric, r.extractor, r.reference]: _short(r.mean)
        for r in of_data[of_data.reference == "data"].itertuples()
        if (r.metric, r.extractor, r.reference) in kept
    }
    looks = {
        method: {
            "label": method_label(method, runs),
            "color": to_hex(look["color"]),
            "symbol": _SYMBOLS[look["marker"]],
        }
        for method, look in style.looks(runs).items()
    }
    looks["teacher"] = {"label": "Teacher, N steps", "color": "#404040", "symbol": "star"}
    return {
        "title": title,
        "conditions": groups,
        "methods": looks,
        "measures": measures,
        "values": values,
        "yardsticks": yardsticks,
    }


def _condition(run: dict[str, Any]) -> dict[str, Any]:
    """What of a condition can be picked; a run from scratch has no solver, N and w."""
    if run["group"] == "scratch":
        return {"label": condition_label("scratch"), "solver": "from scratch", "teacher": None}
    return {
        "label": condition_label(run["group"]),
        "solver": condition_label(run["group"]).split(",")[0],
        "n": run["n_steps"],
        "w": run["guidance"],
        "targets": run["targets"],
        "parameters": run["parameters"],
        "teacher": teacher_of(run["group"]),
    }


def _measure(metric: str, extractor: str, reference: str, unit: str) -> dict[str, Any]:
    """What a measure is called, and which way is better."""
    if metric == "ode_error":
        return {"label": f"ODE error to {_ERRORS[reference]}", "axis": "x", "unit": f"mean squared error per {unit}"}
    name = _QUALITY[metric]
    if metric == "frechet_distance" and distance_label(extractor) != "Fréchet":
        name = distance_label(extractor)
    better = "higher is better" if metric in _HIGHER else "lower is better"
    of = "of" if metric in _HIGHER else "in"
    space = "coordinates" if extractor == "coordinates" else f"features of {extractor}"
    where = extractor if reference in ("labels", "prompts", "none") else space
    return {"label": f"{name}{_REFERENCES.get(reference, '')}, {of} {where}", "axis": "y", "unit": better}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
