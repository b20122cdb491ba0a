"""From features and samples to rows of `metrics.csv`, each file with its protocol.

A row has metric, extractor, reference, sampling_steps, n_samples, value. NumPy
and safetensors only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MismatchError
from ..provenance import environment
from ..storage import atomic, load_tensors, read_json, sha256, write_json
from ..streams import generator
from ..transport import wasserstein
from .distances import FeatureSet, frechet_distance, kernel_distance, precision_recall

Row = dict[str, Any]

_CLIP = "features of images clipped to [-1, 1], full resolution, float32 tensors (no image format)"
COORDINATES = "coordinates"


def _row(metric: str, value: float, n: int, extractor: str, reference: str, steps: int | None = None) -> Row:
    return {
        "metric": metric,
        "extractor": extractor,
        "reference": reference,
        "sampling_steps": steps,
        "n_samples": n,
        "value": float(value),
    }


def compare(ours: FeatureSet, other: FeatureSet, row: Callable[..., Row], brief: bool = False) -> list[Row]:
    """Fréchet and kernel distance, precision and recall of one set against another; for points (extractor
    `coordinates`) the Wasserstein distance to as many of the other's.

    Args:
        brief: the Fréchet (and Wasserstein) distance alone.
    """
    rows = [row("frechet_distance", frechet_distance(ours, other), len(ours))]
    if not brief:
        precision, recall = precision_recall(ours, other)
        rows.append(row("kernel_distance", kernel_distance(ours, other), len(ours)))
        rows += [row("precision", precision, len(ours)), row("recall", recall, len(ours))]
    if rows[0]["extractor"] == COORDINATES:
        rows.append(row("wasserstein", wasserstein(ours.features, other.features[: len(ours)]), len(ours)))
    return rows


def _arrays(path: str | Path) -> dict[str, np.ndarray]:
    return load_tensors(path, framework="np")[0]


def _feature_set(extracted: dict[str, np.ndarray], name: str, neighbours: int) -> FeatureSet:
    return FeatureSet(
        extracted[f"{name}.features"], extracted[f"{name}.mean"], extracted[f"{name}.covariance"], neighbours
    )


def _reference(path: str | Path, neighbours: int) -> FeatureSet:
    """The set of data that metrics compare with: training images, or a mixture's held-out draws."""
    extracted = _arrays(path)
    name = next(key for key in extracted if key.endswith("_images.features")).removesuffix(".features")
    return _feature_set(extracted, name, neighbours)


def _squared_error(a: np.ndarray, b: np.ndarray, where: str | Path) -> float:
    if a.shape != b.shape:
        raise MismatchError(f"{where}: samples of shape {a.shape}, the reference has {b.shape}")
    return float(np.square(a.astype(np.float64) - b).mean())


