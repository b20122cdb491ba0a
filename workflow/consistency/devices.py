"""Where networks run, and in which precision."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from .errors import ConfigError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; allowed here: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device cannot do.

    Raises:
        ConfigError: fp16 on the CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a GPU; allowed on the CPU: no, bf16")


def place(network: nn.Module, device: torch.device, precision: str = "no") -> nn.Module:
    """Move a network that is not trained to a device, its weights in the precision that it will run in.

    Raises:
        ConfigError: fp16 on the CPU.
    """
    check_precision(precision, device)
    return network.to(device, HALF.get(precision, torch.float32))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast to the precision; nothing for "no"."""
    if precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, HALF[precision])
