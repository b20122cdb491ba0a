"""Where networks run, and in which precision."""

from __future__ import annotations

import contextlib
import os

import torch
from torch import nn

from ..errors import ConfigError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one; of the processes of one training each has its own.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; allowed here: auto, cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:  # set by accelerate launch
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device cannot do.

    Raises:
        ConfigError: fp16 on the CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a GPU; allowed on the CPU: no, bf16")


def move(network: nn.Module, device: torch.device, precision: str = "no") -> nn.Module:
    """Move a network that is not trained to a device, its weights in the precision that it will run in.

    Raises:
        ConfigError: fp16 on the CPU.
    """
    check_precision(precision, device)
    return network.to(device, HALF.get(precision, torch.float32))


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; to a GPU it is on its way when this returns, and nothing has waited."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast to the precision; nothing for "no"."""
    if precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, HALF[precision])