def measure_student(
    path: str | Path,
    run: Row,
    samples: str | Path,
    features: str | Path,
    teacher_samples: str | Path,
    teacher_features: str | Path,
    data_features: str | Path,
    noise: str | Path,
    card: dict[str, Any],
    neighbours: int,
    settings: dict[str, Any],
    truth: str | Path | None = None,
) -> None:
    """All metrics of one student of precomputed targets.

    ODE error: mean squared error to the teacher's N-step endpoint from the same noise, unclipped,
    by number of sampling steps; `ode_error@s=…`: f of the teacher's own trajectory at start s. Where
    the ODE's true end is known, the error to that too: to the teacher it is the distillation error,
    to the truth the total. The others compare features with the teacher's samples and with the data.
    """
    began = time.monotonic()
    ours, extracted, teacher = _arrays(samples), _arrays(features), _arrays(teacher_samples)
    references = {
        "teacher": _feature_set(_arrays(teacher_features), "samples", neighbours),
        "data": _reference(data_features, neighbours),
    }
    labels = _arrays(noise)["labels"]
    extractor, space = card["name"], _space(card)
    exact = None if truth is None else _arrays(truth)["vp"]
    rows: list[Row] = []
    for name in sorted((n for n in ours if n.startswith("steps_")), key=lambda n: int(n[6:])):
        steps, count = int(name[6:]), len(ours[name])
        error = _squared_error(ours[name], teacher["samples"], samples)
        rows.append(_row("ode_error", error, count, space, "teacher", steps))
        if exact is not None:
            total = _squared_error(ours[name], exact, samples)
            rows.append(_row("ode_error", total, count, space, "truth", steps))
        generated = _feature_set(extracted, name, neighbours)
        for reference, other in references.items():

            def row(metric: str, value: float, n: int, reference: str = reference, steps: int = steps) -> Row:
                return _row(metric, value, n, extractor, reference, steps)

            rows += compare(generated, other, row)
        rows += _recognised(extracted, name, labels, extractor, steps)
    for start in teacher["times"].tolist():
        found = ours[f"from_{start}"]
        error = _squared_error(found, teacher["samples"], samples)
        rows.append(_row(f"ode_error@s={start}", error, len(found), space, "teacher", 1))
    files = {
        "samples": samples,
        "features": features,
        "teacher_samples": teacher_samples,
        "teacher_features": teacher_features,
        "data_features": data_features,
        "noise": noise,
        **({} if truth is None else {"truth": truth}),
    }
    _write(path, run, rows, files, card, neighbours, settings, began)


def _space(card: dict[str, Any]) -> str:
    """What an ODE error is measured in."""
    return COORDINATES if card["name"] == COORDINATES else "pixels"


def _recognised(
    extracted: dict[str, np.ndarray], name: str, labels: np.ndarray, extractor: str, steps: int
) -> list[Row]:
    """The share of samples whose predicted class is their label, where the extractor predicts one."""
    if f"{name}.predicted" not in extracted:
        return []
    share = (extracted[f"{name}.predicted"] == labels).mean()
    return [_row("recognised", share, len(labels), extractor, "labels", steps)]


def measure_pairs_student(
    path: str | Path,
    run: Row,
    samples: str | Path,
    features: str | Path,
    data_features: str | Path,
    noise: str | Path,
    card: dict[str, Any],
    neighbours: int,
    settings: dict[str, Any],
    truth: str | Path | None = None,
) -> None:
    """All metrics of one student trained from pairs, against the data.

    `…@budget=b`: of its one-step samples after the share b of its training. Where the ODE's true end
    is known: the ODE error to it, from the same noise at σ_max.
    """
    began = time.monotonic()
    ours, extracted, labels = _arrays(samples), _arrays(features), _arrays(noise)["labels"]
    data, extractor = _reference(data_features, neighbours), card["name"]
    exact = None if truth is None else _arrays(truth)["ve"]
    rows: list[Row] = []
    for name in sorted(ours, key=lambda n: (n.startswith("budget_"), float(n.split("_")[1]))):
        kind, _, number = name.partition("_")
        steps, place = (int(number), "") if kind == "steps" else (1, f"@budget={float(number):g}")

        def row(metric: str, value: float, n: int, steps: int = steps, place: str = place) -> Row:
            return _row(metric + place, value, n, extractor, "data", steps)

        found = compare(_feature_set(extracted, name, neighbours), data, row, brief=bool(place))
        if exact is not None:
            error = _squared_error(ours[name], exact, samples)
            found.append(_row(f"ode_error{place}", error, len(exact), _space(card), "truth", steps))
        if not place:
            found += _recognised(extracted, name, labels, extractor, steps)
        rows += found
    files = {"samples": samples, "features": features, "data_features": data_features, "noise": noise}
    files |= {} if truth is None else {"truth": truth}
    _write(path, run, rows, files, card, neighbours, settings, began)


