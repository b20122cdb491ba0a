"""Gaussian noise that belongs to a sample, not to a batch (streams of `streams`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .streams import generators

if TYPE_CHECKING:
    import torch


def normal_array(
    seed: int, purpose: str, samples: range | Sequence[int], shape: Sequence[int], *index: int
) -> np.ndarray:
    """Standard normal noise, float32, shape (len(samples), *shape), one stream per sample."""
    out = np.empty((len(samples), *shape), dtype=np.float32)
    rows = out.reshape(len(samples), -1) if len(samples) else out
    for row, random in zip(rows, generators(seed, purpose, *index, numbers=samples), strict=True):
        random.standard_normal(out=row, dtype=np.float32)
    return out


def normal(seed: int, purpose: str, samples: range | Sequence[int], shape: Sequence[int], *index: int) -> torch.Tensor:
    """`normal_array` as a tensor."""
    import torch

    return torch.from_numpy(normal_array(seed, purpose, samples, shape, *index))


def draw_noise(count: int, shape: Sequence[int], classes: int, seed: int, other: bool = False) -> dict[str, np.ndarray]:
    """The evaluation's shared initial noise: one noise and one label per sample.

    Args:
        other: draw a second noise for each sample too.

    Returns:
        noise, and with `other` other_noise: float32 (count, *shape), N(0, I), independent of each other; labels: int64
        (count,) in [0, classes), balanced.
    """
    # Balanced labels: the sample's number modulo the classes, so that a prefix is balanced too.
    labels = np.arange(count, dtype=np.int64) % classes
    names = ["noise", *["other_noise"] * other]
    noises = {name: normal_array(seed, name.replace("_", " "), range(count), shape) for name in names}
    return noises | {"labels": labels}
