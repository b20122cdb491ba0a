"""Derivatives of a student along a direction: Jacobian-vector products, without gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger("consistency")

Tensor = torch.Tensor
STEP = 1e-3  # of finite differences, on times and samples of order one


def along(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], direction: tuple[Tensor, ...], exact: bool = True
) -> tuple[Tensor, Tensor]:
    """`function(*at)` and its derivative in that direction, both without gradient.

    The generators of random numbers are left as they were, so that a call of the function afterwards draws the same
    dropout. Attention runs in its plain form, the only one with a forward-mode derivative. A function that has none is
    differentiated by central differences, which the log says once.

    Args:
        at: tensors (B, …); direction: one for each, of the same shape.
        exact: False for central differences.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    devices = [at[0].device] if at[0].is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        if exact:
            try:
                with sdpa_kernel(SDPBackend.MATH):
                    return torch.func.jvp(function, at, direction)
            except NotImplementedError as error:
                log.warning("no forward-mode derivative (%s); central differences are used", str(error).split("\n")[0])
        return _differences(function, at, direction)


def _differences(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], direction: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The value, and (function(at + h d) − function(at − h d)) / 2h, each with the same random numbers."""
    values = []
    for h in (0.0, STEP, -STEP):
        with torch.random.fork_rng(devices=[at[0].device] if at[0].is_cuda else []):
            values.append(function(*(a + h * d for a, d in zip(at, direction, strict=True))))
    return values[0], (values[1] - values[2]) / (2 * STEP)
