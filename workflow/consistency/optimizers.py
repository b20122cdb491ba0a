"""The optimisers that a configuration names."""

from __future__ import annotations

import logging

import torch
from torch import nn

from .compat import without_compiler

log = logging.getLogger("consistency")


def make_optimizer(name: str, weights: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW, RAdam (torch's, with decoupled decay), Lion (lion-pytorch) or 8-bit AdamW (bitsandbytes)."""
    without_compiler(torch.optim.RAdam if name == "radam" else torch.optim.AdamW)
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(weights, lr=rate, weight_decay=decay)
        except ImportError:
            log.warning("optimizer adamw8bit: bitsandbytes is not installed; using torch's AdamW, in float32")
    if name == "lion":
        from lion_pytorch import Lion

        return Lion(weights, lr=rate, weight_decay=decay)
    if name == "radam":
        return torch.optim.RAdam(weights, lr=rate, weight_decay=decay, decoupled_weight_decay=True)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True)
