"""Data sets as one safetensors file: images in [−1, 1], labels, and the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

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


def prepare(path: str | Path, name: str, test_share: float, seed: int) -> None:
    """Write the data set `name`, shuffled and split, to `path`.

    The file holds train_images, train_labels, test_images, test_labels; images are float32
    (n, C, H, W) in [−1, 1], labels int64.

    Args:
        test_share: share of the images held out from teacher and classifier, in (0, 1).
        seed: of the shuffle.
    """
    images, labels = {"digits": digits}[name]()
    order = generator(seed, "split").permutation(len(labels))
    held_out = round(test_share * len(labels))
    parts = {"test": order[:held_out], "train": order[held_out:]}
    tensors = {}
    for part, rows in parts.items():
        tensors[f"{part}_images"] = torch.from_numpy(images[rows])
        tensors[f"{part}_labels"] = torch.from_numpy(labels[rows])
    save_tensors(path, tensors, {"name": name, "classes": int(labels.max()) + 1})


def load(path: str | Path) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors of `prepare` and the number of classes."""
    tensors, metadata = load_tensors(path)
    return tensors, metadata["classes"]
