"""Numbers of a training that are not finite: what to say of them, and whether training may go on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .feed import Batch

# The loss scale of fp16 halves with each step whose gradients overflow. Below this one, the smallest number of fp16, it
# is not the scale that makes them overflow.
SMALLEST_SCALE = 2.0**-24


def is_skipped(scaler: Any) -> bool:
    """Whether gradients that are not finite are the business of fp16's scaler, which leaves the step out and lowers the
    scale; without a scaler (None) they are an error."""
    return scaler is not None and scaler.get_scale() >= SMALLEST_SCALE


def of_gradients(
    what: str, step: int, loss: float, weights: dict[str, nn.Parameter], gradients: list[torch.Tensor | None]
) -> str:
    """The line for gradients that are not finite: names the first weight that has one.

    Args:
        gradients: of the weights, in their order; None where a weight has none.
    """
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None and not torch.isfinite(gradient).all():
            return (
                f"{what}: the gradient of weight {name!r} is not finite at step {step}, where the loss is {loss:.4g}; "
                "lower learning_rate, or look for a root or logarithm at 0 in objective and distance"
            )
    return f"{what}: the gradients' norm overflowed at step {step}, where the loss is {loss:.4g}; lower learning_rate"


def check_weights(
    what: str, step: int, weights: dict[str, torch.Tensor], average: dict[str, torch.Tensor] | None
) -> None:
    """Look at the weights, and at their average, before they are written.

    Raises:
        TrainingError: one that is not finite.
    """
    for kind, tensors in (("weight", weights), ("average of weight", average or {})):
        if not tensors or torch.stack([value.detach().isfinite().all() for value in tensors.values()]).all():
            continue
        name = next(name for name, value in tensors.items() if not value.isfinite().all())
        raise TrainingError(f"{what}: {kind} {name!r} is not finite after step {step}; lower learning_rate")


def of_loss(
    what: str,
    step: int,
    value: float,
    batch: Batch,
    output: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    model: nn.Module,
) -> str:
    """The line for a loss that is not finite: names the first thing that is not, from the weights to the outputs.

    Args:
        output: of the objective: losses (B,), or prediction and target.
    """
    start = f"{what}: loss is {value} at step {step}:"
    for name, parameter in model.named_parameters():  # before the inputs, which a generator may have computed
        if not torch.isfinite(parameter).all():
            return f"{start} weight {name!r} is not finite; lower learning_rate"
    for name, tensor in batch.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            if tensor.ndim == 0:
                return f"{start} input {name!r} is not finite"
            rows = (~torch.isfinite(tensor.reshape(len(tensor), -1))).any(1).nonzero().flatten().tolist()
            return f"{start} input {name!r} is not finite in batch rows {rows[:5]}"
    if isinstance(output, torch.Tensor):
        reason = "the objective's losses are not finite, though weights and inputs are"
    elif output[1].is_floating_point() and not torch.isfinite(output[1]).all():
        reason = "the target is not finite"
    elif not torch.isfinite(output[0]).all():
        reason = "the network's output overflowed"
    else:
        reason = "the distance overflowed"
    return f"{start} {reason}; lower learning_rate"
