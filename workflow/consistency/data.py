"""Data sets as one safetensors file: samples (images in [−1, 1], or points), labels, and the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import mixtures
from .errors import StorageError
from .storage import load_tensors, save_tensors
from .streams import generator


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits: images (n, 1, 8, 8) in [−1, 1], labels (n,) 0..9.

    Raises:
        StorageError: scikit-learn's data file is missing or unreadable.
    """
    from sklearn.datasets import load_digits

    try:
        bunch = load_digits()
    except (OSError, ValueError) as error:
        raise StorageError(f"digits: scikit-learn's data file cannot be read ({error}); reinstall it") from error
    return (bunch.images[:, None] / 8 - 1).astype(np.float32), bunch.target.astype(np.int64)


def prepare(path: str | Path, settings: dict[str, Any]) -> None:
    """Write a data set, split, to `path`.

    The file holds train_images, train_labels, test_images, test_labels; samples are float32, images
    (n, C, H, W) in [−1, 1] or a mixture's draws (n, d); labels int64.

    Args:
        settings: of `settings.Digits` (shuffled by its seed) or `settings.Mixture` (one class).
    """
    tensors: dict[str, np.ndarray] = {}
    if settings["kind"] == "mixture":
        counts = {"train": settings["train_count"], "test": settings["test_count"]}
        parameters = mixtures.parameters(settings["dimension"], settings["components"])
        points = mixtures.draw(**parameters, count=sum(counts.values()), seed=settings["seed"]).astype(np.float32)
        for part, values in zip(counts, np.split(points, [counts["train"]]), strict=True):
            tensors[f"{part}_images"] = values
            tensors[f"{part}_labels"] = np.zeros(len(values), np.int64)
        save_tensors(path, tensors, {"name": "mixture", "classes": 1})
        return
    images, labels = digits()
    order = generator(settings["seed"], "split").permutation(len(labels))
    held_out = round(settings["test_share"] * len(labels))
    parts = {"test": order[:held_out], "train": order[held_out:]}
    for part, rows in parts.items():
        tensors[f"{part}_images"] = images[rows]
        tensors[f"{part}_labels"] = labels[rows]
    save_tensors(path, tensors, {"name": settings["kind"], "classes": int(labels.max()) + 1})


def load(path: str | Path, framework: str = "pt") -> tuple[dict[str, Any], int]:
    """The tensors of `prepare` and the number of classes."""
    tensors, metadata = load_tensors(path, framework=framework)
    return tensors, metadata["classes"]
