"""Distances between prediction and target, one value a sample; a configuration names one of them."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over a sample's elements, (B, …) → (B,)."""
    return F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)


def pseudo_huber(prediction: torch.Tensor, target: torch.Tensor, c: float = 0.001) -> torch.Tensor:
    """`sqrt(d² + c²) − c` per element, averaged over a sample's elements (section A.5), (B, …) → (B,)."""
    return ((prediction - target).square() + c**2).sqrt().flatten(1).mean(1) - c


def pseudo_huber_norm(prediction: torch.Tensor, target: torch.Tensor, c: float = 0.00054) -> torch.Tensor:
    """`sqrt(‖d‖² + (c √dim)²) − c √dim` of the whole sample (iCT, section B.2), (B, …) → (B,)."""
    squared = (prediction - target).flatten(1).square().sum(1)
    constant = c * prediction[0].numel() ** 0.5
    return (squared + constant**2).sqrt() - constant


def cross_entropy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (B, classes) against labels (B,), → (B,)."""
    return F.cross_entropy(prediction, target, reduction="none")
