"""From features and samples to rows of `metrics.csv`, each file with its protocol.

A row has metric, extractor, reference, sampling_steps, n_samples, value. NumPy
and safetensors only.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.claims import OTHER_NOISES
from ..errors import MismatchError
from ..files.storage import AGAIN, load_tensors, read_json, sha256, write_json, write_table
from ..flow.transport import wasserstein
from ..runtime.provenance import environment
from .distances import FeatureSet, frechet_distance, kernel_distance, precision_recall
from .features import COORDINATES
from .modes import Modes

if TYPE_CHECKING:
    from .own import OwnMetrics

Row = dict[str, Any]
Card = dict[str, Any]
_SCORES = {"clip_score": "prompts", "aesthetic_score": "none"}  # of single images → what they are compared with


def _row(metric: str, value: float, n: int, extractor: str, reference: str, steps: int | None = None) -> Row:
    return {
        "metric": metric,
        "extractor": extractor,
        "reference": reference,
        "sampling_steps": steps,
        "n_samples": n,
        "value": float(value),
    }


def compare(ours: FeatureSet, other: FeatureSet, points: bool = False, brief: bool = False) -> dict[str, float]:
    """Fréchet and kernel distance, precision and recall of one set against another, by the names of their metrics.

    Args:
        points: they are points in their own coordinates; with the Wasserstein distance to as many of the other's.
        brief: the Fréchet (and Wasserstein) distance alone.
    """
    values = {"frechet_distance": frechet_distance(ours, other)}
    if not brief:
        values["kernel_distance"] = kernel_distance(ours, other)
        values["precision"], values["recall"] = precision_recall(ours, other)
    if points:
        values["wasserstein"] = wasserstein(ours.features, other.features[: len(ours)])
    return values


def _against(
    ours: FeatureSet, others: dict[str, FeatureSet], card: Card, modes: Modes | None, *, steps: int, suffix: str = ""
) -> list[Row]:
    """Rows of samples against each reference; against the data also what the modes of a mixture say of them."""
    rows = []
    for reference, other in others.items():
        measured = compare(ours, other, points=card["name"] == COORDINATES, brief=bool(suffix))
        if modes and reference == "data":
            measured |= modes.measures(ours.features)
        for metric, value in measured.items():
            rows.append(_row(metric + suffix, value, len(ours), card["name"], reference, steps))
    return rows


def modes_of(of_data: dict[str, np.ndarray]) -> Modes | None:
    """The modes that the features of a mixture's data come with; None of other data."""
    names = ("weights", "means", "covariances")
    return Modes(*(of_data[f"mode_{name}"] for name in names)) if "mode_weights" in of_data else None


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, whose floating-point numbers are finite."""
    arrays = load_tensors(path, framework="np")[0]
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise MismatchError(f"{path}: {name} holds numbers that are not finite; {AGAIN}")
    return arrays


def feature_set(extracted: dict[str, np.ndarray], card: Card, name: str, neighbours: int) -> FeatureSet:
    key = f"{card['name']}/{name}"
    if (count := len(extracted[f"{key}.features"])) <= neighbours:
        raise MismatchError(
            f"evaluation.neighbours: {neighbours}, but {name} of {card['name']} has {count} samples; allowed: fewer "
            "neighbours than samples"
        )
    parts = (extracted[f"{key}.{part}"] for part in ("features", "mean", "covariance"))
    return FeatureSet(*parts, neighbours, f"features {key}")


def reference_set(extracted: dict[str, np.ndarray], card: Card, neighbours: int) -> FeatureSet:
    """The set of data that metrics compare with: training images, or a mixture's held-out draws."""
    start, end = f"{card['name']}/", "_images.features"
    name = next(key for key in extracted if key.startswith(start) and key.endswith(end))
    return feature_set(extracted, card, name.removeprefix(start).removesuffix(".features"), neighbours)


def teacher_sets(extracted: dict[str, np.ndarray], card: Card, neighbours: int) -> dict[str, FeatureSet]:
    """The teacher's samples by what they are called as a reference: from the shared noises, and where there are any
    from others."""
    sets = {"teacher": "samples", OTHER_NOISES: "other_samples"}
    return {
        reference: feature_set(extracted, card, name, neighbours)
        for reference, name in sets.items()
        if f"{card['name']}/{name}.features" in extracted
    }


def with_features(extracted: dict[str, np.ndarray], cards: list[Card]) -> list[Card]:
    """The extractors that give features; the others give scores."""
    return [
        card for card in cards if any(key.startswith(f"{card['name']}/") and ".features" in key for key in extracted)
    ]


