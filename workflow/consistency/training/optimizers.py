"""The optimisers that a configuration names; a small network's weights as one tensor for them."""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import Any

import torch
from torch import nn

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


class Joined:
    """Parameters laid side by side in one tensor, and their gradients in another, for optimiser, clipping and average.

    On a CPU the step of a small network spends longer on calling an operation for each parameter than on computing.
    Each element is treated as before, to the bit (see `pays`), with one difference: a parameter that no loss reaches
    has gradient 0 here, and torch leaves it out, so weight decay reaches it too.

    Attributes:
        weights: the one parameter, (n,); the given ones are views of it from now on.
        gradients: views of its gradient, like the given parameters.
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
        """Move the parameters' gradients into that of `weights`."""
        with torch.no_grad():
            _join([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters], self.weights.grad)
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of the optimiser of `weights`, as it were of the parameters one by one."""
        known, numbers = optimizer.state_dict(), list(range(len(self.parameters)))
        state = {number: {} for number in numbers if known["state"]}
        for key, value in known["state"].get(0, {}).items():
            parts = self.split(value) if value.ndim else [value.clone() for _ in numbers]
            for number in numbers:
                state[number][key] = parts[number]
        return {"state": state, "param_groups": [known["param_groups"][0] | {"params": numbers}]}

    def load_state_dict(self, optimizer: torch.optim.Optimizer, known: dict[str, Any]) -> None:
        """The inverse of `state_dict`; of parameters without a state, zeros."""
        state = {}
        for key, value in next(iter(known["state"].values()), {}).items():
            parts = [known["state"].get(i, {}).get(key, torch.zeros_like(p)) for i, p in enumerate(self.parameters)]
            state[key] = _join(parts) if value.ndim else value
        state = {"state": {0: state} if state else {}, "param_groups": [known["param_groups"][0] | {"params": [0]}]}
        optimizer.load_state_dict(state)


def _join(parts: list[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts], out=out)
