"""Derivatives of a student along a direction: Jacobian-vector products, without gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import is_memory_shortage

log = logging.getLogger("consistency")

Tensor = torch.Tensor
STEP = 1e-3  # of finite differences, on times and samples of order one


def along(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], direction: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """`function(*at)` and its derivative in that direction, both without gradient.

    The generators of random numbers are left as they were, so that a call of the function afterwards draws the same
    dropout. Autocast is off: its convolutions have no forward-mode derivative, and rounding to bf16 would be
    more than a difference. Attention runs in its plain form, the only one with such a derivative. A function that has
    none is differentiated by central differences, which the log says once.

    Args:
        at: tensors (B, …); direction: one for each, of the same shape.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad(), torch.autocast(at[0].device.type, enabled=False):
        try:
            with same_random_numbers(at[0]), sdpa_kernel(SDPBackend.MATH), _ContiguousNorms(), forward_ad.dual_level():
                # not torch.func.jvp, which gives dropout another layout in memory
                output = function(*map(forward_ad.make_dual, at, direction))
                value, derivative = forward_ad.unpack_dual(output)
            return value, torch.zeros_like(value) if derivative is None else derivative
        except RuntimeError as error:  # of an operation, or of an autograd.Function, that has no such derivative
            if is_memory_shortage(error):
                raise
            _warn(str(error).split("\n")[0])
        return _differences(function, at, direction)


def same_random_numbers(like: Tensor) -> AbstractContextManager:
    """Leaves the generators of random numbers, of the CPU and of a tensor's GPU, as they were."""
    return torch.random.fork_rng(devices=[like.device] if like.is_cuda else [])


class _ContiguousNorms(TorchFunctionMode):
    """A group normalisation has a forward-mode derivative where its input is contiguous, which after attention it is
    not. Its output is laid out as ever: dropout draws in the order of memory."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        x, kwargs = args[0] if args else None, kwargs or {}
        if function is functional.group_norm and not x.is_contiguous():
            last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            output = function(x.contiguous(), *args[1:], **kwargs)
            return output.contiguous(memory_format=torch.channels_last) if last else output
        return function(*args, **kwargs)


@cache
def _warn(why: str) -> None:
    """Say once why central differences are used."""
    log.warning("no forward-mode derivative (%s); central differences are used", why)


def _differences(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], direction: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The value, and (function(at + h d) − function(at − h d)) / 2h, each with the same random numbers."""
    values = []
    for h in (0.0, STEP, -STEP):
        with same_random_numbers(at[0]):
            values.append(function(*(a + h * d for a, d in zip(at, direction, strict=True))))
    return values[0], (values[1] - values[2]) / (2 * STEP)