def scores(extracted: dict[str, np.ndarray], cards: list[Card], name: str, steps: int | None) -> list[Row]:
    """The mean of each score of single images."""
    rows = []
    for card in cards:
        for metric, reference in _SCORES.items():
            if (key := f"{card['name']}/{name}.{metric}") in extracted:
                value, extractor = extracted[key].mean(), "aesthetic" if metric == "aesthetic_score" else card["name"]
                rows.append(_row(metric, value, len(extracted[key]), extractor, reference, steps))
    return rows


def _squared_error(a: np.ndarray, b: np.ndarray, where: str | Path) -> float:
    if a.shape != b.shape:
        raise MismatchError(f"{where}: samples of shape {a.shape}, the reference has {b.shape}")
    return float(np.square(a.astype(np.float64) - b).mean())


@dataclass(frozen=True)
class References:
    """Files that a student's samples are compared with.

    Attributes:
        data_features, noise: of the data, and the shared initial noise with its labels.
        teacher_samples, teacher_features: of the teacher of a student of targets.
        truth: the ODE's true end from the noise, where it is known; truth_of: the flow's tensor there.
    """

    data_features: str | Path
    noise: str | Path
    teacher_samples: str | Path | None = None
    teacher_features: str | Path | None = None
    truth: str | Path | None = None
    truth_of: str = "vp"

    @property
    def files(self) -> dict[str, str | Path]:
        """Those that there are, by name."""
        names = ("teacher_samples", "teacher_features", "data_features", "noise", "truth")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def measure_student(
    path: str | Path,
    run: Row,
    samples: str | Path,
    features: str | Path,
    references: References,
    *,
    cards: list[Card],
    neighbours: int,
    settings: dict[str, Any],
    space: str = "pixels",
    own: OwnMetrics | None = None,
) -> None:
    """All metrics of one student.

    ODE error: mean squared error, unclipped, by number of sampling steps, to the teacher's N-step endpoint from the
    same noise; `ode_error@s=…`: f of the teacher's own trajectory at start s. Where the ODE's true end is known, the
    error to that too: to the teacher it is the distillation error, to the truth the total. The others compare features
    with the teacher's samples, with those from other noises where there are any, and with the data; of a mixture they
    also see its modes. `…@budget=b`: of one-step samples after the share b of the training.
    """
    began = time.monotonic()
    ours, extracted = read_arrays(samples), read_arrays(features)
    of_data = read_arrays(references.data_features)
    of_teacher = read_arrays(references.teacher_features) if references.teacher_features else {}
    teacher = read_arrays(references.teacher_samples) if references.teacher_samples else None
    labels = read_arrays(references.noise)["labels"]
    truth = read_arrays(references.truth).get(references.truth_of) if references.truth else None
    modes, compared = modes_of(of_data), []
    for card in with_features(extracted, cards):
        sets = teacher_sets(of_teacher, card, neighbours) | {"data": reference_set(of_data, card, neighbours)}
        compared.append((card, sets))
    rows: list[Row] = []
    for name in sorted((n for n in ours if not n.startswith("from_")), key=_order):
        kind, _, number = name.partition("_")
        steps, suffix = (int(number), "") if kind == "steps" else (1, f"@budget={float(number):g}")
        if teacher is not None:
            error = _squared_error(ours[name], teacher["samples"], samples)
            rows.append(_row(f"ode_error{suffix}", error, len(ours[name]), space, "teacher", steps))
        if truth is not None:
            error = _squared_error(ours[name], truth, samples)
            rows.append(_row(f"ode_error{suffix}", error, len(ours[name]), space, "truth", steps))
        for card, others in compared:
            drawn = feature_set(extracted, card, name, neighbours)
            rows += _against(drawn, others, card, modes, steps=steps, suffix=suffix)
        rows += own.of_samples(ours[name], labels, steps, suffix) if own else []
        if not suffix:
            rows += scores(extracted, cards, name, steps) + _recognised(extracted, name, labels, cards, steps)
    for start in teacher["times"].tolist() if teacher is not None else []:
        reached = ours[f"from_{start}"]
        error = _squared_error(reached, teacher["samples"], samples)
        rows.append(_row(f"ode_error@s={start}", error, len(reached), space, "teacher", 1))
    files = {"samples": samples, "features": features, **references.files}
    write_rows(path, run, rows, files, cards=cards, neighbours=neighbours, settings=settings, began=began, own=own)


