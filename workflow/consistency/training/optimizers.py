"""The optimisers that a configuration names, their learning rate, clipping; a small network's weights as one tensor."""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import Any

import torch
from torch import nn

from ..config.settings import Training

log = logging.getLogger("consistency")


def make_optimizer(name: str, weights: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW, RAdam (torch's, with decoupled decay), Lion (lion-pytorch) or 8-bit AdamW (bitsandbytes)."""
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(weights, lr=rate, weight_decay=decay)
        except ImportError:
            log.warning("optimizer adamw8bit: bitsandbytes is not installed; using torch's AdamW, in float32")
    if name == "lion":
        from lion_pytorch import Lion

        return light(Lion)(weights, lr=rate, weight_decay=decay)
    if name == "radam":
        return light(torch.optim.RAdam)(weights, lr=rate, weight_decay=decay, decoupled_weight_decay=True)
    return light(torch.optim.AdamW)(weights, lr=rate, weight_decay=decay, fused=True)


@cache
def light(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A subclass that computes the same as a torch optimiser, and does not import torch's compiler.

    torch wraps these methods to hide them from the compiler, and the wrappers import it: 2 to 4 s in every training,
    though no optimiser is compiled here. The subclass has the methods inside the wrappers.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "step")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    return type(optimizer.__name__, (optimizer,), methods | {"step": torch.no_grad()(methods["step"])})


def rate_at(settings: Training, step: int) -> float:
    """Learning rate of step 0..steps − 1: linear warm-up, constant, linear decay towards 0."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    decay_steps = round(settings.decay_share * settings.steps)
    decay = min(1.0, (settings.steps - step) / max(decay_steps, 1)) if decay_steps else 1.0
    return settings.learning_rate * warm * decay


def clear_gradients(parameters: list[nn.Parameter]) -> None:
    """As `Optimizer.zero_grad`, which takes ten times as long."""
    for parameter in parameters:
        parameter.grad = None


def clip_gradients(
    parameters: list[nn.Parameter], limit: float, parts: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """`clip_grad_norm_`, which multiplies all gradients also where it multiplies them by one; returns their norm.

    Args:
        parts: of the parameters' gradients, whose norms are taken; the gradients themselves by default.
    """
    # as torch.nn.utils.get_total_norm and clip_grads_with_norm_, which sort them by device first
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts or gradients)))
    if norm + 1e-6 > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm


class Joined:
    """Parameters laid side by side in one tensor, and their gradients in another, for optimiser, clipping and average.

    On a CPU the step of a small network spends longer on calling an operation for each parameter than on computing.
    Each element is treated as before, to the bit (see `pays`), with one difference: a parameter that no loss reaches
    has gradient 0 here, and torch leaves it out, so weight decay reaches it too.

    Attributes:
        weights: the one parameter, (n,); `parameters` are views of it from now on.
        gradients: views of its gradient, shaped as `parameters`.
    """

    LARGEST = 10_000_000  # elements; beyond, the calls are nothing beside the computing, and the copies are not

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.weights = nn.Parameter(_join([p.detach() for p in parameters]))
        self.weights.grad = torch.zeros_like(self.weights)
        self.gradients = self.split(self.weights.grad)
        for parameter, part in zip(parameters, self.split(self.weights.detach()), strict=True):
            parameter.data = part

    @classmethod
    def pays(cls, parameters: list[nn.Parameter], optimizer: str) -> bool:
        """Whether these are few enough, in float32 on a CPU, and joining them changes no bit: the optimiser works
        element by element, and each parameter begins where 64 bytes do, as by itself. (Where it does not, products
        with it may be rounded otherwise, and its own elements in AdamW's kernel, which takes 16 at a time.)"""
        few = sum(p.numel() for p in parameters) <= cls.LARGEST
        plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
        even = all(p.numel() % 16 == 0 for p in parameters[:-1])
        return few and plain and even and optimizer in ("adamw", "radam", "lion")

    def split(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Views of a tensor like `weights`, shaped as the parameters."""
        parts = whole.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def gather(self) -> None:
        """Copy the parameters' gradients into that of `weights`."""
        with torch.no_grad():
            _join([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters], self.weights.grad)

    def state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of the optimiser of `weights`, as it were of the parameters one by one."""
        whole, numbers = optimizer.state_dict(), list(range(len(self.parameters)))
        state = {number: {} for number in numbers if whole["state"]}
        for key, value in whole["state"].get(0, {}).items():
            parts = self.split(value) if value.ndim else [value.clone() for _ in numbers]
            for number in numbers:
                state[number][key] = parts[number]
        return {"state": state, "param_groups": [whole["param_groups"][0] | {"params": numbers}]}

    def load_state_dict(self, optimizer: torch.optim.Optimizer, apart: dict[str, Any]) -> None:
        """The inverse of `state_dict`; of parameters without a state, zeros."""
        state = {}
        for key, value in next(iter(apart["state"].values()), {}).items():
            parts = [apart["state"].get(i, {}).get(key, torch.zeros_like(p)) for i, p in enumerate(self.parameters)]
            state[key] = _join(parts) if value.ndim else value
        state = {"state": {0: state} if state else {}, "param_groups": [apart["param_groups"][0] | {"params": [0]}]}
        optimizer.load_state_dict(state)


def _join(parts: list[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts], out=out)
