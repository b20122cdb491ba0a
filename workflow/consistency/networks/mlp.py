"""A residual MLP for small images: 10 to 30 times cheaper than a UNet on 8×8 pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F


class ResidualMLP(nn.Module, PyTorchModelHubMixin):
    """Pre-norm residual MLP over the flattened sample; timestep and class enter the residual stream.

    Args:
        sample_shape: (C, H, W) of a sample.
        classes: number of classes; label `classes` is the null class.
        timesteps: T; the timestep index runs 0..T − 1.
        width: of the residual stream.
        depth: number of residual blocks.
        second_time: whether the network may be asked with a gap between two times too; its embedding starts at zero.
    """

    def __init__(
        self,
        sample_shape: list[int],
        classes: int,
        timesteps: int,
        width: int,
        depth: int,
        second_time: bool = False,
    ):
        super().__init__()
        self.sample_shape, self.classes, self.timesteps = tuple(sample_shape), classes, timesteps
        size = math.prod(sample_shape)
        frequencies = torch.exp(torch.linspace(0, math.log(timesteps), width // 2)) * math.pi / 2
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.inward = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, size)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)
        self.gap = embedding_from_zero(width) if second_time else None

    @staticmethod
    def sizes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Argument → the number that the shapes of saved weights give; of `sample_shape` the product."""
        width, size = shapes["inward.weight"]
        depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        return {"width": width, "depth": depth, "sample_shape": size, "classes": shapes["label.weight"][0] - 1}

    def _apply(self, *args: Any, **options: Any) -> ResidualMLP:
        kept = self.frequencies  # of up to T: in half precision they would be other frequencies
        super()._apply(*args, **options)
        self.frequencies = kept.to(self.frequencies.device)
        return self

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor, gap: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, *sample_shape), t (B,) in 0..T − 1, cond (B,) in 0..classes, gap t − r (B,) ≥ 0 → like x."""
        dtype = self.norm.weight.dtype
        h = self.inward(x.flatten(1).to(dtype)) + self.time(self._waves(t, x).to(dtype)) + self.label(cond)
        if gap is not None:
            h = h + self.gap(self._waves(gap, x).to(dtype))
        for block in self.blocks:
            h = block(h)
        return self.outward(self.norm(h)).view_as(x)

    def _waves(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of a time (B,) → (B, width); in half precision times would be other times."""
        phase = (t.to(torch.promote_types(x.dtype, torch.float32)) / self.timesteps)[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], -1)


def embedding_from_zero(width: int, output: int | None = None) -> nn.Sequential:
    """An embedding of sines and cosines (B, width) → (B, output) that is zero until it is trained."""
    layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, output or width))
    nn.init.zeros_(layers[2].weight)
    nn.init.zeros_(layers[2].bias)
    return layers


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.narrow(F.silu(self.widen(self.norm(h))))