def measure_teacher(
    path: str | Path,
    run: Row,
    features: str | Path,
    data_features: str | Path,
    noise: str | Path,
    card: dict[str, Any],
    neighbours: int,
    settings: dict[str, Any],
    samples: str | Path | None = None,
    truth: str | Path | None = None,
) -> None:
    """The teacher's own samples against the data; against the ODE's true end where it is known, which is
    the solver's discretisation error.

    Args:
        samples: the teacher's, needed with `truth`.
    """
    began = time.monotonic()
    extracted = _arrays(features)
    generated = _feature_set(extracted, "samples", neighbours)
    reference = _reference(data_features, neighbours)
    extractor, labels = card["name"], _arrays(noise)["labels"]

    def row(metric: str, value: float, n: int, reference: str = "data") -> Row:
        return _row(metric, value, n, extractor, reference, run["n_steps"])

    rows = compare(generated, reference, row)
    rows += _recognised(extracted, "samples", labels, extractor, run["n_steps"])
    files = {"features": features, "data_features": data_features, "noise": noise}
    if truth is not None:
        error = _squared_error(_arrays(samples)["samples"], _arrays(truth)["vp"], samples)
        rows.append(_row("ode_error", error, len(labels), _space(card), "truth", run["n_steps"]))
        files |= {"samples": samples, "truth": truth}
    _write(path, run, rows, files, card, neighbours, settings, began)


def measure_data(
    path: str | Path,
    run: Row,
    data_features: str | Path,
    card: dict[str, Any],
    neighbours: int,
    settings: dict[str, Any],
    splits: int = 5,
) -> None:
    """The yardstick: the Fréchet distance between two random halves of the data (mean of `splits` splits;
    of points also the Wasserstein distance), and the classifier's held-out accuracy."""
    began = time.monotonic()
    features = _reference(data_features, neighbours).features
    found: dict[str, list[float]] = {}
    for split in range(splits):
        order = generator(0, "halves", split).permutation(len(features))
        a, b = (FeatureSet(features[half]) for half in np.array_split(order, 2))
        found.setdefault("frechet_distance", []).append(frechet_distance(a, b))
        if card["name"] == COORDINATES:
            size = min(len(a), len(b))
            found.setdefault("wasserstein", []).append(wasserstein(a.features[:size], b.features[:size]))
    other, half = "other half of the data", len(features) // 2
    rows = [_row(metric, float(np.mean(values)), half, card["name"], other) for metric, values in found.items()]
    if "held_out_accuracy" in card:
        value, count = card["held_out_accuracy"], card["held_out_count"]
        rows.append(_row("held_out_accuracy", value, count, card["name"], "labels"))
    _write(path, run, rows, {"data_features": data_features}, card, neighbours, settings, began)


def _write(
    path: str | Path,
    run: Row,
    rows: list[Row],
    files: dict[str, str | Path],
    card: dict[str, Any],
    neighbours: int,
    settings: dict[str, Any],
    began: float,
) -> None:
    protocol = {
        "files_sha256": {name: sha256(file) for name, file in files.items()},
        "extractor": card["name"],
        "extractor_sha256": card["weights_sha256"],
        "samples": "coordinates as they are, float64" if card["name"] == COORDINATES else _CLIP,
        "precision_recall_neighbours": neighbours,
    }
    value = {"run": run, "rows": rows, "protocol": protocol, "settings": settings, "environment": environment()}
    write_json(path, value | {"wall_time_s": round(time.monotonic() - began, 3)})


COLUMNS = [
    "experiment",
    "run",
    "method",
    "solver",
    "n_steps",
    "guidance",
    "seed",
    "sampling_steps",
    "metric",
    "extractor",
    "reference",
    "n_samples",
    "value",
]


def collect(path: str | Path, experiment: str, files: list[str | Path]) -> None:
    """Join the rows of an experiment's metric JSON files into one long CSV with `COLUMNS`."""
    import pandas as pd

    rows = []
    for file in files:
        measured = read_json(file)
        rows += [{"experiment": experiment} | measured["run"] | row for row in measured["rows"]]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    for column in ("n_steps", "seed", "sampling_steps"):
        frame[column] = frame[column].astype("Int64")
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)
