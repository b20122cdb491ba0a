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
from .distances import FeatureSet, frechet_distance, kernel_distance, precision_recall

Row = dict[str, Any]

_CLIP = "features of images clipped to [-1, 1], full resolution, float32 tensors (no image format)"


def _row(metric: str, value: float, n: int, extractor: str, reference: str, steps: int | None = None) -> Row:
    return {
        "metric": metric,
        "extractor": extractor,
        "reference": reference,
        "sampling_steps": steps,
        "n_samples": n,
        "value": float(value),
    }


def compare(ours: FeatureSet, other: FeatureSet, row: Callable[..., Row]) -> list[Row]:
    """Fréchet and kernel distance, precision and recall of one set against another."""
    precision, recall = precision_recall(ours, other)
    return [
        row("frechet_distance", frechet_distance(ours, other), len(ours)),
        row("kernel_distance", kernel_distance(ours, other), len(ours)),
        row("precision", precision, len(ours)),
        row("recall", recall, len(ours)),
    ]


def _arrays(path: str | Path) -> dict[str, np.ndarray]:
    return load_tensors(path, framework="np")[0]


def _feature_set(extracted: dict[str, np.ndarray], name: str, neighbours: int) -> FeatureSet:
    return FeatureSet(
        extracted[f"{name}.features"], extracted[f"{name}.mean"], extracted[f"{name}.covariance"], neighbours
    )


def _squared_error(a: np.ndarray, b: np.ndarray, where: str | Path) -> float:
    if a.shape != b.shape:
        raise MismatchError(f"{where}: samples of shape {a.shape}, the teacher's have {b.shape}")
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
) -> None:
    """All metrics of one student.

    ODE error: mean squared error to the teacher's N-step endpoint from the same noise, unclipped,
    by number of sampling steps; `ode_error@s=…`: f of the teacher's own trajectory at start s.
    The others compare features with the teacher's samples and with the training data.
    """
    began = time.monotonic()
    ours, extracted, teacher = _arrays(samples), _arrays(features), _arrays(teacher_samples)
    references = {
        "teacher": _feature_set(_arrays(teacher_features), "samples", neighbours),
        "data": _feature_set(_arrays(data_features), "train_images", neighbours),
    }
    labels = _arrays(noise)["labels"]
    extractor = card["name"]
    rows: list[Row] = []
    for name in sorted((n for n in ours if n.startswith("steps_")), key=lambda n: int(n[6:])):
        steps, count = int(name[6:]), len(ours[name])
        error = _squared_error(ours[name], teacher["samples"], samples)
        rows.append(_row("ode_error", error, count, "pixels", "teacher", steps))
        generated = _feature_set(extracted, name, neighbours)
        for reference, other in references.items():

            def row(metric: str, value: float, n: int, reference: str = reference, steps: int = steps) -> Row:
                return _row(metric, value, n, extractor, reference, steps)

            rows += compare(generated, other, row)
        recognised = (extracted[f"{name}.predicted"] == labels).mean()
        rows.append(_row("recognised", recognised, count, extractor, "labels", steps))
    for start in teacher["times"].tolist():
        found = ours[f"from_{start}"]
        error = _squared_error(found, teacher["samples"], samples)
        rows.append(_row(f"ode_error@s={start}", error, len(found), "pixels", "teacher", 1))
    files = {
        "samples": samples,
        "features": features,
        "teacher_samples": teacher_samples,
        "teacher_features": teacher_features,
        "data_features": data_features,
        "noise": noise,
    }
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
) -> None:
    """The teacher's own samples against the training data."""
    began = time.monotonic()
    extracted = _arrays(features)
    generated = _feature_set(extracted, "samples", neighbours)
    reference = _feature_set(_arrays(data_features), "train_images", neighbours)
    extractor, labels = card["name"], _arrays(noise)["labels"]

    def row(metric: str, value: float, n: int, reference: str = "data") -> Row:
        return _row(metric, value, n, extractor, reference, run["n_steps"])

    rows = compare(generated, reference, row)
    rows.append(row("recognised", (extracted["samples.predicted"] == labels).mean(), len(labels), "labels"))
    files = {"features": features, "data_features": data_features, "noise": noise}
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
    """The yardstick: the Fréchet distance between two random halves of the training data (mean of
    `splits` splits), and the classifier's held-out accuracy."""
    began = time.monotonic()
    features = _arrays(data_features)["train_images.features"].astype(np.float64)
    found = []
    for split in range(splits):
        order = generator(0, "halves", split).permutation(len(features))
        a, b = (FeatureSet(features[half]) for half in np.array_split(order, 2))
        found.append(frechet_distance(a, b))
    rows = [
        _row("frechet_distance", float(np.mean(found)), len(features) // 2, card["name"], "other half of the data"),
        _row("held_out_accuracy", card["held_out_accuracy"], card["held_out_count"], card["name"], "labels"),
    ]
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
        "images": _CLIP,
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
