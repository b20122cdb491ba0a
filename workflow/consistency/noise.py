"""Gaussian noise that belongs to a sample, not to a batch (streams of `streams`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .streams import generator


def normal(seed: int, purpose: str, samples: range | Sequence[int], shape: Sequence[int], *index: int) -> torch.Tensor:
    """Standard normal noise, float32, shape (len(samples), *shape), one stream per sample."""
    out = np.empty((len(samples), *shape), dtype=np.float32)
    for row, sample in enumerate(samples):
        out[row] = generator(seed, purpose, *index, sample).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(out)


def draw_noise(count: int, shape: Sequence[int], classes: int, seed: int) -> dict[str, torch.Tensor]:
    """The evaluation's shared initial noise: one noise and one label per sample.

    Returns:
        noise: float32 (count, *shape), N(0, I); labels: int64 (count,) in [0, classes), balanced.
    """
    # Balanced labels: the sample's number modulo the classes, so that a prefix is balanced too.
    labels = torch.arange(count) % classes
    return {"noise": normal(seed, "noise", range(count), shape), "labels": labels}