def _order(name: str) -> tuple[bool, float]:
    """Sets of samples by number of steps, then those of earlier in the training by budget."""
    return name.startswith("budget_"), float(name.split("_")[1])


def _recognised(
    extracted: dict[str, np.ndarray], name: str, labels: np.ndarray, cards: list[Card], steps: int
) -> list[Row]:
    """The share of samples whose predicted class is their label, where an extractor predicts one."""
    rows = []
    for card in cards:
        if (key := f"{card['name']}/{name}.predicted") in extracted:
            share = (extracted[key] == labels).mean()
            rows.append(_row("recognised", share, len(labels), card["name"], "labels", steps))
    return rows


def measure_teacher(
    path: str | Path,
    run: Row,
    *,
    features: str | Path,
    data_features: str | Path,
    noise: str | Path,
    cards: list[Card],
    neighbours: int,
    settings: dict[str, Any],
    samples: str | Path | None = None,
    truth: str | Path | None = None,
    space: str = "pixels",
    own: OwnMetrics | None = None,
) -> None:
    """The teacher's own samples against the data, and against its samples from other noises, the yardstick of
    distances to those; against the ODE's true end where it is known, which is the solver's discretisation error.

    Args:
        samples: the teacher's, needed with `truth` and `own`.
        own: the user's metrics, measured too.
    """
    began = time.monotonic()
    extracted, of_data, labels = read_arrays(features), read_arrays(data_features), read_arrays(noise)["labels"]
    rows: list[Row] = []
    for card in with_features(extracted, cards):
        sets = teacher_sets(extracted, card, neighbours)
        drawn, others = sets.pop("teacher"), sets | {"data": reference_set(of_data, card, neighbours)}
        rows += _against(drawn, others, card, modes_of(of_data), steps=run["n_steps"])
    rows += scores(extracted, cards, "samples", run["n_steps"])
    rows += _recognised(extracted, "samples", labels, cards, run["n_steps"])
    files = {"features": features, "data_features": data_features, "noise": noise}
    if truth is not None:
        error = _squared_error(read_arrays(samples)["samples"], read_arrays(truth)["vp"], samples)
        rows.append(_row("ode_error", error, len(labels), space, "truth", run["n_steps"]))
        files |= {"samples": samples, "truth": truth}
    if own:
        rows += own.of_samples(read_arrays(samples)["samples"], labels, run["n_steps"])
        files |= {"samples": samples}
    write_rows(path, run, rows, files, cards=cards, neighbours=neighbours, settings=settings, began=began, own=own)


def write_rows(
    path: str | Path,
    run: Row,
    rows: list[Row],
    files: dict[str, str | Path],
    *,
    cards: list[Card],
    neighbours: int,
    settings: dict[str, Any],
    began: float,
    read: dict[str, Any] | None = None,
    own: OwnMetrics | None = None,
) -> None:
    protocol = {
        "files_sha256": {name: sha256(file) for name, file in files.items()},
        "extractors": cards,
        "precision_recall_neighbours": neighbours,
        **({"data_read": read} if read else {}) | (own.protocol() if own else {}),
    }
    value = {"run": run, "rows": rows, "protocol": protocol, "settings": settings, "environment": environment()}
    write_measured(path, value | {"wall_time_s": round(time.monotonic() - began, 3)})


def write_measured(path: str | Path, value: dict[str, Any]) -> None:
    """Write a metric JSON, whose `run` and `rows` have a row's columns.

    Raises:
        MismatchError: a value that is not finite; names run and metric.
    """
    check_rows(f"{path}: not written", value["run"], value["rows"])
    write_json(path, value)


def check_rows(where: str, run: Row, rows: list[Row]) -> None:
    """Raise MismatchError where a value is not a finite number; names run and metric."""
    for row in rows:
        if not math.isfinite(row["value"]):
            raise MismatchError(
                f"{where}: {row['metric']} (extractor {row['extractor']}, reference {row['reference']}, sampling steps "
                f"{row['sampling_steps']}) of run {(run | row)['run']} is {row['value']}"
            )


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
    """Join the rows of an experiment's metric JSON files into one long CSV with `COLUMNS`.

    Raises:
        MismatchError: a value that is not finite; names file, run and metric.
    """
    import pandas as pd

    rows = []
    for file in files:
        measured = read_json(file)
        check_rows(str(file), measured["run"], measured["rows"])
        rows += [{"experiment": experiment} | measured["run"] | row for row in measured["rows"]]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS)
    for column in ("n_steps", "seed", "sampling_steps"):
        frame[column] = frame[column].astype("Int64")
    write_table(path, frame)
