"""What a diffusion network may predict, and ε and clean data from it (x_t = α x_0 + σ ε; diffusers' `prediction_type`).

    epsilon         ε itself
    v_prediction    v = α ε − σ x_0, so ε = α v + σ x_t and x_0 = α x_t − σ v     (Salimans & Ho 2022)
    sample          x_0, so ε = (x_t − α x_0) / σ

A network tells by its attribute `prediction`; one without predicts ε.
"""

from __future__ import annotations

import torch
from torch import nn

from .schedules import VPSchedule

KINDS = ("epsilon", "v_prediction", "sample")


def kind_of(network: nn.Module) -> str:
    """One of `KINDS`."""
    return getattr(network, "prediction", "epsilon")


def noise_of(
    network: nn.Module, output: torch.Tensor, x: torch.Tensor, t: torch.Tensor | float, schedule: VPSchedule
) -> torch.Tensor:
    """ε from the network's output at x (B, …) and t (scalar or (B,), 0..T); at t = 0 with entry 1's α and σ, since ε
    of data without noise is not defined."""
    kind = kind_of(network)
    if kind == "epsilon":
        return output
    t = torch.as_tensor(t).clamp(min=1)
    alpha, sigma = schedule.coefficients(t, x)
    return alpha * output + sigma * x if kind == "v_prediction" else (x - alpha * output) / sigma


def data_of(
    network: nn.Module, output: torch.Tensor, x: torch.Tensor, t: torch.Tensor | float, schedule: VPSchedule
) -> torch.Tensor:
    """The estimate of x_0 from the network's output at x (B, …) and t (scalar or (B,), 0..T)."""
    kind = kind_of(network)
    if kind == "sample":
        return output
    alpha, sigma = schedule.coefficients(t, x)
    return alpha * x - sigma * output if kind == "v_prediction" else (x - sigma * output) / alpha
