"""Distances between prediction and target; a configuration names one of them."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over batch and elements."""
    return F.mse_loss(prediction, target)


def pseudo_huber(prediction: torch.Tensor, target: torch.Tensor, c: float = 0.001) -> torch.Tensor:
    """`sqrt(d² + c²) − c` per element, averaged (section A.5)."""
    return ((prediction - target).square() + c**2).sqrt().mean() - c


def cross_entropy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (B, classes) against labels (B,)."""
    return F.cross_entropy(prediction, target)
