"""What measures say of the data itself: how far draws of one distribution lie apart."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.storage import load_tensors
from ..flow.streams import generator
from .distances import FeatureSet
from .features import COORDINATES
from .measure import Card, Row, _row, compare, modes_of, read_arrays, reference_set, scores, with_features, write_rows

if TYPE_CHECKING:
    from .own import OwnMetrics

HALVES = "other half of the data"  # the reference of distances between them


def halves(labels: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two random halves, stratified by label: labels (n,) → (n // 2,) each.

    Of every two rows that follow each other, sorted by label and at random within one, each half has one.
    """
    random = generator(0, "halves", split)
    order = random.permutation(len(labels))
    pairs = order[np.argsort(labels[order], kind="stable")][: len(labels) // 2 * 2].reshape(-1, 2)
    first, second = random.permuted(pairs, axis=1).T
    return first, second


def measure_data(
    path: str | Path,
    run: Row,
    data_features: str | Path,
    cards: list[Card],
    neighbours: int,
    settings: dict[str, Any],
    *,
    data: str | Path,
    labels: str | None,
    splits: int = 5,
    own: OwnMetrics | None = None,
) -> None:
    """The yardstick: the Fréchet distance between two random halves of the data, stratified by label as samples are
    (mean of `splits` splits; of points also the Wasserstein distance, and what a mixture's modes say of a half), the
    scores of the data, and the classifier's held-out accuracy.

    Args:
        data: the file that the features were extracted from, which has been checked; what was read and passed over to
            make it goes into the protocol.
        labels: the name of the samples' labels there; None where they have none, and halves are drawn at random.
    """
    began = time.monotonic()
    extracted = read_arrays(data_features)
    tensors, metadata = load_tensors(data, [labels] if labels else [], framework="np", check=False)
    modes, rows = modes_of(extracted), []
    for card in with_features(extracted, cards):
        features, measured = reference_set(extracted, card, neighbours).features, {}
        classes = tensors[labels] if labels else np.zeros(len(features))
        points = card["name"] == COORDINATES
        for split in range(splits):
            a, b = (FeatureSet(features[half]) for half in halves(classes, split))
            of_split = {(metric, HALVES): v for metric, v in compare(a, b, points, brief=True).items()}
            of_split |= {(metric, "data"): v for metric, v in (modes.measures(a.features) if modes else {}).items()}
            for key, value in of_split.items():
                measured.setdefault(key, []).append(value)
        for (metric, reference), values in measured.items():
            rows.append(_row(metric, float(np.mean(values)), len(features) // 2, card["name"], reference))
        if "held_out_accuracy" in card:
            value, count = card["held_out_accuracy"], card["held_out_count"]
            rows.append(_row("held_out_accuracy", value, count, card["name"], "labels"))
    rows += scores(extracted, cards, "train_images", None)
    rows += own.of_data() if own else []
    protocol = {"cards": cards, "neighbours": neighbours, "settings": settings, "read": metadata.get("read")}
    write_rows(path, run, rows, {"data_features": data_features}, **protocol, began=began, own=own)
