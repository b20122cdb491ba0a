"""Data sets as one safetensors file: samples (images, points or latents), labels, and the split."""

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


def _mixture(settings: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    counts = {"train": settings["train_count"], "test": settings["test_count"]}
    parameters = mixtures.parameters(settings["dimension"], settings["components"])
    points = mixtures.draw(**parameters, count=sum(counts.values()), seed=settings["seed"]).astype(np.float32)
    parts = np.split(points, [counts["train"]])
    return {part: (values, np.zeros(len(values), np.int64)) for part, values in zip(counts, parts, strict=True)}


def _digits(settings: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    images, labels = digits()
    order = generator(settings["seed"], "split").permutation(len(labels))
    held_out = round(settings["test_share"] * len(labels))
    return {
        part: (images[rows], labels[rows]) for part, rows in (("test", order[:held_out]), ("train", order[held_out:]))
    }


def prepare(path: str | Path, settings: dict[str, Any]) -> None:
    """Write a data set, split, to `path`.

    The file holds train_images, train_labels, test_images, test_labels. Samples are images (n, C, H, W), as float32
    in [−1, 1] or as uint8 (see `as_float`), or a mixture's draws (n, d); labels int64.

    Args:
        settings: of a kind of `sources.Data` other than captions (see `latents`).

    Raises:
        StorageError: missing or damaged files.
    """
    kind = settings["kind"]
    if kind in ("mixture", "digits"):
        parts = (_mixture if kind == "mixture" else _digits)(settings)
    else:
        from . import datasets

        parts = datasets.read({key: value for key, value in settings.items() if key not in ("conditional", "name")})
        if not settings.get("conditional", True):
            parts = {part: (images, np.zeros_like(labels)) for part, (images, labels) in parts.items()}
    tensors = {f"{part}_images": images for part, (images, _) in parts.items()}
    tensors |= {f"{part}_labels": labels for part, (_, labels) in parts.items()}
    classes = 1 + max(int(labels.max()) for _, labels in parts.values())
    save_tensors(path, tensors, {"name": kind, "classes": classes})


def load(path: str | Path, framework: str = "pt") -> tuple[dict[str, Any], int]:
    """The tensors of `prepare` and the number of classes."""
    tensors, metadata = load_tensors(path, framework=framework)
    return tensors, metadata["classes"]


def as_float(images: Any) -> Any:
    """Tensors in [−1, 1]: uint8 as x / 127.5 − 1, anything else as it is."""
    import torch

    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
